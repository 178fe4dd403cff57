"""Means over workers and gathers from them: under pmap, vmap, shard_map, a tuple of axes, or none.

With check_vma=True, `jax.shard_map` knows by types over which axes a value varies, and sums gradients with
respect to those that do not vary. Compression needs per-worker gradients, so here that sum is an error.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import keystr

from def_jax.ground.types import AxisName, PyTree


def _reduced(reduce: Callable, tree: PyTree, axis_name: AxisName) -> PyTree:
    # XLA's partitioner cannot reduce over one worker of several devices.
    if num_workers(axis_name) == 1 and not varying_axes(tree):
        return tree
    return reduce(tree, axis_names(axis_name))


# Over workers; the tree itself for a single worker.
pmean, psum, pmax = (functools.partial(_reduced, reduce) for reduce in (lax.pmean, lax.psum, lax.pmax))


def all_gather(x: jax.Array, axis_name: AxisName) -> jax.Array:
    """The arrays of all workers, stacked along a new first axis [K, ...]; [1, ...] for `axis_name=None`."""
    if num_workers(axis_name) == 1 and not varying_axes([x]):
        return x[None]
    gathered = x
    for name in reversed(axis_names(axis_name)):
        # Where types say what varies over workers, the result must be known not to.
        to = 'invarying' if name in varying_axes([gathered]) else 'varying'
        gathered = lax.all_gather(gathered, name, to=to)
    return gathered.reshape(-1, *x.shape)


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


def num_workers(axis_name: AxisName) -> int:
    """K, the size of the axis over workers; 1 for None."""
    check_axis_name(axis_name)
    try:
        return 1 if axis_name is None else lax.axis_size(axis_names(axis_name))
    except NameError as error:
        raise ValueError(
            f'{axis_name=} is not bound here. Call the step under jax.pmap(step, axis_name=...), jax.vmap or '
            'jax.shard_map with that name; for a single worker, pass axis_name=None.'
        ) from error


def check_axis_name(axis_name: Any) -> None:
    """Raises ValueError unless `axis_name` is a name, a tuple of names or None."""
    names = [axis_name] if isinstance(axis_name, str) else axis_name
    well_formed = isinstance(names, (tuple, list)) and all(isinstance(name, str) for name in names)
    if names is not None and not (well_formed and names and len(set(names)) == len(names)):
        raise ValueError(
            f"{axis_name=} must be a name such as 'workers', a tuple of different names, or None for a "
            'single worker.'
        )


def axis_names(axis_name: AxisName) -> tuple[str, ...]:
    """The axes over workers as a tuple: one for a name, none for None."""
    if axis_name is None:
        return ()
    return (axis_name,) if isinstance(axis_name, str) else tuple(axis_name)


def varying_axes(tree: PyTree) -> frozenset[str]:
    """The axes over which leaves vary by their types: none unless shard_map checks them."""
    return frozenset[str]().union(*map(_axes_of, jax.tree.leaves(tree)))


def vary_if_tracked(tree: PyTree, axis_name: AxisName) -> PyTree:
    """The tree, of a type that varies over `axis_name` where types say so."""
    return vary(tree, _tracked(axis_name))


def vary(tree: PyTree, axes: frozenset[str]) -> PyTree:
    """The tree, of a type that varies over these axes."""
    return jax.tree.map(lambda x: lax.pcast(x, tuple(sorted(axes - _axes_of(x))), to='varying'), tree)


def check_not_summed(updates: PyTree, axis_name: AxisName) -> None:
    """Raises ValueError if the updates of all workers have been summed."""
    tracked = _tracked(axis_name)
    for path, leaf in jax.tree.leaves_with_path(updates):
        if tracked - _axes_of(leaf):
            raise ValueError(
                f'updates{keystr(path)} is the same on all workers: with check_vma=True, jax.shard_map '
                f'has summed its gradient over {axis_name!r}. Take it outside of the loss, at a per-worker '
                'point: jax.grad(loss_fn)(point, batch) with point = def_jax.detached_params(params, '
                "opt_state) or, without error feedback, jax.lax.pcast(params, axis_name, to='varying')."
            )


def check_shared(value: jax.Array, name: str, axis_name: AxisName) -> None:
    """Raises ValueError if a value that must be replicated varies between workers, as types tell."""
    if _tracked(axis_name) & _axes_of(value):
        raise ValueError(
            f'{name} of opt_state differs between workers, by its type, but must be replicated. Stack only '
            'per-worker leaves: in_specs and out_specs of def_jax.state_specs(optimizer, params).'
        )


def _tracked(axis_name: AxisName) -> frozenset[str]:
    """The workers' axes, if types here tell what varies over them."""
    names = axis_names(axis_name)
    try:
        return frozenset(names) & varying_axes([lax.axis_index(name) for name in names])
    except NameError:  # not mapped here
        return frozenset()


def _axes_of(x: Any) -> frozenset[str]:
    return jax.typeof(x).manual_axis_type.varying
