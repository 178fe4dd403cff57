"""How a run's workers are arranged in its state, and what it means to resume with other workers.

Those receive the mean of the old ones, see `def_jax.mesh.regrouping`. The deviations from it, which are
discarded, belong to shares of the data that no longer exist; SAEF discards the same at each of its averaging
steps.
"""

import dataclasses
import math
from typing import ClassVar

import jax

from def_jax.mesh.ownership import each
from def_jax.mesh.regrouping import regroup
from def_jax.trainer.experiment import Experiment
from def_jax.trainer.state import TrainState
from def_jax.trainer.workers.base import Workers
from def_jax.types import PyTree

__all__ = ['Layout', 'describe', 'regrouped']


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the workers of a run are arranged in its state."""

    workers: Workers
    own: TrainState  # which arrays are per-worker, as booleans
    batch_size: int
    whole: ClassVar[bool] = False  # whether this process has all of the state, and asks no other

    @classmethod
    def of(cls, experiment: Experiment) -> 'Layout':
        return cls(experiment.workers, experiment.own, experiment.config.batch_size)

    @property
    def shape(self) -> tuple[int, ...]:
        """Leading axes of per-worker arrays: [K], or [devices, virtual]."""
        return self.workers.shape

    @property
    def shards(self) -> int:
        """The number of devices of a worker, if these are several."""
        return self.workers.devices_per_row

    def map(self, function, *trees: PyTree) -> PyTree:
        """`function(mine, *leaves)` over the leaves of states of this layout."""
        return each(function, self.own, *trees)

    def shape_of(self, state: PyTree) -> tuple[int, ...]:
        """The leading axes of per-worker arrays in `state`."""
        del state
        return self.shape

    def spread(self, state: PyTree) -> PyTree:
        """The rows of all processes as one state of global arrays, without copying."""
        return self.workers.spread(state, self.own)

    def own_rows(self, state: PyTree, like: PyTree) -> PyTree:
        """This process's rows of a spread state or of NumPy arrays, placed like `like`."""
        return self.workers.own_rows(state, like, self.own)

    def shapes(self, like: PyTree, workers: tuple[int, ...]) -> PyTree:
        """The shapes and dtypes that `like`, a state of this layout, would have with other workers."""

        def shape(mine, leaf):
            rest = leaf.shape[len(self.shape) :] if mine else leaf.shape
            return jax.ShapeDtypeStruct((*workers, *rest) if mine else rest, leaf.dtype)

        return self.map(shape, like)


def regrouped(state: PyTree, workers: tuple[int, ...], layout: Layout) -> PyTree:
    """A state of NumPy arrays whose per-worker ones have leading axes `workers`, in another layout.

    If the number of workers is unchanged, only the leading axes differ.
    """
    return regroup(state, layout.own, workers, layout.shape)


def describe(workers: tuple[int, ...], batch_size: int, layout: Layout, shards: int = 1) -> list[str]:
    """What restoring changes in a state saved with other workers or another batch size, one line each."""
    old, new = math.prod(workers), math.prod(layout.shape)
    lines = []
    if old != new:
        lines.append(
            f'workers: {old} before, {new} now; each receives the mean of the {old} residuals, momenta '
            'and statistics; parameters unchanged'
        )
    elif workers != layout.shape:
        places = ' x '.join(map(str, layout.shape)) + (' devices x virtual' if len(layout.shape) > 1 else '')
        lines.append(f'workers: the same {old}, now as {places} workers; the state is unchanged')
    if shards != layout.shards:
        lines.append(
            f'devices a worker: {shards} before, {layout.shards} now; the state is unchanged, blocks are cut '
            'from other shards'
        )
    if batch_size != layout.batch_size:
        lines.append(
            f'batch: {batch_size} examples before, {layout.batch_size} now; step numbers continue, epochs '
            'count by the new batch'
        )
    return lines
