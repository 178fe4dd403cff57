"""Data sets that are small enough to be read into memory once, as arrays."""

import dataclasses
import functools
import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from def_jax.trainer.data import digits
from def_jax.trainer.data.dataset import digest_of
from def_jax.trainer.data.order import Readable
from def_jax.trainer.data.prepared import examples, prepared_builder

__all__ = ['Arrays', 'load_dataset', 'stacked']


@dataclasses.dataclass(frozen=True, eq=False)
class Arrays(Readable):
    """The examples of one split, in a fixed order.

    Attributes:
        arrays: the parts of the examples by name, each [N, ...]: for images `image`, uint8 [N, H, W, C], and
            `label`, int32 [N].

    Raises:
        ValueError: at construction, if the arrays differ in length, there are none, or one is called `mask`.

    >>> split = Arrays({'input': np.zeros((6, 3)), 'target': np.arange(6)})
    >>> len(split), split.part(2, 4).arrays['target'].tolist()
    (6, [2, 3])
    >>> batches = split.train_batches(seed=0, first_step=0, batch_size=4, num_workers=2)
    >>> next(batches)['input'].shape
    (2, 2, 3)
    >>> [int(batch['mask'].sum()) for batch in split.test_batches(batch_size=4, num_workers=2)]
    [4, 2]
    """

    arrays: Mapping[str, np.ndarray]

    def __post_init__(self) -> None:
        lengths = {name: len(array) for name, array in self.arrays.items()}
        if len(set(lengths.values())) != 1 or not all(lengths.values()) or 'mask' in lengths:
            why = 'must have one length, not 0, and names other than mask, which marks padding'
            raise ValueError(f'arrays of lengths {lengths} {why}.')

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    @functools.cached_property
    def checksum(self) -> str:
        """Of all arrays, for `fingerprint`."""
        return digest_of(self.arrays)

    def part(self, start: int, stop: int) -> 'Arrays':
        """The examples at positions `start` to `stop` - 1."""
        return Arrays({name: array[start:stop] for name, array in self.arrays.items()})

    def take(self, positions: np.ndarray) -> dict[str, np.ndarray]:
        """The examples at these positions, int64 [...]."""
        return {name: array[positions] for name, array in self.arrays.items()}


def load_dataset(name: str, data_dir: str | os.PathLike[str] | None = None) -> tuple[Arrays, Arrays]:
    """The training and test images of 'digits', which come with scikit-learn, or of a data set of TFDS."""
    if name == 'digits':
        return Arrays(digits.read('train')), Arrays(digits.read('test'))
    builder = prepared_builder(name, data_dir)
    return Arrays(stacked(examples(builder, 'train'))), Arrays(stacked(examples(builder, 'test')))


def stacked(found: Iterable[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Examples with the features `image` and `label`, as arrays."""
    images, labels = zip(*((each['image'], each['label']) for each in found), strict=True)
    return {'image': np.stack(images), 'label': np.array(labels, np.int32)}
