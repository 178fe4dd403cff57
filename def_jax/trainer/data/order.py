"""Which examples a batch holds: a function of the seed and the step, so no iterator has to be saved."""

import abc
import functools
import itertools
from collections.abc import Iterator, Sequence

import numpy as np

__all__ = ['Readable', 'steps_per_epoch', 'test_positions', 'train_batch', 'train_positions']


def steps_per_epoch(num_examples: int, batch_size: int) -> int:
    """The number of full batches in an epoch, the rest being dropped; ValueError if there is none.

    >>> steps_per_epoch(1000, 128)
    7
    """
    if not 1 <= batch_size <= num_examples:
        why = 'it counts the examples of all workers, and an epoch needs a step'
        raise ValueError(f'{batch_size=} must be between 1 and {num_examples=}: {why}.')
    return num_examples // batch_size


@functools.lru_cache(maxsize=2)  # so that the cost of a step is that of its batch
def epoch_permutation(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    """The order in which an epoch visits the training examples: a permutation of 0 … N-1, int64 [N]."""
    return np.random.default_rng((seed, epoch)).permutation(num_examples)


def train_positions(
    num_examples: int,
    *,
    seed: int,
    step: int,
    batch_size: int,
    num_workers: int,
    workers: Sequence[int] | None = None,
) -> tuple[int, np.ndarray]:
    """The epoch of a training step, and its positions for some of the workers, int64 [k, b]; None for all.

    The last positions of a batch that does not divide among the workers are left out, so which examples a
    step takes does not depend on their number.
    """
    epoch, place = divmod(step, steps_per_epoch(num_examples, batch_size))
    batch = epoch_permutation(seed, epoch, num_examples)[place * batch_size :][:batch_size]
    return epoch, _rows(batch[: batch_size // num_workers * num_workers], num_workers, workers)


def test_positions(
    num_examples: int, *, batch_size: int, num_workers: int, workers: Sequence[int] | None = None
) -> Iterator[np.ndarray]:
    """The positions of one pass over a split, int64 [k, b] each; those from `num_examples` on are padding."""
    starts = range(0, num_examples, batch_size)
    return (_rows(np.arange(start, start + batch_size), num_workers, workers) for start in starts)


def _rows(batch: np.ndarray, num_workers: int, workers: Sequence[int] | None) -> np.ndarray:
    """The shares of some of the workers in a batch, [k, b]; None stands for all."""
    shares = batch.reshape(num_workers, -1)
    return shares if workers is None else shares[list(workers)]


def train_batch(split: 'Readable', **options) -> dict[str, np.ndarray]:
    """The training batch of a step: arrays [k, b, ...]; the options are those of `train_positions`."""
    return split.take(train_positions(len(split), **options)[1])


class Readable(abc.ABC):
    """A split whose examples can be read in any order."""

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def take(self, positions: np.ndarray) -> dict[str, np.ndarray]:
        """The examples at these positions, int64 [...], as arrays [..., *shape of the part]."""

    def train_batches(self, *, first_step: int, **options) -> Iterator[dict[str, np.ndarray]]:
        """The batches of `first_step` and all later steps, see `train_batch`."""
        return (train_batch(self, step=step, **options) for step in itertools.count(first_step))

    def test_batches(self, **options) -> Iterator[dict[str, np.ndarray]]:
        """One pass, see `test_positions`; `mask`, float32 [k, b], is 0 on padding in the last batch."""
        for positions in test_positions(len(self), **options):
            real = positions < len(self)
            yield self.take(np.where(real, positions, 0)) | {'mask': real.astype(np.float32)}
