"""Means over workers and gathers from them: under pmap, vmap, shard_map, a tuple of axes, or none.

With check_vma=True, `jax.shard_map` knows by types over which axes a value varies, and sums gradients with
respect to those that do not vary. Compression needs per-worker gradients, so here that sum is an error.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import keystr

from def_jax.ground.arguments import check_static
from def_jax.ground.types import AxisName, PyTree


class Group(NamedTuple):
    """Devices that communicate: those along mesh axes, or the members of groups along one axis."""

    names: tuple[str, ...]
    members: tuple[tuple[int, ...], ...] | None = None  # of each group, as places along the axis

    @property
    def options(self) -> dict[str, Any]:
        """For JAX's collectives."""
        return {} if self.members is None else {'axis_index_groups': self.members}


def group_of(axes: AxisName | Group) -> Group:
    return axes if isinstance(axes, Group) else Group(axis_names(axes))


def divided(axis_name: AxisName, inside: AxisName | int) -> tuple[Group, Group]:
    """The devices at one place in all workers, and those of a worker, see `inside` of `error_feedback`."""
    across = group_of(axis_name)
    if inside == 1:
        return across, Group(())
    if not isinstance(inside, int):
        return across, group_of(inside)
    size, places = num_workers(axis_name), range(inside)
    neighbours = [tuple(start + i for i in places) for start in range(0, size, inside)]
    local = jax.local_device_count()
    if size % inside or (jax.process_count() > 1 and local % inside and inside % local):
        why = f'{size} devices' if size % inside else f'{local} devices of each process'
        raise ValueError(
            f'{inside=} devices cannot be a worker of {axis_name=}: {why} cannot be divided into such '
            "workers. Choose a divisor, e.g. the number of a node's devices."
        )
    counterparts = tuple(tuple(worker[i] for worker in neighbours) for i in places)
    return across._replace(members=counterparts), across._replace(members=tuple(neighbours))


def pmean(tree: PyTree, axes: AxisName | Group) -> PyTree:
    """The mean over workers; the tree itself for a single one."""
    group = group_of(axes)
    if _is_alone(group, tree):
        return tree
    try:
        return lax.pmean(tree, group.names, **group.options)
    except NotImplementedError as error:  # of jax.vmap
        if group.members is None:
            raise
        raise ValueError(
            f'inside={len(group.members[0])}, a number of neighbours, is for jax.pmap. Under jax.vmap, '
            "map a worker's devices over an axis of their own, and pass its name, e.g. axis_name='nodes', "
            "inside='gpus'."
        ) from error


def psum(tree: PyTree, axes: AxisName | Group) -> PyTree:
    """The sum over workers; the tree itself for a single one."""
    group = group_of(axes)
    return tree if _is_alone(group, tree) else lax.psum(tree, group.names, **group.options)


def pmax(tree: PyTree, axes: AxisName | Group) -> PyTree:
    """The largest of all workers; the tree itself for a single one."""
    group = group_of(axes)
    return tree if _is_alone(group, tree) else lax.pmax(tree, group.names, **group.options)


def _is_alone(group: Group, tree: PyTree) -> bool:
    """Whether there is one worker: XLA's partitioner cannot reduce over one of several devices."""
    return not group.names or (num_workers(group) == 1 and not varying_axes(tree))


def all_gather(x: jax.Array, axes: AxisName | Group) -> jax.Array:
    """The arrays of all workers, stacked along a new first axis [K, ...]; [1, ...] for a single one."""
    group = group_of(axes)
    if _is_alone(group, x):
        return x[None]
    gathered = x
    for names in reversed(_at_once(group)):
        # Where types say what varies over workers, the result must be known not to.
        to = 'invarying' if {*names} <= varying_axes([gathered]) else 'varying'
        gathered = lax.all_gather(gathered, names, to=to, **group.options)
    return gathered.reshape(-1, *x.shape)


