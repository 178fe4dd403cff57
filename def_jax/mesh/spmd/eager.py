"""Functions for use inside `jax.jit` that are compiled, once, where they are called outside of it."""

import collections
import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

__all__ = ['Recent', 'compiled_method', 'compiled_once', 'signature']

_ARRAYS = jax.Array, np.ndarray, np.generic
_KEPT = 8  # compiled programs for each function, and what they hold on to


def compiled_once(function: Callable) -> Callable:
    """The function, compiled at its first call with arguments of these structures, shapes and dtypes.

    Arguments that are no arrays (flags, functions) are part of the program. Within another trace the function
    is traced along, and nothing is kept.

    >>> double = compiled_once(lambda x, times: x * times)
    >>> int(double(np.int32(4), times=2)), int(double(np.int32(5), times=3))
    (8, 15)
    """
    programs = Recent()

    def program(static, arrays):
        treedef, values = static
        leaves = [x if value is None else value[1] for x, value in zip(arrays, values, strict=True)]
        args, kwargs = jax.tree.unflatten(treedef, leaves)
        return function(*args, **kwargs)

    def call(*args, **kwargs):
        leaves, treedef = jax.tree.flatten((args, kwargs))
        if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
            return function(*args, **kwargs)
        arrays = [leaf if isinstance(leaf, _ARRAYS) else None for leaf in leaves]
        values = tuple(None if isinstance(leaf, _ARRAYS) else (type(leaf), leaf) for leaf in leaves)
        static = treedef, values  # with their types, since True is not 1
        return programs.get(static, lambda: jax.jit(functools.partial(program, static)))(arrays)

    return call


def compiled_method(method: Callable) -> Any:
    """A method of which every object compiles its own, as `compiled_once` does."""
    return functools.cached_property(lambda self: compiled_once(functools.partial(method, self)))


class Recent:
    """The most recently used of what was made, by key."""

    def __init__(self):
        self._made: collections.OrderedDict[Any, Any] = collections.OrderedDict()

    def get(self, key: Any, make: Callable[[], Any]) -> Any:
        """What was made for this key; made now if it is missing."""
        try:
            self._made[key] = self._made.pop(key) if key in self._made else make()
        except TypeError:  # a key that cannot be hashed
            return make()
        if len(self._made) > _KEPT:
            self._made.popitem(last=False)
        return self._made[key]


class _Same:
    """A value as a key: equal to itself alone. It is kept alive, so that no other value takes its place."""

    def __init__(self, value: Any):
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)


def signature(function: Callable) -> Any:
    """A key that differs if the function does, or a variable that it reads from around it.

    >>> scale = 2
    >>> def loss(x):
    ...     return scale * x
    >>> before = signature(loss)
    >>> scale = 3
    >>> before == signature(loss)
    False
    """
    try:
        outside = inspect.getclosurevars(getattr(function, '__wrapped__', function))
    except TypeError:  # no Python function: an object that can be called
        return _Same(function)
    values = (*outside.nonlocals.values(), *outside.globals.values())
    return (_Same(function), *map(_Same, values))
