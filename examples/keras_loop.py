"""A Keras 3 model in a loop of one's own, on scikit-learn's digits, as in Keras' guide to JAX, and DEF.

    python examples/keras_loop.py

Four workers, simulated on the CPU. A comment on each line that DEF changes says what it was. Needs keras.
"""

import os

os.environ.setdefault('NPROC', '16')  # threads for fake devices on few cores
os.environ['KERAS_BACKEND'] = 'jax'

import jax
import keras
import numpy as np
import optax
from sklearn.datasets import load_digits

import def_jax


def make_model():
    return keras.Sequential(
        [
            keras.layers.Input((8, 8, 1)),
            keras.layers.Conv2D(16, 3, padding='same', activation='relu'),
            keras.layers.MaxPooling2D(),
            keras.layers.BatchNormalization(),
            keras.layers.Flatten(),
            keras.layers.Dense(64, activation='relu'),
            keras.layers.Dense(10),
        ]
    )


def make_optimizer():
    tx = def_jax.def_sgd(0.05, 64, 'workers')  # was: optax.sgd(0.05, momentum=0.9)
    mesh = jax.make_mesh((4,), ('workers',), axis_types=(jax.sharding.AxisType.Auto,))  # was: nothing
    return def_jax.spmd(tx, mesh)  # was: tx


def make_train_step(model, tx):
    def compute_loss(trainable, non_trainable, x, y):
        logits, non_trainable = model.stateless_call(trainable, non_trainable, x, training=True)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), non_trainable

    grad_fn = jax.value_and_grad(compute_loss, has_aux=True)
    grad_fn = tx.at_points(grad_fn, split=(2, 3), mapping='shard_map')  # was: nothing; for convolutions

    @jax.jit
    def train_step(state, x, y):
        trainable, non_trainable, opt_state = state
        # was: grad_fn(trainable, non_trainable, x, y)
        (losses, statistics), grads = grad_fn(trainable, opt_state, non_trainable, x, y)
        loss, non_trainable = tx.mean((losses, statistics))  # was: losses, statistics
        updates, opt_state = tx.update(grads, opt_state, trainable)
        return loss, (optax.apply_updates(trainable, updates), non_trainable, opt_state)

    return train_step


def main(epochs=10, size=64):
    keras.utils.set_random_seed(0)
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32).reshape(-1, 8, 8, 1)
    model, tx, rng = make_model(), make_optimizer(), np.random.default_rng(0)
    trainable = [variable.value for variable in model.trainable_variables]
    trainable = jax.device_put(trainable, tx.shardings)  # was: nothing
    non_trainable = [variable.value for variable in model.non_trainable_variables]
    state = trainable, non_trainable, tx.init(trainable)
    train_step = make_train_step(model, tx)
    for _ in range(epochs):
        order = rng.permutation(1400)
        for start in range(0, 1400 - size + 1, size):
            rows = order[start : start + size]
            loss, state = jax.block_until_ready(train_step(state, images[rows], labels[rows]))
    logits, _ = model.stateless_call(state[0], state[1], images[1400:])
    accuracy = float((np.argmax(logits, -1) == labels[1400:]).mean())
    compiled = train_step.lower(state, images[rows], labels[rows]).compile()
    sent = tx.check(compiled, besides=512)  # and BatchNorm's statistics
    print(f'loss {float(loss):.3f}, test accuracy {accuracy:.3f}')
    print(f'between workers: {sum(c.bytes for c in sent)} bytes a step and device')
    return accuracy


if __name__ == '__main__':
    jax.config.update('jax_platforms', 'cpu')  # on accelerators, delete this line and the next
    jax.config.update('jax_num_cpu_devices', 4)
    main()
