"""A worker's step, and the steps and states of several on one device, mapped by vmap."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from def_jax.mesh.ownership import own_leaves
from def_jax.mesh.spmd.at_points import point

__all__ = ['AXIS', 'mapped', 'own_axes', 'stacked', 'train_step']

AXIS = 'workers'
PyTree = Any


def train_step(
    optimizer: optax.GradientTransformation,
    loss_fn: Callable[..., jax.Array],
    applied: Callable[[PyTree], PyTree] = lambda updates: updates,
) -> Callable[..., tuple[PyTree, PyTree, jax.Array]]:
    """One worker's step: (params, state, *batch) to new parameters and state, and the loss.

    Args:
        optimizer: the whole chain.
        loss_fn: of parameters and the batch.
        applied: what the parameters receive of the updates.
    """

    def step(params, state, *batch):
        here = point(params, state)
        loss, grads = jax.value_and_grad(loss_fn)(here, *batch)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, applied(updates)), state, loss

    return step


def own_axes(optimizer: optax.GradientTransformation, params: PyTree) -> PyTree:
    """For vmap: 0 for what is per-worker in the optimizer's state, None for what is replicated."""
    return jax.tree.map(lambda mine: 0 if mine else None, own_leaves(optimizer, params))


def stacked(optimizer: optax.GradientTransformation, params: PyTree, count: int) -> PyTree:
    """The initial state of `count` workers."""
    own, state = own_leaves(optimizer, params), optimizer.init(params)
    return jax.tree.map(lambda mine, x: jnp.stack([x] * count) if mine else x, own, state)


def mapped(function: Callable, count: int, in_axes: tuple, out_axes: Any = None) -> Callable:
    """The function of one worker, compiled for `count`; replicated arguments and results are not mapped."""
    of_all = functools.partial(jax.vmap, axis_name=AXIS, axis_size=count)
    return jax.jit(of_all(function, in_axes=in_axes, out_axes=out_axes))
