"""How a state comes to a group: the first, from arrays; a survivor's, from another mesh; or a newcomer's.

A newcomer receives the leader's replicated values, and the mean of the others' per-worker ones. The mean is
that of `state.regrouping`, which a checkpoint of another number of workers takes, too; here it is over the
live workers.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec as P

from def_jax.elastic.group import Group
from def_jax.ground.types import PyTree
from def_jax.state.regrouping import num_stacked, regroup

__all__ = ['Places', 'give']


class Places(NamedTuple):
    """Where the leaves of a state lie: like it, which are per-worker, and their specs."""

    owns: PyTree
    specs: PyTree

    def first(self, state: PyTree, group: Group) -> PyTree:
        """A state of arrays that every process has whole, on the mesh of a group of any size."""
        before = num_stacked(state, self.owns, group.num_workers)
        state = regroup(jax.tree.map(np.asarray, state), self.owns, (before,), (group.num_workers,))

        def place(x, spec):
            return jax.make_array_from_callback(x.shape, group.sharding(*spec), lambda index: x[index])

        return jax.tree.map(place, state, self.specs)

    def moved(self, state: PyTree, before: Group, group: Group) -> PyTree:
        """This process's part of a state, on the mesh of another group."""

        def move(x, own, spec):
            parts = {shard.device: shard.data for shard in x.addressable_shards}
            pairs = zip(before.local, group.local, strict=True)
            arrays = [jax.device_put(parts[old], new) for old, new in pairs]
            shape = (group.num_workers, *x.shape[1:]) if own else x.shape
            return jax.make_array_from_single_device_arrays(shape, group.sharding(*spec), arrays)

        return jax.tree.map(move, state, self.owns, self.specs)

    def giving(self, group: Group) -> Callable:
        """Maps `valid` and `leads` of `give`, and a state, to the state that all have."""
        axis = group.dist.axis_name
        return jax.shard_map(
            functools.partial(give, owns=self.owns, axis=axis),
            mesh=group.dist.mesh,
            in_specs=(P(axis), P(axis), self.specs),
            out_specs=self.specs,
            check_vma=False,
        )


def give(valid: jax.Array, leads: jax.Array, state: PyTree, owns: PyTree, axis: str) -> PyTree:
    """Within a mapped function: the state, or what a worker that is not valid receives in its place.

    Args:
        valid: bool [1], whether this worker has a state.
        leads: bool [1], whether its replicated values are those that others receive.
        state: of this worker.
        owns: like the state, which leaves are per-worker.
        axis: the mesh axis over workers.
    """

    def leaf(x, own):
        return jnp.where(valid[0], x, _mean(x, valid, axis) if own else _copied(x, leads, axis))

    return jax.tree.map(leaf, state, owns)


def _mean(x: jax.Array, valid: jax.Array, axis: str) -> jax.Array:
    if jnp.issubdtype(x.dtype, jnp.integer):  # a count, which is the others'
        return lax.pmax(jnp.where(valid[0], x, jnp.iinfo(x.dtype).min), axis)
    total = lax.psum(jnp.where(valid[0], x.astype(jnp.float32), 0), axis)
    return (total / lax.psum(valid[0].astype(jnp.float32), axis)).astype(x.dtype)


def _copied(x: jax.Array, leads: jax.Array, axis: str) -> jax.Array:
    """The leader's values, bit for bit."""
    if x.dtype == jnp.bool_:
        return _copied(x.astype(jnp.uint32), leads, axis).astype(jnp.bool_)
    bits = lax.bitcast_convert_type(x, jnp.dtype(f'uint{8 * x.dtype.itemsize}'))
    wide = bits.astype(jnp.uint32) if x.dtype.itemsize < 4 else bits
    return lax.bitcast_convert_type(lax.psum(jnp.where(leads[0], wide, 0), axis).astype(bits.dtype), x.dtype)
