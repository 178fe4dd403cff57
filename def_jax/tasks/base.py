"""What the trainer requires of a task."""

from typing import Any, Protocol

import jax

PyTree = Any
Batch = dict[str, jax.Array]  # of one worker: arrays [b, ...]

__all__ = ['Batch', 'Task']


class Task(Protocol):
    """A loss, and the metrics by which the trained parameters are judged."""

    def init(self, key: jax.Array) -> PyTree:
        """The initial variables: 'params', and running statistics in 'batch_stats', {} if it has none."""
        ...

    def loss(
        self, params: PyTree, batch_stats: PyTree, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, tuple[dict[str, jax.Array], PyTree]]:
        """The training loss on a batch, float32 [], with metrics of the batch and the new statistics.

        The key is for augmentation and dropout; it differs between workers and steps.
        """
        ...

    def test_sums(self, variables: PyTree, batch: Batch) -> dict[str, jax.Array]:
        """Sums of each metric over the examples of a test batch whose `mask` is 1, and their 'count'."""
        ...
