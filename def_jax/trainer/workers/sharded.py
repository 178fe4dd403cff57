"""Workers of several devices: FSDP inside each, error feedback across, as in `def_jax.spmd`.

A step is mapped over workers alone; the compiler divides it among a worker's devices, which hold a shard of
every matrix and a part of the batch.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from def_jax.elastic import SHARD_AXIS
from def_jax.ground.barriers import in_memory
from def_jax.ground.collectives import Group
from def_jax.ground.types import PyTree
from def_jax.sharding.worker_mesh import WorkerMesh
from def_jax.state.link import Shards
from def_jax.state.ownership import each
from def_jax.trainer.workers.base import AXIS, Workers

__all__ = ['ShardedWorkers', 'shard_spec']


def shard_spec(shape: tuple[int, ...], shards: int) -> P:
    """How a worker's devices share a tensor: a matrix by the largest dimension that divides, else not at all.

    >>> [tuple(shard_spec(shape, 4)) for shape in ((64, 256), (255, 64), (64,))]
    [(None, 'shard'), (None, 'shard'), ()]
    >>> tuple(shard_spec((64, 64), 4))  # the first of equals
    ('shard',)
    """
    divisible = [axis for axis, size in enumerate(shape) if size and size % shards == 0]
    if len(shape) < 2 or not divisible:
        return P()
    largest = max(divisible, key=lambda axis: (shape[axis], -axis))
    return P(*(None,) * largest, SHARD_AXIS)


class ShardedWorkers(Workers):
    """Workers that are `shards` devices each; `devices` are those of all processes, worker by worker."""

    def __init__(self, devices: list[jax.Device], shards: int):
        self.devices, self.heads = devices, devices[::shards]
        self.shape = (len(self.heads),)
        self._shards = shards
        grid = np.array(devices).reshape(-1, shards)
        if any(len({device.process_index for device in row}) > 1 for row in grid):
            must = 'all devices of a worker must belong to one process. Lower it, or start fewer processes'
            raise ValueError(f'config.shards_per_worker={shards}: {must}.')
        self._mesh = WorkerMesh(Mesh(grid, (AXIS, SHARD_AXIS), axis_types=(AxisType.Auto,) * 2), AXIS)
        # The examples of each worker, the second axis, are divided among its devices.
        self._batch_sharding = self._mesh.shardings(P(AXIS, SHARD_AXIS))

    def map(
        self, function: Callable, is_per_worker: tuple[PyTree, ...], is_per_worker_out: PyTree, donate=()
    ) -> Callable:
        mapped = self._mesh.map(lambda *args: in_memory(function(*args)), is_per_worker, is_per_worker_out)

        def placed(*args):
            results = mapped(*args)
            return self._mesh.place(results, each(self._spec, is_per_worker_out, results))

        return jax.jit(placed, donate_argnums=donate)

    def fetch(self, tree: PyTree) -> PyTree:
        gathered = jax.jit(lambda tree: tree, out_shardings=self._mesh.shardings(P()))
        return jax.device_get(gathered(tree))

    def own_rows(self, tree: PyTree, like: PyTree, is_per_worker: PyTree) -> PyTree:
        del is_per_worker
        return jax.tree.map(
            lambda x, to: jax.device_put(x, to.sharding) if self.is_whole(x) else x, tree, like
        )

    def abstract(self, tree: PyTree, is_per_worker: PyTree) -> PyTree:
        return self._mesh.abstract(tree, each(self._spec, is_per_worker, tree))

    def shards(self, params: PyTree) -> Shards:
        return Shards(AXIS, Group((SHARD_AXIS,)), each(self._spec, False, params))

    def lay_out(self, tree: PyTree) -> PyTree:
        return jax.tree.map(lambda x: lax.with_sharding_constraint(x, self._spec(False, x)), in_memory(tree))

    def lay_out_examples(self, batch: PyTree) -> PyTree:
        return jax.tree.map(lambda x: lax.with_sharding_constraint(x, P(SHARD_AXIS)), batch)

    def part(self, params: PyTree) -> PyTree:
        def part(x):
            shape = self._mesh.shardings(self._spec(False, x)).shard_shape(x.shape)
            return jax.ShapeDtypeStruct(shape, x.dtype)

        return jax.tree.map(part, params)

    def _spec(self, is_per_worker: bool, x: Any) -> P:
        if is_per_worker:
            return P(AXIS, *shard_spec(x.shape[1:], self._shards))
        return shard_spec(x.shape, self._shards)
