"""What configurations name by import path in tests."""

import jax
import optax

from def_jax.trainer.data.dataset import Dataset
from def_jax.trainer.data.in_memory import Arrays

NUMBER = 3


def average(axis_name, scale=1.0, ratio=1):
    """A method: error feedback around a mean of everything, in optax's and JAX's words alone."""

    def update(updates, residual, params=None):
        del params
        pending = jax.tree.map(jax.numpy.add, updates, residual)
        sent = jax.tree.map(lambda x: x / ratio, pending)
        mean = jax.lax.pmean(jax.tree.map(lambda x: scale * x, sent), axis_name)
        return mean, jax.tree.map(jax.numpy.subtract, pending, sent)

    return optax.GradientTransformation(optax.tree.zeros_like, update)


def apart(axis_name):
    return optax.identity()


def forgetful(axis_name):
    """A method that leaves out one tensor."""

    def update(updates, state, params=None):
        del params
        first, *others = jax.tree.leaves(updates)
        sent = [first, *jax.lax.pmean(others, axis_name)]
        return jax.tree.unflatten(jax.tree.structure(updates), sent), state

    return optax.GradientTransformation(optax.init_empty_state, update)


def no_rate(b1=0.9):
    return optax.adam(0.1, b1)


def decayed(learning_rate, momentum, weight_decay, scale=1.0):
    """An optimizer with options of its own."""
    return optax.chain(optax.add_decayed_weights(scale * weight_decay), optax.sgd(learning_rate, momentum))


def noisy(learning_rate, momentum=0.9):
    """An optimizer whose state has a typed key."""
    return optax.chain(optax.add_noise(0.01, 0.55, key=3), optax.sgd(learning_rate, momentum))


def no_optimizer(learning_rate):
    return learning_rate


def failing(learning_rate, depth=1):
    return [1, 2, 3][depth + 5]


def refusing(learning_rate, depth=1):
    raise ValueError(f'{depth=} must be even.')


def no_schedule(learning_rate, num_steps):
    return None


def schedule_of_vectors(learning_rate, num_steps):
    return lambda step: learning_rate * (step + optax.tree.zeros_like([1.0, 2.0])[0]) * [1, 2]


def needs_depth(depth):
    return depth


def any_model(**options):
    return options


def no_task(model, dataset):
    return model


def no_dataset():
    return Arrays({'input': [1, 2]})


def dataset_without_labels(size=64):
    split = Arrays({'input': list(range(size))})
    return Dataset(train=split, test=split)


def needs_bits(axis_name, bits):
    raise AssertionError