def all_to_all(rows: jax.Array, axes: AxisName | Group) -> jax.Array:
    """Row k of every worker's rows [K, ...], for worker k, in the order of the workers: [K, ...]."""
    group = group_of(axes)
    parts = _at_once(group)
    sizes = tuple(math.prod(_size(group, name) for name in names) for names in parts)
    exchanged = rows.reshape(*sizes, *rows.shape[1:])
    for axis, names in enumerate(parts):
        # vmap cannot map an exchange of what is the same on all workers, such as the first message of zeros.
        exchanged = exchanged | (lax.axis_index(names) * 0).astype(rows.dtype)
        exchanged = lax.all_to_all(exchanged, names, axis, axis, tiled=True, **group.options)
    return exchanged.reshape(rows.shape)


def _at_once(group: Group) -> list[tuple[str, ...]]:
    """The axes along which devices exchange, together in one exchange; vmap can't map several at once."""
    manual = jax.sharding.get_abstract_mesh().manual_axes
    if {*group.names} <= {*manual}:
        return [group.names]
    return [(name,) for name in group.names]


def axis_index(axes: AxisName | Group) -> jax.Array:
    """k, the number of this worker, int32 []; 0 for a single one."""
    group = group_of(axes)
    if not group.names:
        return jnp.int32(0)
    index = lax.axis_index(group.names)
    if group.members is None:
        return index
    places = {device: place for members in group.members for place, device in enumerate(members)}
    return jnp.asarray([places[device] for device in sorted(places)], jnp.int32)[index]


def num_workers(axes: AxisName | Group) -> int:
    """K, the number of workers; 1 for None."""
    if not isinstance(axes, Group):
        check_axis_name(axes)
    group = group_of(axes)
    try:
        return math.prod(_size(group, name) for name in group.names)
    except NameError as error:
        told = group.names if len(group.names) > 1 else group.names[0]
        raise ValueError(
            f'axis_name={told!r} is not bound here. Call the step under jax.pmap(step, axis_name=...), '
            'jax.vmap or jax.shard_map with that name; for a single worker, pass axis_name=None, and where a '
            'worker is a single device, leave inside= out.'
        ) from error


def _size(group: Group, name: str) -> int:
    return lax.axis_size(name) if group.members is None else len(group.members[0])


def check_axis_name(axis_name: Any) -> None:
    """Raises ValueError unless `axis_name` is a name, a tuple of names or None."""
    names = [axis_name] if isinstance(axis_name, str) else axis_name
    well_formed = isinstance(names, (tuple, list)) and all(isinstance(name, str) for name in names)
    if names is not None and not (well_formed and names and len(set(names)) == len(names)):
        raise ValueError(
            f"{axis_name=} must be a name such as 'workers', a tuple of different names, or None for a "
            'single worker.'
        )


def check_inside(inside: Any, axis_name: AxisName) -> None:
    """Raises ValueError unless `inside` may name a worker's devices."""
    if inside is None:
        return
    check_static('inside', inside)
    if isinstance(inside, int) and not isinstance(inside, bool):
        if inside >= 1 and isinstance(axis_name, str):
            return
    else:
        names = [inside] if isinstance(inside, str) else inside
        well_formed = isinstance(names, (tuple, list)) and all(isinstance(name, str) for name in names)
        if well_formed and names and axis_name and not {*names} & {*axis_names(axis_name)}:
            return
    raise ValueError(
        f"{inside=} must be the axis over a worker's devices or a tuple of axes, none of {axis_name=}; or "
        'under jax.pmap, whose axis is one name, the number of neighbouring devices that make up a worker.'
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


def check_not_summed(updates: PyTree, axis_name: AxisName, *, inside: bool = False) -> None:
    """Raises ValueError if the updates of all workers have been summed, or those of a worker's devices."""
    point = 'def_jax.detached_params(params, opt_state)'
    if inside:
        point = f"jax.lax.pcast({point}, {axis_name!r}, to='varying')"
    tracked = _tracked(axis_name)
    for path, leaf in jax.tree.leaves_with_path(updates):
        if tracked - _axes_of(leaf):
            raise ValueError(
                f'updates{keystr(path)} is the same on all workers: with check_vma=True, jax.shard_map '
                f'has summed its gradient over {axis_name!r}. Take it outside of the loss, at a point that '
                f'varies: jax.grad(loss_fn)(point, batch) with point = {point} or, without error feedback, '
                "jax.lax.pcast(params, axis_name, to='varying'). Don't average the loss in loss_fn: that "
                'divides its gradients by the number of workers.'
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
