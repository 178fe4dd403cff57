"""LoRA: adapters and a head are trained and sent, the rest of the model is frozen and costs nothing.

    python examples/recipes/lora.py

`optax.multi_transform` gives every leaf an optimizer, so that only adapters have a residual and a message.
`optax.masked` would not do: it returns the gradients of what it masks, and they would be added to x.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import def_jax

RANK = 4
LABELS = {'body': 'frozen', 'down': 'trained', 'up': 'trained', 'head': 'trained'}
NUM_STEPS = 200
rate = optax.cosine_decay_schedule(0.01, NUM_STEPS)  # at a constant rate, a small model's loss can jump
optimizer = optax.multi_transform(
    {'trained': def_jax.def_adamw(rate, 64, 'workers'), 'frozen': optax.set_to_zero()}, LABELS
)


def init_params(key):
    keys = jax.random.split(key, 3)
    return {
        'body': jax.random.normal(keys[0], (64, 512)) / 8,  # of a trained model
        'down': jax.random.normal(keys[1], (64, RANK)) / 8,
        'up': jnp.zeros((RANK, 512)),
        'head': jax.random.normal(keys[2], (512, 10)) / 23,
    }


def loss_fn(params, batch):
    images, labels = batch
    hidden = jax.nn.relu(images @ params['body'] + images @ params['down'] @ params['up'])
    logits = hidden @ params['head']
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def main(num_steps=NUM_STEPS):
    images, labels = load_digits(return_X_y=True)
    images, rng = (images / 16).astype(np.float32), np.random.default_rng(0)
    dist = def_jax.spmd(optimizer, jax.make_mesh((jax.device_count(),), ('workers',)))

    @jax.jit
    def train_step(params, opt_state, batch):
        losses, grads = dist.value_and_grad(loss_fn)(params, opt_state, batch)
        updates, opt_state = dist.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, losses.mean()

    start = params = jax.device_put(init_params(jax.random.key(0)), dist.shardings)
    opt_state = dist.init(params)
    for _ in range(num_steps):
        rows = rng.integers(0, 1400, 64)
        batch = images[rows], labels[rows]
        params, opt_state, loss = jax.block_until_ready(train_step(params, opt_state, batch))
    sent = dist.check(train_step.lower(params, opt_state, batch).compile(), devices_per_node=1)
    np.testing.assert_array_equal(params['body'], start['body'])
    print(f'loss {float(loss):.3f}; {sum(c.node_bytes for c in sent)} bytes leave a device in a step')
    return loss


if __name__ == '__main__':
    jax.config.update('jax_platforms', 'cpu')  # on accelerators, delete this line and the next
    jax.config.update('jax_num_cpu_devices', 4)
    main()
