"""Checks of arguments, made once, when an optimizer is put together."""

import difflib
import math
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np

T = TypeVar('T')


def is_number(value: Any) -> bool:
    """True for real numbers of Python and NumPy; False for booleans."""
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def check_number(name: str, value: Any, low: float, high: float, hint: str) -> None:
    """Raises ValueError unless `value` is a number in [low, high], or traced."""
    if isinstance(value, jax.Array):  # optax.inject_hyperparams traces numbers: nothing to look at yet
        return
    if not is_number(value) or not low <= value <= high:
        raise ValueError(f'{name}={value!r} must be a number in [{low}, {high}] ({hint}).')


def check_ratio(ratio: Any) -> None:
    """Raises ValueError unless `ratio` is a number >= 1 that is known when the step is traced."""
    if isinstance(ratio, jax.Array):
        raise ValueError(
            f'{ratio=} is an array, but it fixes the shape of the message and must be a Python number; '
            "with optax.inject_hyperparams pass static_args=('ratio',)."
        )
    if not is_number(ratio) or not 1 <= ratio < math.inf:
        raise ValueError(
            f'{ratio=} must be a finite number >= 1, e.g. 64 to send 1/64 of every tensor; 1 sends all.'
        )


def check_seed(seed: Any) -> None:
    """Raises ValueError unless `seed` is an integer."""
    if not isinstance(seed, (int, np.integer, jax.Array)) or isinstance(seed, bool):
        raise ValueError(f'{seed=} must be an integer, the same on all workers.')


def check_indices(shape: tuple[int, ...], starts: int) -> None:
    """Raises ValueError for a tensor whose blocks have no index of 32 bits: JAX would wrap it in silence."""
    if starts >= 2**31:
        raise ValueError(
            f'a tensor of {shape=} has {starts} places where a block, or an element, may start; they must '
            'be fewer than 2**31. Choose a smaller ratio whose block divides the tensor, a power of two on '
            'usual shapes, or split the tensor.'
        )
    if max(shape, default=0) >= 2**32:
        raise ValueError(
            f'a tensor of {shape=} has an axis of 2**32 or more elements, which 32 bits cannot index. Give '
            "it more axes, or, with granularity='model', take 'tensor'."
        )


def check_compressor(compressor: Any) -> None:
    """Raises ValueError unless `compressor` can be called."""
    if not callable(compressor):
        raise ValueError(f'{compressor=} must be a compressor such as def_jax.random_block(ratio=64).')


def look_up(kind: str, name: Any, table: Mapping[str, T]) -> T:
    """`table[name]`, or a ValueError that lists the names.

    >>> look_up('method', 'deff', {'sgd': 0, 'def': 1})
    Traceback (most recent call last):
    ValueError: method='deff' is unknown; it must be one of sgd, def. Did you mean 'def'?
    """
    if name not in table:
        raise ValueError(
            f'{kind}={name!r} is unknown; it must be one of {", ".join(table)}.{nearest(name, table)}'
        )
    return table[name]


def nearest(name: Any, names: Iterable[str]) -> str:
    """' Did you mean ...?' where one of `names` is close to `name`, else an empty string.

    >>> nearest('metod', ['method', 'ratio'])
    " Did you mean 'method'?"
    """
    near = difflib.get_close_matches(str(name), list(names), n=1)
    return f' Did you mean {near[0]!r}?' if near else ''
