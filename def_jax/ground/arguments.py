"""Checks of arguments, states and trees that several modules share, each rule in one place."""

import sys
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def is_number(value: Any) -> bool:
    """True for real Python and NumPy numbers; False for booleans."""
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def check_number(name: str, value: Any, low: float, high: float, hint: str, *, below: bool = False) -> None:
    """Raises ValueError unless `value` is a number in [low, high], with `below` in [low, high), or traced."""
    if isinstance(value, jax.core.Tracer):  # by optax.inject_hyperparams: no value to check yet
        return
    value = value.item() if isinstance(value, jax.Array) and not value.ndim else value
    if not is_number(value) or not low <= value <= high or (below and value == high):
        end = ')' if below else ']'
        raise ValueError(f'{name}={value!r} must be a number in [{low}, {high}{end} ({hint}).')


def check_integer(name: str, value: Any, low: int, hint: str, *, bits: int = 31) -> None:
    """Raises ValueError unless `value` is a Python integer in [low, 2**bits)."""
    check_static(name, value)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value < 2**bits:
        raise ValueError(f'{name}={value!r} must be an integer in [{low}, 2**{bits}): {hint}.')


def check_choice(name: str, value: Any, meanings: Mapping[Any, str]) -> None:
    """Raises ValueError unless `value` is one of the choices, each given with its meaning."""
    check_static(name, value)
    if value not in list(meanings):
        *others, last = [f'{choice!r} ({meaning})' for choice, meaning in meanings.items()]
        raise ValueError(f'{name}={value!r} must be {", ".join(others)} or {last}.')


def check_static(name: str, value: Any) -> None:
    """Raises ValueError for an array, as `optax.inject_hyperparams` makes of a number."""
    if isinstance(value, jax.Array):  # unknown when a step is traced
        raise ValueError(
            f'{name} is an array: with optax.inject_hyperparams, pass static_args=({name!r}, ...).'
        )


def check_ratio(ratio: Any, name: str = 'ratio') -> int | float:
    """`ratio` as a Python number, or a ValueError unless it is one >= 1 that is known at trace time."""
    check_static(name, ratio)
    value = ratio.item() if isinstance(ratio, np.generic) else ratio  # sizes over a narrow type overflow
    if not is_number(value) or not 1 <= value <= sys.float_info.max:
        raise ValueError(f'{name}={ratio!r} must be a finite number >= 1, e.g. 64 to send 1/64, or 1.')
    return value


def check_seed(seed: Any) -> None:
    """Raises ValueError unless `seed` is an integer that JAX does not wrap, or an array of one."""
    if isinstance(seed, jax.Array):  # optax.inject_hyperparams traces it
        if seed.ndim or not jnp.issubdtype(seed.dtype, jnp.integer):
            raise ValueError(
                f'seed is an array of {seed.dtype} and shape {seed.shape}, but must be an integer, of which '
                'a key is made. To draw the integer from a key: jax.random.bits(key).item().'
            )
        return
    if not isinstance(seed, (int, np.integer)) or isinstance(seed, bool) or not 0 <= seed < 2**32:
        raise ValueError(f'{seed=} must be an integer in [0, 2**32), the same on all workers.')


def check_flag(name: str, value: Any) -> None:
    """Raises ValueError unless `value` is True or False."""
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f'{name}={value!r} must be True or False.')


def check_extra_arguments(extra_args: Mapping[str, Any], params: Any, num_workers: int) -> None:
    """Raises ValueError for extra arguments of an update that are stacked, such as `value`, K losses.

    They would be broadcast against the updates: each would scale another column of a tensor with K columns.
    """
    stacked = [(num_workers, *p.shape) for p in jax.tree.leaves(params)]
    for name, argument in extra_args.items():
        shapes = [np.shape(x) for x in jax.tree.leaves(argument)]
        if (name == 'value' and any(shapes)) or (shapes and shapes == stacked):
            must = 'a scalar' if name == 'value' else 'like the parameters'
            raise ValueError(
                f'the extra argument {name} has shape {", ".join(map(str, shapes))}, but must be {must}, the '
                f'same for all {num_workers} workers. If it is stacked over workers, pass the mean, '
                f'{name}=tx.mean({name}), where tx is the def_jax.spmd.'
            )


def named_leaves(tree: Any) -> list[tuple[str, Any]]:
    """Leaves with their paths, as errors write these: ['w'][0]."""
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def leaf_names(tree: Any) -> list[str]:
    """The names of a tree's leaves, e.g. 'params.Dense_0.kernel'."""
    paths, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [jax.tree_util.keystr(path, simple=True, separator='.') or 'the array' for path, _ in paths]
