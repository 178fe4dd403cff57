"""Flax Linen with `TrainState`, on scikit-learn's digits: DEF in the loop of Flax's MNIST example.

    python examples/linen_train_state.py

Four workers, simulated on the CPU. A comment on each line that DEF changes says what it was.
"""

import os

os.environ.setdefault('NPROC', '16')  # threads for fake devices on few cores

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.training.train_state import TrainState
from sklearn.datasets import load_digits

import def_jax


class CNN(nn.Module):
    @nn.compact
    def __call__(self, images):
        x = nn.relu(nn.Conv(16, (3, 3))(images))
        x = nn.avg_pool(x, (2, 2), strides=(2, 2))
        x = nn.relu(nn.Conv(32, (3, 3))(x))
        x = nn.avg_pool(x, (2, 2), strides=(2, 2)).reshape(len(x), -1)
        return nn.Dense(10)(nn.relu(nn.Dense(64)(x)))


def loss_fn(params, batch):
    images, labels = batch
    logits = CNN().apply({'params': params}, images)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def create_train_state():
    params = CNN().init(jax.random.key(0), jnp.ones((1, 8, 8, 1)))['params']
    tx = def_jax.def_adamw(0.005, 64, 'workers')  # was: optax.adamw(0.005)
    mesh = jax.make_mesh((4,), ('workers',), axis_types=(jax.sharding.AxisType.Auto,))  # was: nothing
    tx = def_jax.spmd(tx, mesh)  # was: nothing
    params = jax.device_put(params, tx.shardings)  # was: nothing
    return TrainState.create(apply_fn=CNN().apply, params=params, tx=tx)


@jax.jit
def train_step(state, batch):
    # was: jax.value_and_grad(loss_fn)
    gradient = state.tx.value_and_grad(loss_fn, mapping='shard_map')  # for convolutions
    losses, grads = gradient(state.params, state.opt_state, batch)  # was: gradient(state.params, batch)
    return state.apply_gradients(grads=grads), losses.mean()  # was: losses


def batches(images, labels, epochs, size=64):
    rng = np.random.default_rng(0)
    for _ in range(epochs):
        order = rng.permutation(len(images))
        for start in range(0, len(order) - size + 1, size):
            rows = order[start : start + size]
            yield images[rows], labels[rows]


def main(epochs=20):
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32).reshape(-1, 8, 8, 1)
    state = create_train_state()
    for batch in batches(images[:1400], labels[:1400], epochs):
        state, loss = jax.block_until_ready(train_step(state, batch))
    logits = state.apply_fn({'params': state.params}, images[1400:])
    accuracy = float((logits.argmax(-1) == labels[1400:]).mean())
    print(f'loss {float(loss):.3f}, test accuracy {accuracy:.3f}')
    sent = state.tx.check(train_step.lower(state, batch).compile())
    print(f'between workers: {sum(c.bytes for c in sent)} bytes a step and device')
    return accuracy


if __name__ == '__main__':
    jax.config.update('jax_platforms', 'cpu')  # on accelerators, delete this line and the next
    jax.config.update('jax_num_cpu_devices', 4)
    main()
