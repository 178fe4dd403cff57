"""What the trainer requires of a task."""

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import numpy as np

from def_jax.ground.types import PyTree

Batch = dict[str, jax.Array]  # of one worker: arrays [b, ...]

__all__ = ['Batch', 'GenerativeTask', 'Measure', 'Metric', 'Task']


@dataclasses.dataclass(frozen=True)
class Metric:
    """A number by which trained parameters are judged.

    Attributes:
        name: its key in `Task.metrics`, e.g. 'accuracy'.
        greater_is_better: whether larger values are better.
        percent: whether it is a share in [0, 1] to be shown in per cent.
    """

    name: str
    greater_is_better: bool = False
    percent: bool = False


@dataclasses.dataclass(frozen=True)
class Measure:
    """What the points of a run are compared by: the headline metric of its task, on a split."""

    split: str  # 'test' or 'validation'
    metric: Metric

    def key(self, point: str) -> str:
        """Where records and results hold it for a point, e.g. 'test_accuracy_y'."""
        return f'{self.split}_{self.metric.name}_{point}'

    @property
    def marks(self) -> tuple[str, ...]:
        """Keys, one of which is in every record of an evaluation, on whatever split; this one's is first."""
        splits = dict.fromkeys((self.split, 'test', 'validation'))
        return tuple(dataclasses.replace(self, split=split).key('x') for split in splits)

    @property
    def title(self) -> str:
        """What the numbers are, e.g. 'test accuracy'."""
        return f'{self.split} {self.metric.name}'.replace('_', ' ')

    def text(self, value: float, spread: float | None = None) -> str:
        """A value with its unit, e.g. '98.20 ± 0.31 %'."""
        scale, digits, unit = (100, 2, ' %') if self.metric.percent else (1, 4, '')
        deviation = '' if spread is None else f' ± {scale * spread:.{digits}f}'
        return f'{scale * value:.{digits}f}{deviation}{unit}'

    def others(self, record: Mapping[str, Any], point: str) -> dict[str, float]:
        """The record's other metrics of the split at a point, by title, e.g. 'test loss'."""
        start, end = f'{self.split}_', f'_{point}'
        names = [key for key in record if key.startswith(start) and key.endswith(end)]
        return {
            key.removesuffix(end).replace('_', ' '): record[key] for key in names if key != self.key(point)
        }


class Task(abc.ABC):
    """A loss, and the metrics by which the trained parameters are judged.

    Attributes:
        headline: the metric that tables, plots and the choice of a learning rate use.
    """

    headline: ClassVar[Metric] = Metric('loss')

    @abc.abstractmethod
    def init(self, key: jax.Array) -> PyTree:
        """The initial variables: 'params', and running statistics in 'batch_stats', {} if it has none.

        Both are nested dicts, whose keys are strings.
        """

    @abc.abstractmethod
    def loss(
        self, params: PyTree, batch_stats: PyTree, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, tuple[dict[str, jax.Array], PyTree]]:
        """The training loss, a mean over a batch, with further metrics of the batch and the new statistics.

        Loss and metrics are float32 []. The key is for augmentation and dropout; it differs between workers
        and steps.
        """

    @abc.abstractmethod
    def test_sums(self, variables: PyTree, batch: Batch) -> dict[str, jax.Array]:
        """Sums over the examples of a test batch whose `mask` is 1: 'loss', 'count' and any others.

        Each is float32 []. 'count' is what the sums are divided by: examples, tokens, ...
        """

    def metrics(self, sums: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The metrics on a split, from the sums over all its batches; by default, means.

        The sums are float32 [], or [K] with one entry for each worker's own model.
        """
        return {name: total / sums['count'] for name, total in sums.items() if name != 'count'}


class GenerativeTask(Task):
    """A task whose models generate something that a run shows at its end."""

    @abc.abstractmethod
    def sample(self, params: PyTree, key: jax.Array) -> str:
        """What the model with these parameters generates: a text, drawn with the key."""
