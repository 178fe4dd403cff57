"""Workers of one device, or several virtual workers on each: mapped by `jax.pmap`."""

import functools
from collections.abc import Callable

import jax
import numpy as np
from jax import custom_batching, lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from def_jax.ground.types import PyTree
from def_jax.state.ownership import each
from def_jax.trainer.workers.base import AXIS, Workers

__all__ = ['VIRTUAL_AXIS', 'WholeWorkers', 'mapped_axes']

VIRTUAL_AXIS = 'virtual_workers'


class WholeWorkers(Workers):
    """Workers that hold their tensors whole; if several, `virtual`, share a device, their axis comes second.

    With `sequential`, a device computes the gradients of its workers one after another.
    """

    def __init__(self, devices: list[jax.Device], virtual: int = 1, *, sequential: bool = False):
        self.devices = self.heads = devices
        self.shape = (len(devices), virtual) if virtual > 1 else (len(devices),)
        self.axis_name = (AXIS, VIRTUAL_AXIS) if virtual > 1 else AXIS
        self._virtual, self._sequential = virtual, sequential
        self._mesh = Mesh(np.array(devices), (AXIS,))
        self._batch_sharding = NamedSharding(self._mesh, P(AXIS))

    def map(
        self, function: Callable, is_per_worker: tuple[PyTree, ...], is_per_worker_out: PyTree, donate=()
    ) -> Callable:
        if not any(jax.tree.leaves(is_per_worker)):  # vmap and pmap need an argument over workers
            mapped = self.map(lambda _, *args: function(*args), (True, *is_per_worker), is_per_worker_out)
            return functools.partial(mapped, np.zeros(self.local_shape))
        function = self.on_one_device(function, is_per_worker, is_per_worker_out)
        axes = {'in_axes': mapped_axes(is_per_worker), 'out_axes': mapped_axes(is_per_worker_out)}
        return jax.pmap(function, AXIS, devices=self.devices, donate_argnums=donate, **axes)

    def on_one_device(
        self, function: Callable, is_per_worker: tuple[PyTree, ...], is_per_worker_out: PyTree
    ) -> Callable:
        """A function of one worker as one of the workers of a device: itself, if there is one."""
        if self._virtual == 1:
            return function
        axes = {'in_axes': mapped_axes(is_per_worker), 'out_axes': mapped_axes(is_per_worker_out)}
        return jax.vmap(function, axis_name=VIRTUAL_AXIS, **axes)

    def one_worker(self, function: Callable) -> Callable:
        # On CPUs, XLA compiles convolutions inside a loop to slow code.
        unroll = self.devices[0].platform == 'cpu'
        return _in_sequence(function, unroll=unroll) if self._sequential else function

    def spread(self, tree: PyTree, is_per_worker: PyTree) -> PyTree:
        def array(mine, leaf):
            shape = (*self.shape, *leaf.shape[len(self.shape) :]) if mine else leaf.shape
            shards = [shard.data for shard in leaf.addressable_shards]
            sharding = NamedSharding(self._mesh, P(AXIS) if mine else P())
            return jax.make_array_from_single_device_arrays(shape, sharding, shards)

        return each(array, is_per_worker, tree)

    def own_rows(self, tree: PyTree, like: PyTree, is_per_worker: PyTree) -> PyTree:
        def array(mine, leaf, to):
            if self.is_whole(leaf):
                return jax.device_put(leaf[np.array(self.rows, int)] if mine else leaf, to.sharding)
            shards = [shard.data for shard in leaf.addressable_shards]
            return jax.make_array_from_single_device_arrays(to.shape, to.sharding, shards)

        return each(array, is_per_worker, tree, like)


def mapped_axes(is_per_worker: PyTree) -> PyTree:
    """Booleans as the axes of `vmap` and `pmap`."""
    return jax.tree.map(lambda mine: 0 if mine else None, is_per_worker)


def _in_sequence(function: Callable, *, unroll: bool) -> Callable:
    """A function that `vmap` calls for one worker after the other: grouped convolutions are slow."""

    @custom_batching.custom_vmap
    def one_worker(*args):
        return function(*args)

    @one_worker.def_vmap
    def in_sequence(axis_size, in_batched, *args):
        def step(carry, row):
            own = jax.tree.map(lambda batched, x: x[row] if batched else x, tuple(in_batched), args)
            return carry, function(*own)

        _, outputs = lax.scan(step, None, np.arange(axis_size), unroll=unroll)
        return outputs, jax.tree.map(lambda _: True, outputs)

    return one_worker
