"""A loss per token, with workers that have different numbers of tokens: their numbers are the weights.

    python examples/recipes/token_weights.py

Each worker takes the mean loss of its own tokens, and `update` weights the workers' updates by their tokens.
So y moves as SGD does on the mean loss of all tokens. A worker whose tokens are all padding has weight 0.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import def_jax

RATE, CLASSES = 0.05, 8


def loss_fn(params, batch):
    inputs, targets, mask = batch  # [sequences, tokens, ...]; a token counts where the mask is 1
    losses = optax.softmax_cross_entropy_with_integer_labels(inputs @ params['w'], targets)
    tokens = mask.sum()
    return (losses * mask).sum() / jnp.maximum(tokens, 1), tokens


def make_train_step(dist):
    @jax.jit
    def train_step(params, opt_state, batch):
        grad_fn = dist.value_and_grad(loss_fn, has_aux=True)
        (losses, tokens), grads = grad_fn(params, opt_state, batch)  # both [workers]
        updates, opt_state = dist.update(grads, opt_state, params, weight=tokens)
        return optax.apply_updates(params, updates), opt_state, (losses * tokens).sum() / tokens.sum()

    return train_step


def main(num_steps=300):
    mesh = jax.make_mesh((jax.device_count(),), ('workers',))
    dist = def_jax.spmd(def_jax.def_sgd(RATE, 64, 'workers', momentum=0.0), mesh)
    start = {'w': jnp.zeros((32, CLASSES))}
    params = jax.device_put(start, dist.shardings)
    opt_state, train_step = dist.init(params), make_train_step(dist)
    rng = np.random.default_rng(0)
    for step in range(num_steps):
        inputs = rng.normal(size=(16, 24, 32)).astype(np.float32)
        lengths = rng.integers(0, 25, 16)
        lengths[:4] = 0  # the first worker has nothing but padding
        mask = (np.arange(24) < lengths[:, None]).astype(np.float32)
        batch = inputs, inputs[..., :CLASSES].argmax(-1), mask
        params, opt_state, loss = jax.block_until_ready(train_step(params, opt_state, batch))
        if step == 0:  # y is where SGD on the whole batch would be
            gradient = jax.grad(lambda p, b: loss_fn(p, b)[0])(start, batch)['w']
            y = dist.output_params(params, opt_state)['w']
            np.testing.assert_allclose(y, -RATE * gradient, atol=1e-6)
    print(f'loss {float(loss):.3f} nats a token')
    return loss


if __name__ == '__main__':
    jax.config.update('jax_platforms', 'cpu')  # on accelerators, delete this line and the next
    jax.config.update('jax_num_cpu_devices', 4)
    main()
