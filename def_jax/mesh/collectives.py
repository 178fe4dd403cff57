"""Means over workers and gathers from them: under pmap, vmap, shard_map, a tuple of axes, or none."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from def_jax.mesh.varying import axis_names, varying_axes
from def_jax.types import AxisName, PyTree

__all__ = [
    'all_gather',
    'all_to_all',
    'axis_index',
    'check_axis_name',
    'num_workers',
    'pmean',
    'psum',
]


def pmean(tree: PyTree, axis_name: AxisName) -> PyTree:
    """The mean over workers; the tree itself for a single worker."""
    return _reduced(lax.pmean, tree, axis_name)


def psum(tree: PyTree, axis_name: AxisName) -> PyTree:
    """The sum over workers; the tree itself for a single worker."""
    return _reduced(lax.psum, tree, axis_name)


def _reduced(reduce: Callable, tree: PyTree, axis_name: AxisName) -> PyTree:
    try:
        # XLA's partitioner cannot reduce over one worker of several devices.
        if num_workers(axis_name) == 1 and not varying_axes(tree):
            return tree
        return reduce(tree, axis_names(axis_name))
    except NameError as error:
        raise _not_bound(axis_name) from error


def all_gather(x: jax.Array, axis_name: AxisName) -> jax.Array:
    """The arrays of all workers, stacked along a new first axis [K, ...]; [1, ...] for `axis_name=None`."""
    gathered = x
    try:
        if num_workers(axis_name) == 1 and not varying_axes([x]):
            return x[None]
        for name in reversed(axis_names(axis_name)):
            gather = _gather_tracked if name in varying_axes([gathered]) else lax.all_gather
            gathered = gather(gathered, name)
    except NameError as error:
        raise _not_bound(axis_name) from error
    return gathered.reshape(-1, *x.shape)


def _gather_tracked(x: jax.Array, name: str) -> jax.Array:
    """Where types say what varies over workers, the result must be known not to."""
    if jax.__version_info__ >= (0, 10):
        return lax.all_gather(x, name, to='invarying')
    # Older versions only know it of sums.
    places = jnp.arange(lax.axis_size(name)).reshape(-1, *[1] * x.ndim)
    return lax.psum(jnp.where(places == lax.axis_index(name), x[None], jnp.zeros((), x.dtype)), name)


def all_to_all(rows: jax.Array, axis_name: AxisName) -> jax.Array:
    """Row k of every worker's rows [K, ...], for worker k, in the order of the workers: [K, ...]."""
    names = axis_names(axis_name)
    sizes = tuple(lax.axis_size(name) for name in names)
    exchanged = rows.reshape(*sizes, *rows.shape[1:])
    for axis, name in enumerate(names):  # one after the other, since vmap can't map several at once
        # Nor what is the same on all workers, such as the first message of zeros.
        exchanged = exchanged | (lax.axis_index(name) * 0).astype(rows.dtype)
        exchanged = lax.all_to_all(exchanged, name, axis, axis, tiled=True)
    return exchanged.reshape(rows.shape)


def axis_index(axis_name: AxisName) -> jax.Array:
    """k, the number of this worker, int32 []; 0 for `axis_name=None`."""
    return lax.axis_index(axis_names(axis_name)) if axis_name is not None else jnp.int32(0)


def _not_bound(axis_name: AxisName) -> ValueError:
    return ValueError(
        f'{axis_name=} is not bound here. Call the step under jax.pmap(step, axis_name=...), jax.vmap or '
        'jax.shard_map with that name; for a single worker, pass axis_name=None.'
    )


def num_workers(axis_name: AxisName) -> int:
    """K, the size of the axis over workers; 1 for None."""
    if axis_name is None:
        return 1
    return lax.axis_size(axis_names(axis_name))


def check_axis_name(axis_name: Any) -> None:
    """Raises ValueError unless `axis_name` is a name, a tuple of names or None."""
    names = (axis_name,) if isinstance(axis_name, str) else axis_name
    well_formed = isinstance(names, (tuple, list)) and names and all(isinstance(n, str) for n in names)
    well_formed = well_formed and len(set(names)) == len(names)
    if names is not None and not well_formed:
        raise ValueError(
            f"{axis_name=} must be a name such as 'workers', a tuple of different names, or None for a "
            'single worker.'
        )
