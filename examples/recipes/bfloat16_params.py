"""Parameters in bfloat16, without a master copy: what rounding takes from x waits in the residual.

    python examples/recipes/bfloat16_params.py

At a small learning rate most updates are below half a unit in the last place of a bfloat16 parameter, and
dense training loses them. Here they are sent later, and y is a float32 master copy for no memory.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import def_jax

RATE = 0.002


def init_params(key):
    first, second = jax.random.split(key)
    params = {'in': jax.random.normal(first, (64, 128)) / 8, 'out': jax.random.normal(second, (128, 10)) / 11}
    return jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)


def loss_fn(params, batch):
    images, labels = batch
    logits = jax.nn.relu(images.astype(params['in'].dtype) @ params['in']) @ params['out']
    return optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), labels).mean()


def train(optimizer, data, num_steps):
    """x in bfloat16 and y in float32 after so many steps; `optimizer` is def_jax's."""
    dist = def_jax.spmd(optimizer, jax.make_mesh((jax.device_count(),), ('workers',)))
    params = jax.device_put(init_params(jax.random.key(0)), dist.shardings)
    opt_state, rng = dist.init(params), np.random.default_rng(0)

    @jax.jit
    def train_step(params, opt_state, batch):
        _, grads = dist.value_and_grad(loss_fn)(params, opt_state, batch)
        updates, opt_state = dist.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    for _ in range(num_steps):
        rows = rng.integers(0, 1400, 64)
        batch = tuple(x[rows] for x in data)
        params, opt_state = jax.block_until_ready(train_step(params, opt_state, batch))
    return params, opt_state, dist


def main(num_steps=1000):
    images, labels = load_digits(return_X_y=True)
    data = (images / 16).astype(np.float32), labels
    test = tuple(x[1400:] for x in data)
    dense = optax.chain(def_jax.all_reduce_mean('workers'), optax.sgd(RATE, momentum=0.9))
    lossy, _, _ = train(dense, data, num_steps)
    params, opt_state, dist = train(def_jax.def_sgd(RATE, 64, 'workers'), data, num_steps)
    y = dist.output_params(params, opt_state)
    assert params['in'].dtype == jnp.bfloat16 and y['in'].dtype == jnp.float32
    losses = [float(loss_fn(each, test)) for each in (lossy, params, y)]
    print('test loss: dense in bfloat16 {:.3f}, DEF-Q at x {:.3f}, at y {:.3f}'.format(*losses))
    return losses[0] - losses[1]


if __name__ == '__main__':
    jax.config.update('jax_platforms', 'cpu')  # on accelerators, delete this line and the next
    jax.config.update('jax_num_cpu_devices', 4)
    main()
