"""Flax NNX with BatchNorm and dropout, on scikit-learn's digits, as in Flax's MNIST tutorial, with DEF.

    python examples/nnx_mnist.py

Four workers, simulated on the CPU. A comment on each line that DEF changes says what it was.
"""

import functools
import os

os.environ.setdefault('NPROC', '16')  # threads for fake devices on few cores

import jax
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

import def_jax
import def_jax.nnx  # was: nothing


class CNN(nnx.Module):
    def __init__(self, rngs):
        self.conv1 = nnx.Conv(1, 16, kernel_size=(3, 3), rngs=rngs)
        self.norm1 = nnx.BatchNorm(16, rngs=rngs)
        self.conv2 = nnx.Conv(16, 32, kernel_size=(3, 3), rngs=rngs)
        self.dropout = nnx.Dropout(0.1)
        self.linear1 = nnx.Linear(128, 64, rngs=rngs)
        self.linear2 = nnx.Linear(64, 10, rngs=rngs)
        self.pool = functools.partial(nnx.avg_pool, window_shape=(2, 2), strides=(2, 2))

    def __call__(self, x, rngs=None):
        x = self.pool(nnx.relu(self.norm1(self.conv1(x))))
        x = self.pool(nnx.relu(self.conv2(x)))
        x = self.dropout(x.reshape(len(x), -1), rngs=rngs)
        return self.linear2(nnx.relu(self.linear1(x)))


def loss_fn(model, batch, rngs):
    images, labels = batch
    logits = model(images, rngs)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), logits


@nnx.jit
def train_step(model, optimizer, metrics, batch, rngs):
    # was: nnx.value_and_grad(loss_fn, has_aux=True)
    grad_fn = optimizer.value_and_grad(loss_fn, has_aux=True, mapping='shard_map')  # for convolutions
    (loss, logits), grads = grad_fn(model, batch, rngs)
    logits = jax.lax.collapse(logits, 0, 2)  # was: nothing; they come stacked over workers
    metrics.update(loss=loss, logits=logits, labels=batch[1])
    optimizer.update(model, grads)


@nnx.jit
def eval_step(model, metrics, batch):
    loss, logits = loss_fn(model, batch, None)
    metrics.update(loss=loss, logits=logits, labels=batch[1])


def make_optimizer(model):
    tx = def_jax.def_adamw(0.005, 64, 'workers')  # was: optax.adamw(0.005)
    mesh = jax.make_mesh((4,), ('workers',), axis_types=(jax.sharding.AxisType.Auto,))  # was: nothing
    tx = def_jax.spmd(tx, mesh)  # was: nothing
    return def_jax.nnx.Optimizer(model, tx, wrt=nnx.Param)  # was: nnx.Optimizer


def main(epochs=20, size=64):
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32).reshape(-1, 8, 8, 1)
    labels = labels.astype(np.int32)
    model, rngs, rng = CNN(nnx.Rngs(0)), nnx.Rngs(1), np.random.default_rng(0)
    optimizer = make_optimizer(model)
    metrics = nnx.MultiMetric(accuracy=nnx.metrics.Accuracy(), loss=nnx.metrics.Average('loss'))
    for _ in range(epochs):
        model.train()
        order = rng.permutation(1400)
        for start in range(0, 1400 - size + 1, size):
            rows = order[start : start + size]
            batch = images[rows], labels[rows]
            train_step(model, optimizer, metrics, batch, rngs)
            jax.block_until_ready(nnx.state(optimizer))
        print(f'training loss {float(metrics.compute()["loss"]):.3f}')
        metrics.reset()
    model.eval()
    eval_step(model, metrics, (images[1400:], labels[1400:]))
    scores = metrics.compute()
    print(f'test loss {float(scores["loss"]):.3f}, accuracy {float(scores["accuracy"]):.3f}')
    model.train()
    compiled = train_step.lower(model, optimizer, metrics, batch, rngs).compile()
    sent = optimizer.tx.check(compiled, besides=512)  # losses, accuracies, and BatchNorm's statistics
    print(f'between workers: {sum(c.bytes for c in sent)} bytes a step and device')
    return float(scores['accuracy'])


if __name__ == '__main__':
    jax.config.update('jax_platforms', 'cpu')  # on accelerators, delete this line and the next
    jax.config.update('jax_num_cpu_devices', 4)
    main()
