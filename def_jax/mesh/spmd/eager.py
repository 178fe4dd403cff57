"""Functions for use inside `jax.jit` that are compiled, once, where they are called outside of it."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

__all__ = ['compiled_method', 'compiled_once', 'remembered_method']

_TRACED = jax.Array, np.ndarray, np.generic, float
_KEPT = 8  # compiled programs for each function, and what they hold on to


def compiled_once(function: Callable) -> Callable:
    """The function, compiled at its first call with arguments of these structures, shapes and dtypes.

    Arguments that are neither arrays nor floats (flags, functions) are part of the program. Within another
    trace the function is traced along.

    >>> double = compiled_once(lambda x, times: x * times)
    >>> int(double(np.int32(4), times=2)), int(double(np.int32(5), times=3))
    (8, 15)
    """

    @functools.lru_cache(_KEPT)
    def program(treedef, static):
        def run(arrays):
            leaves = [x if kind is None else value for x, (kind, value) in zip(arrays, static, strict=True)]
            args, kwargs = jax.tree.unflatten(treedef, leaves)
            return function(*args, **kwargs)

        return jax.jit(run)

    def call(*args, **kwargs):
        leaves, treedef = jax.tree.flatten((args, kwargs))
        if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
            return function(*args, **kwargs)
        traced = [isinstance(leaf, _TRACED) for leaf in leaves]
        # With their types, since True is not 1.
        static = tuple(
            (None, None) if is_array else (type(x), x) for is_array, x in zip(traced, leaves, strict=True)
        )
        return program(treedef, static)(
            [x if is_array else None for is_array, x in zip(traced, leaves, strict=True)]
        )

    return call


def compiled_method(method: Callable) -> Any:
    """A method of which every object compiles its own, as `compiled_once` does."""
    return functools.cached_property(lambda self: compiled_once(functools.partial(method, self)))


def remembered_method(method: Callable) -> Any:
    """A method that makes something of a function, once while that stays the same, see `_remembered`."""
    return functools.cached_property(lambda self: _remembered(functools.partial(method, self)))


def _remembered(make: Callable) -> Callable:
    """`make(function, *args)`, called once while the function and the variables that it reads stay the same.

    A compiled function holds on to the values that it has read; here, other values make another function.
    """
    kept = functools.lru_cache(_KEPT)(lambda key, args: make(key.function, *args))
    return lambda function, *args: kept(_Key(function), args)


class _Key:
    """A function as a key: equal if the code is, and each variable that it reads from around it."""

    def __init__(self, function: Callable):
        self.function = function
        plain: Any = getattr(function, '__func__', function)
        self._values = [plain, getattr(function, '__self__', None)]
        plain = inspect.unwrap(plain)
        if inspect.isfunction(plain):
            outside = inspect.getclosurevars(plain)
            self._values += [*outside.nonlocals.values(), *outside.globals.values()]

    def __eq__(self, other: Any) -> bool:
        pairs = zip(self._values, other._values, strict=False)
        return len(self._values) == len(other._values) and all(a is b for a, b in pairs)

    def __hash__(self) -> int:
        return hash(tuple(map(id, self._values)))
