"""Accumulation of micro-batches: one message a step, however many gradients it takes.

    python examples/recipes/accumulation.py

A worker's gradient function scans over its micro-batches at one detached point and returns their mean.
Not `optax.MultiSteps`, which calls the optimizer, and so sends a message, for every micro-batch.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType
from sklearn.datasets import load_digits

import def_jax

MICRO_BATCHES = 4


def loss_fn(params, batch):
    images, labels = batch
    logits = jax.nn.relu(images @ params['in']) @ params['out']
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def accumulated(params, batch):
    """The loss and the gradient of a worker's batch, of which one micro-batch at a time is in memory."""
    micro_batches = jax.tree.map(lambda x: x.reshape(MICRO_BATCHES, -1, *x.shape[1:]), batch)

    def add(total, micro_batch):
        return jax.tree.map(jnp.add, total, jax.value_and_grad(loss_fn)(params, micro_batch)), None

    total, _ = jax.lax.scan(add, (jnp.zeros(()), optax.tree.zeros_like(params)), micro_batches)
    return jax.tree.map(lambda x: x / MICRO_BATCHES, total)


def main(num_steps=200):
    images, labels = load_digits(return_X_y=True)
    images, rng = (images / 16).astype(np.float32), np.random.default_rng(0)
    mesh = jax.make_mesh((jax.device_count(),), ('workers',), axis_types=(AxisType.Auto,))
    dist = def_jax.spmd(def_jax.def_sgd(0.1, 64, 'workers'), mesh)

    @jax.jit
    def train_step(params, opt_state, batch):
        losses, grads = dist.at_points(accumulated)(params, opt_state, batch)
        updates, opt_state = dist.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, losses.mean()

    params = {'in': rng.normal(size=(64, 128)) / 8, 'out': rng.normal(size=(128, 10)) / 11}
    params = jax.device_put(jax.tree.map(np.float32, params), dist.shardings)
    opt_state = dist.init(params)
    for _ in range(num_steps):
        rows = rng.integers(0, 1400, 8 * MICRO_BATCHES * dist.num_workers)
        batch = images[rows], labels[rows]
        params, opt_state, loss = jax.block_until_ready(train_step(params, opt_state, batch))
    dist.check(train_step.lower(params, opt_state, batch).compile())
    print(f'loss {float(loss):.3f}')
    return loss


if __name__ == '__main__':
    jax.config.update('jax_platforms', 'cpu')  # on accelerators, delete this line and the next
    jax.config.update('jax_num_cpu_devices', 4)
    main()
