"""Functions for use inside `jax.jit` that are compiled where they are called outside of it."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

_TRACED = jax.Array, np.ndarray, np.generic, float


def compiled_once(function: Callable) -> Callable:
    """The function, compiled at its first call with arguments of these structures, shapes and dtypes.

    Arguments that are neither arrays nor floats (flags, functions) are part of the program.

    >>> double = compiled_once(lambda x, times: x * times)
    >>> int(double(np.int32(4), times=2)), int(double(np.int32(5), times=3))
    (8, 15)
    """

    @functools.partial(jax.jit, static_argnums=(1, 2))
    def program(arrays, static, treedef):
        leaves = [array if fixed is None else fixed[1] for array, fixed in zip(arrays, static, strict=True)]
        args, kwargs = jax.tree.unflatten(treedef, leaves)
        return function(*args, **kwargs)

    def call(*args, **kwargs):
        leaves, treedef = jax.tree.flatten((args, kwargs))
        if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
            return function(*args, **kwargs)
        arrays = [x if isinstance(x, _TRACED) else None for x in leaves]
        # With their types, since True is not 1.
        static = tuple(None if isinstance(x, _TRACED) else (type(x), x) for x in leaves)
        return program(arrays, static, treedef)

    return call


def compiled_method(method: Callable) -> Any:
    """A method of which every object compiles its own, as `compiled_once` does."""
    return functools.cached_property(lambda self: compiled_once(functools.partial(method, self)))
