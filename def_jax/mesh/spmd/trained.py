"""The part of a model that is trained: its floating-point arrays, not its functions and flags."""

from typing import Any

import jax
import jax.numpy as jnp

from def_jax.types import PyTree

__all__ = ['combined', 'like', 'trained', 'untrained']


def trained(model: PyTree) -> PyTree:
    """The model with None in place of what is no floating-point or complex array.

    >>> trained({'w': jnp.ones(2), 'activation': jnp.tanh})
    {'activation': None, 'w': Array([1., 1.], dtype=float32)}
    """
    return jax.tree.map(lambda x: x if _is_trained(x) else None, model)


def untrained(model: PyTree) -> PyTree:
    """The rest of the model, with None in place of what is trained."""
    return jax.tree.map(lambda x: None if _is_trained(x) else x, model)


def combined(model: PyTree, params: PyTree) -> PyTree:
    """The model with other parameters, like those of `trained`."""
    return jax.tree.map(lambda p, x: x if p is None else p, params, model, is_leaf=_is_none)


def like(params: PyTree, tree: PyTree) -> PyTree:
    """A tree like the model without what has no parameter, such as the gradients of integers."""
    try:
        return jax.tree.map(lambda p, x: None if p is None else x, params, tree, is_leaf=_is_none)
    except ValueError:  # another structure: whoever uses it says so
        return tree


def _is_trained(x: Any) -> bool:
    dtype = getattr(x, 'dtype', None)
    return dtype is not None and jnp.issubdtype(dtype, jnp.inexact)


def _is_none(x: Any) -> bool:
    return x is None
