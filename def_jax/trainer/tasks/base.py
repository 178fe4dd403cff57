"""What the trainer requires of a task."""

import abc
import dataclasses
from typing import ClassVar

import jax
import numpy as np

from def_jax.types import PyTree

Batch = dict[str, jax.Array]  # of one worker: arrays [b, ...]

__all__ = ['Batch', 'GenerativeTask', 'Metric', 'Task']


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


class Task(abc.ABC):
    """A loss, and the metrics by which the trained parameters are judged.

    Attributes:
        headline: the metric that tables, plots and the choice of a learning rate use.
        guessing_loss: the loss of a model that has learned nothing; a run that stays close to it counts as
            diverged. None if there is no such value.
    """

    headline: ClassVar[Metric] = Metric('loss')
    guessing_loss: float | None = None

    @abc.abstractmethod
    def init(self, key: jax.Array) -> PyTree:
        """The initial variables: 'params', and running statistics in 'batch_stats', {} if it has none."""

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
