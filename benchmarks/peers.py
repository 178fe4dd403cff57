"""The optimizers that the tables compare: momentum SGD, DEF, and error feedback with other selections."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

import def_jax

__all__ = ['TopKState', 'by_selection', 'feedback', 'momentum_sgd', 'selections', 'top_k', 'variants']

PyTree = Any


def momentum_sgd(axis_name: str | None = None) -> optax.GradientTransformation:
    """The baseline; given an axis, it first averages the gradients over workers."""
    sgd = optax.sgd(0.1, momentum=0.9)
    return sgd if axis_name is None else optax.chain(def_jax.all_reduce_mean(axis_name), sgd)


def feedback(
    compressor, axis_name: str | None = None, *, momentum: float | None = 0.9, **options
) -> optax.GradientTransformation:
    """The DEF chain."""
    last_link = def_jax.error_feedback(compressor, axis_name, **options)
    return optax.chain(optax.sgd(0.1, momentum=momentum), last_link)


def variants() -> dict[str, optax.GradientTransformation]:
    """The rows of the optimizer-stage table, by name; the first is the baseline."""
    return {
        'momentum SGD': momentum_sgd(),
        'DEF, block of 1/64': feedback(def_jax.random_block(64)),
        'DEF, block of 1/1024': feedback(def_jax.random_block(1024)),
        'DEF, 1/64, shuffled': feedback(def_jax.random_block(64, order='shuffled')),
        'DEF, 1/64, balanced': feedback(def_jax.random_block(64, allocation='balanced')),
        "DEF, 1/64, detach='auto'": feedback(def_jax.random_block(64), detach='auto'),
        'DEF, 1/64, no momentum': feedback(def_jax.random_block(64), momentum=None),
        'DEF, 1/64, bfloat16': feedback(def_jax.random_block(64), wire_dtype=jnp.bfloat16),
        'DEF, 1/64, skip_nonfinite': feedback(def_jax.random_block(64), skip_nonfinite=True),
        'DEF, 1/64, overlap': feedback(def_jax.random_block(64), overlap=True),
        'DEF, block of 1/10': feedback(def_jax.random_block(10)),
        'DEF, block of 1/37': feedback(def_jax.random_block(37)),
        'DEF, block of 1/50': feedback(def_jax.random_block(50)),
        'DEF, block of 1/100': feedback(def_jax.random_block(100)),
        'DEF, block of 1/1000': feedback(def_jax.random_block(1000)),
        'DEF, 1/64, one block of the model': feedback(def_jax.random_block(64, granularity='model')),
        'DEF, random 1/64 of the elements': feedback(def_jax.random_k(64)),
        'error feedback, top 1/64': optax.chain(optax.sgd(0.1, momentum=0.9), top_k(64)),
    }


def by_selection(ratio: float, axis_name: str | None = None) -> dict[str, optax.GradientTransformation]:
    """Momentum SGD, and error feedback with each way of selecting what is sent."""
    return {
        'momentum SGD': momentum_sgd(axis_name),
        'block (DEF)': feedback(def_jax.random_block(ratio), axis_name),
        'random-k': feedback(def_jax.random_k(ratio), axis_name),
        'top-k': optax.chain(optax.sgd(0.1, momentum=0.9), top_k(ratio, axis_name)),
    }


def selections(ratio: float) -> dict[str, Callable[[jax.Array, PyTree], PyTree]]:
    """Selection and packing alone: functions from a step and the pending updates to the message."""

    def packed(compressor):
        key = jax.random.key_data(jax.random.key(0, impl='threefry2x32'))
        return lambda step, pending: compressor(key, step, pending).take(pending)

    def largest(step, pending):
        del step
        return jnp.concatenate([_largest(leaf, ratio)[0] for leaf in jax.tree.leaves(pending)])

    block, elements = def_jax.random_block(ratio), def_jax.random_k(ratio)
    return {'block (DEF)': packed(block), 'random-k': packed(elements), 'top-k': largest}


class TopKState(NamedTuple):
    """State of `top_k`."""

    residual: PyTree  # like params


def top_k(ratio: float, axis_name: str | None = None) -> optax.GradientTransformation:
    """Error feedback that sends the largest n // ratio elements of every tensor, and their indices.

    Workers select different elements, so the messages cannot be reduced: every worker gathers all of them.
    """

    def init_fn(params) -> TopKState:
        return TopKState(jax.tree.map(jnp.zeros_like, params))

    def update_fn(updates, state, params=None):
        del params

        def send(update, residual):
            pending = (update + residual).reshape(-1)
            values, indices = _largest(pending, ratio)
            rest = pending.at[indices].set(0).reshape(update.shape)
            num_workers = 1
            if axis_name is not None:
                values, indices = lax.all_gather((values, indices), axis_name)
                num_workers = len(values)
            mean = jnp.zeros_like(pending).at[indices].add(values / num_workers)
            return mean.reshape(update.shape), rest

        both = jax.tree.map(send, updates, state.residual)
        mean, residual = jax.tree.transpose(jax.tree.structure(updates), jax.tree.structure((0, 0)), both)
        return mean, TopKState(residual)

    return optax.GradientTransformation(init_fn, update_fn)


def _largest(leaf: jax.Array, ratio: float) -> tuple[jax.Array, jax.Array]:
    leaf = leaf.reshape(-1)
    count = max(1, math.floor(leaf.size / ratio))
    _, indices = lax.top_k(jnp.abs(leaf), count)
    return leaf[indices], indices
