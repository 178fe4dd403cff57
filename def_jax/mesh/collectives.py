"""Means over workers and gathers from them: under pmap, vmap, shard_map, a tuple of axes, or none."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import optax
from jax import lax

from def_jax.checks import check_state
from def_jax.mesh.shards import WHOLE, Shards
from def_jax.mesh.varying import OWN_PARAMS, AxisName, axis_names, check_not_summed, varying_axes

PyTree = Any

__all__ = [
    'AllReduceMeanState',
    'AxisName',
    'all_gather',
    'all_reduce_mean',
    'check_axis_name',
    'check_call',
    'num_workers',
    'pmean',
    'psum',
]


def all_reduce_mean(axis_name: AxisName) -> optax.GradientTransformationExtraArgs:
    """Averages the updates over workers, uncompressed: the baseline that `error_feedback` replaces.

    Args:
        axis_name: the axis over workers, a tuple of axes, or None for a single worker.

    Returns:
        An `optax.GradientTransformationExtraArgs` with an empty state.

    Raises:
        ValueError: if `axis_name` is not a name; in `update`, if it is not bound.

    Source: Eq. 2.

    >>> import jax, jax.numpy as jnp, def_jax
    >>> mean = def_jax.all_reduce_mean('workers')
    >>> average = jax.vmap(lambda g: mean.update(g, mean.init(g))[0], axis_name='workers')
    >>> average(jnp.array([1.0, 3.0])).tolist()
    [2.0, 2.0]
    """
    check_axis_name(axis_name)

    def update_fn(updates, state, params=None, *, shards: Shards = WHOLE, **extra_args):
        del params, extra_args
        shards.check_axis_name(axis_name)
        check_not_summed(updates, axis_name, OWN_PARAMS)
        return shards.whole(lambda updates, state: (pmean(updates, axis_name), state), updates, state)

    return optax.GradientTransformationExtraArgs(lambda params: AllReduceMeanState(), update_fn)


class AllReduceMeanState(NamedTuple):
    """State of `all_reduce_mean`: empty. It marks the point in a chain from which the workers agree."""

    @property
    def per_worker(self) -> tuple[str, ...]:
        """The fields that differ between workers, see `ownership`."""
        return ()


def check_call(
    updates: PyTree,
    state: Any,
    expected: type,
    axis_name: AxisName,
    shards: Shards,
    *,
    point: str = OWN_PARAMS,
    fields: Iterable[str] = (),
) -> None:
    """What a link with a state of its own checks first in its `update`.

    Args:
        updates: as given; they must be per-worker, see `check_not_summed` for `point`.
        state: as given; it must be an `expected`, with those `fields` of options, see `check_state`.
        axis_name: the link's axis over workers.
        shards: as passed by `def_jax.spmd`, over the same axis.

    Raises:
        ValueError: if one of them is not.
    """
    check_state(state, expected, fields)
    shards.check_axis_name(axis_name)
    check_not_summed(updates, axis_name, point)


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
            # Where types say what varies over workers, the result must be known not to.
            typed = {'to': 'invarying'} if name in varying_axes([gathered]) else {}
            gathered = lax.all_gather(gathered, name, **typed)
    except NameError as error:
        raise _not_bound(axis_name) from error
    return gathered.reshape(-1, *x.shape)


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
