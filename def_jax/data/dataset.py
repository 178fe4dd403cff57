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

    def first(self, count: int) -> 'Split':
        """The split's first `count` examples."""
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
    """The training and test splits of a data set."""

    spec: DatasetSpec
    train: Split
    test: Split


def open_dataset(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    *,
    train_images: int = 0,
    test_images: int = 0,
) -> Dataset:
    """Opens a data set of the catalogue: in memory if it fits, otherwise streamed during training.

    Args:
        name: a key of `DATASETS`.
        data_dir: TFDS's directory of prepared data sets, see `in_memory.load_dataset`.
        train_images: number of training images to use, from the first; 0 uses all.
        test_images: the same for the test split.

    Returns:
        The data set.

    Raises:
        ValueError: if the name is unknown, a split is smaller than requested, or the files do not match the
            catalogue.
        FileNotFoundError: if the data set is not prepared and cannot be downloaded.
    """
    spec = get_dataset_spec(name)
    load = streaming.open_dataset if spec.streamed else in_memory.load_dataset
    train, test = load(spec, data_dir)
    return Dataset(
        spec, _first(train, train_images, 'train_images'), _first(test, test_images, 'test_images')
    )


def _first(split: Split, count: int, name: str) -> Split:
    if count > len(split):
        raise ValueError(f'{name}={count} must be at most {len(split)}, the size of that split; 0 uses all.')
    return split.first(count) if count else split
