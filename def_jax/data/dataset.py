"""A data set as the trainer sees it, however its examples are stored."""

import dataclasses
import os
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from def_jax.data import in_memory, streaming
from def_jax.data.catalogue import DatasetSpec, get_dataset_spec

__all__ = ['Batch', 'Dataset', 'Split', 'open_dataset']

Batch = dict[str, np.ndarray]  # arrays [k, b, ...]: b examples for each of this process's k workers


class Split(Protocol):
    """The examples of one split, in a fixed order."""

    def __len__(self) -> int: ...

    def part(self, start: int, stop: int) -> 'Split':
        """The examples at positions `start` to `stop` - 1."""
        ...

    def train_batches(
        self, *, seed: int, first_step: int, batch_size: int, num_workers: int, workers: Sequence[int] | None
    ) -> Iterator[Batch]:
        """The batches of `first_step` and all later steps; each depends only on the seed and the step."""
        ...

    def test_batches(
        self, *, batch_size: int, num_workers: int, workers: Sequence[int] | None
    ) -> Iterator[Batch]:
        """One pass over the split in batches of the same shape; `mask` [k, b] is 0 on padding in the last."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """The splits of a data set."""

    spec: DatasetSpec
    train: Split
    test: Split
    validation: Split | None = None

    def limited(
        self, *, train_examples: int = 0, validation_examples: int = 0, test_examples: int = 0
    ) -> 'Dataset':
        """The data set with a part of its examples.

        Args:
            train_examples: number of training examples to use, from the first; 0 uses all that are left.
            validation_examples: number of training examples to hold out for validation, from the last; they
                do not depend on train_examples. 0 keeps the data set's own validation split, if it has one.
            test_examples: number of test examples to use, from the first; 0 uses all.

        Returns:
            The data set.

        Raises:
            ValueError: if a split is smaller than requested.
        """
        train, validation, size = self.train, self.validation, len(self.train)
        if validation_examples:
            if not 0 < validation_examples < size:
                raise ValueError(
                    f'{validation_examples=} must be less than {size}, the size of the training split: they '
                    'are held out from its end, and the rest is trained on.'
                )
            validation = train.part(size - validation_examples, size)
            train = train.part(0, size - validation_examples)
        return dataclasses.replace(
            self,
            train=_first(train, train_examples, 'train_examples'),
            validation=validation,
            test=_first(self.test, test_examples, 'test_examples'),
        )

    def evaluated(self, evaluate_on: str) -> Split:
        """The split to evaluate on, 'test' or 'validation'; ValueError if there is no validation split."""
        split = self.validation if evaluate_on == 'validation' else self.test
        if split is None:
            raise ValueError(
                f'{evaluate_on=} needs a validation split, and {self.spec.name!r} has none of its own. Hold '
                'out training examples, e.g. --config.validation_examples=1000.'
            )
        return split


def open_dataset(name: str, data_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """Opens a data set of the catalogue: in memory if it fits, otherwise streamed during training.

    Args:
        name: a key of `DATASETS`.
        data_dir: TFDS's directory of prepared data sets, see `in_memory.load_dataset`.

    Returns:
        The data set.

    Raises:
        ValueError: if the name is unknown, or the files do not match the catalogue.
        FileNotFoundError: if the data set is not prepared and cannot be downloaded.
    """
    spec = get_dataset_spec(name)
    load = streaming.open_dataset if spec.streamed else in_memory.load_dataset
    return Dataset(spec, *load(spec, data_dir))


def _first(split: Split, count: int, name: str) -> Split:
    if count > len(split):
        raise ValueError(f'{name}={count} must be at most {len(split)}, the size of that split; 0 uses all.')
    return split.part(0, count) if count else split
