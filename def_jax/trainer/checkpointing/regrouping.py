"""How a run's workers are arranged in its state, and what it means to resume with other workers."""

import dataclasses
import math

import jax

from def_jax.mesh.ownership import each
from def_jax.mesh.regrouping import num_stacked
from def_jax.trainer.state import TrainState
from def_jax.trainer.workers.base import Workers
from def_jax.types import PyTree

__all__ = ['Layout', 'describe']


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the workers of a run are arranged in its state."""

    workers: Workers
    is_per_worker: TrainState  # which arrays are per-worker, as booleans
    batch_size: int
    # In an elastic run, this process holds all of the state, as NumPy arrays, and asks no other; it may be of
    # another number of workers than the run.
    whole: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Leading axes of per-worker arrays: [K], or [devices, virtual]."""
        return self.workers.shape

    def shape_of(self, state: PyTree) -> tuple[int, ...]:
        """The leading axes of per-worker arrays in `state`."""
        if not self.whole:
            return self.shape
        stacked = each(lambda mine, leaf: mine, self.is_per_worker, state)
        return (num_stacked(state, stacked, self.shape[0]),)

    def spread(self, state: PyTree) -> PyTree:
        """The rows of all processes as one state of global arrays, without copying."""
        return state if self.whole else self.workers.spread(state, self.is_per_worker)

    def own_rows(self, state: PyTree, like: PyTree) -> PyTree:
        """This process's rows of a spread state or of NumPy arrays, placed like `like`."""
        return state if self.whole else self.workers.own_rows(state, like, self.is_per_worker)

    def shapes(self, like: PyTree, workers: tuple[int, ...]) -> PyTree:
        """The shapes and dtypes that `like`, a state of this layout, would have with other workers."""

        def shape(mine, leaf):
            rest = leaf.shape[len(self.shape) :] if mine else leaf.shape
            return jax.ShapeDtypeStruct((*workers, *rest) if mine else rest, leaf.dtype)

        return each(shape, self.is_per_worker, like)


def describe(workers: tuple[int, ...], batch_size: int, layout: Layout, shards: int = 1) -> list[str]:
    """What restoring changes in a state saved with other workers or another batch size, one line each."""
    old, new, devices = math.prod(workers), math.prod(layout.shape), layout.workers.devices_per_row
    lines = []
    if old != new:
        mean = f'each receives the mean of the {old} residuals, momenta and statistics; parameters unchanged'
        lines.append(f'workers: {old} before, {new} now; {mean}')
    elif workers != layout.shape:
        places = ' x '.join(map(str, layout.shape)) + (' devices x virtual' if len(layout.shape) > 1 else '')
        lines.append(f'workers: the same {old}, now as {places} workers; the state is unchanged')
    if shards != devices:
        lines.append(f'devices a worker: {shards} before, {devices} now; blocks are cut from other shards')
    if batch_size != layout.batch_size:
        lines.append(f'batch: {batch_size} examples before, {layout.batch_size} now; epochs count by the new')
    return lines
