"""Resumes a run of K workers with a different number K' of workers.

Every new worker receives the mean of the K workers' residuals, momenta and BatchNorm statistics; everything
that the workers share is preserved bit for bit. So x is unchanged, and y = x + mean residual up to the
rounding of one float32 mean. The K deviations from the mean are discarded. They add up to zero and belong to
shares of the data that no longer exist; SAEF discards the same at each of its averaging steps.
"""

import dataclasses
import math
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from def_jax.launch import processes
from def_jax.training import steps
from def_jax.training.experiment import DEVICE_AXIS, Experiment

__all__ = ['Layout', 'describe', 'regrouped']

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the workers of a run are arranged in its state."""

    workers: tuple[int, ...]  # leading axes of per-worker arrays: [K], or [devices, virtual]
    own: steps.TrainState  # True for per-worker arrays, False for shared ones
    batch_size: int
    devices: list[jax.Device]  # of all processes

    @classmethod
    def of(cls, experiment: Experiment) -> 'Layout':
        own = jax.tree.map(lambda axis: axis == 0, steps.worker_axes(experiment), is_leaf=_is_axis)
        return cls(experiment.workers_shape, own, experiment.config.batch_size, experiment.devices)

    def map(self, function, *trees: PyTree) -> PyTree:
        """`function(own, *leaves)` over the leaves of states of this layout."""
        # `own` is a tree prefix of a state: one value covers a whole subtree, e.g. all parameters.
        return jax.tree.map(
            lambda own, *subtrees: jax.tree.map(lambda *leaves: function(own, *leaves), *subtrees),
            self.own,
            *trees,
        )

    def spread(self, state: PyTree) -> PyTree:
        """The rows of all processes as one state of global arrays, without copying."""
        mesh = Mesh(np.array(self.devices), (DEVICE_AXIS,))

        def array(own, leaf):
            shape = (*self.workers, *leaf.shape[len(self.workers) :]) if own else leaf.shape
            sharding = NamedSharding(mesh, PartitionSpec(DEVICE_AXIS) if own else PartitionSpec())
            shards = [shard.data for shard in leaf.addressable_shards]
            return jax.make_array_from_single_device_arrays(shape, sharding, shards)

        return self.map(array, state)

    def own_rows(self, state: PyTree, like: PyTree) -> PyTree:
        """This process's rows of a spread state or of NumPy arrays, placed like `like`."""
        rows = processes.rows(self.devices)

        def array(own, leaf, to):
            if isinstance(leaf, np.ndarray):
                return jax.device_put(leaf[rows] if own else leaf, to.sharding)
            shards = [shard.data for shard in leaf.addressable_shards]
            return jax.make_array_from_single_device_arrays(to.shape, to.sharding, shards)

        return self.map(array, state, like)

    def shapes(self, like: PyTree, workers: tuple[int, ...]) -> PyTree:
        """The shapes and dtypes that `like`, a state of this layout, would have with other workers."""

        def shape(own, leaf):
            rest = leaf.shape[len(self.workers) :] if own else leaf.shape
            return jax.ShapeDtypeStruct((*workers, *rest) if own else rest, leaf.dtype)

        return self.map(shape, like)


def regrouped(state: PyTree, workers: tuple[int, ...], layout: Layout) -> PyTree:
    """Converts a state to a layout with other workers.

    Args:
        state: a state of NumPy arrays; per-worker arrays have leading axes `workers`.
        workers: the current leading axes.
        layout: the target layout.

    Returns:
        A state of NumPy arrays. If the number of workers is unchanged, only the leading axes differ.
    """
    rank, same_number = len(workers), math.prod(workers) == math.prod(layout.workers)

    def regroup(own, leaf):
        if not own:
            return leaf
        rest = leaf.shape[rank:]
        if same_number:
            return leaf.reshape(*layout.workers, *rest)
        mean = leaf.mean(tuple(range(rank)), dtype=np.float64).astype(leaf.dtype)
        return np.broadcast_to(mean, (*layout.workers, *rest))

    return layout.map(regroup, state)


def describe(workers: tuple[int, ...], batch_size: int, layout: Layout) -> list[str]:
    """What restoring changes in a state saved with other workers or another batch size, one line each."""
    old, new = math.prod(workers), math.prod(layout.workers)
    lines = []
    if old != new:
        lines.append(
            f'workers: {old} before, {new} now; each receives the mean of the {old} residuals, momenta '
            'and statistics; parameters unchanged'
        )
    elif workers != layout.workers:
        places = ' x '.join(map(str, layout.workers)) + (
            ' devices x virtual' if len(layout.workers) > 1 else ''
        )
        lines.append(f'workers: the same {old}, now as {places} workers; the state is unchanged')
    if batch_size != layout.batch_size:
        lines.append(
            f'batch: {batch_size} examples before, {layout.batch_size} now; step numbers continue, epochs '
            'count by the new batch'
        )
    return lines


def _is_axis(node: Any) -> bool:
    return node is None or node == 0
