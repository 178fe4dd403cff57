"""Data sets that are small enough to be read into memory once, as arrays, and how TFDS is asked for them."""

import contextlib
import dataclasses
import functools
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from def_jax.trainer.data.fingerprint import digest_of
from def_jax.trainer.data.foreign_code import refuse_foreign_features
from def_jax.trainer.data.order import Readable

__all__ = ['Arrays', 'import_tfds', 'load_dataset', 'prepared_builder']


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
        if len(set(lengths.values())) != 1 or 'mask' in lengths:
            raise ValueError(
                f'arrays of lengths {lengths} must have one length, and names other than mask, which marks '
                'what is no padding.'
            )

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
    """Reads the training and test images of a data set through TFDS, preparing it first if necessary.

    `digits` comes with scikit-learn and needs no network. The order of examples is always the same.

    Args:
        name: its name in TFDS.
        data_dir: TFDS's directory of prepared data sets. None means TFDS's default: the environment variable
            TFDS_DATA_DIR, or else ~/tensorflow_datasets.

    Raises:
        FileNotFoundError: if the data set is missing and cannot be prepared.
    """
    builder = prepared_builder(name, data_dir)

    def read(split: str) -> Arrays:
        # batch_size=-1 makes the whole split one batch.
        data = builder.as_dataset(split=split, batch_size=-1, shuffle_files=False)
        arrays = import_tfds().as_numpy(data)
        return Arrays({'image': arrays['image'], 'label': arrays['label'].astype(np.int32)})

    return read('train'), read('test')


def import_tfds() -> Any:
    """Imports TFDS on first use, since that takes seconds, and keeps TensorFlow off JAX's GPUs.

    Code that the files of a data set name is refused.
    """
    import tensorflow as tf
    import tensorflow_datasets as tfds

    import def_jax.trainer.data.digits
    import def_jax.trainer.data.text.stdlib  # noqa: F401  Registers the builders with TFDS.

    # Too late if the caller's own TensorFlow code has already claimed the GPUs.
    with contextlib.suppress(RuntimeError):
        tf.config.set_visible_devices([], 'GPU')
    refuse_foreign_features(tfds)
    return tfds


def prepared_builder(name: str, data_dir: str | os.PathLike[str] | None) -> Any:
    """Returns a TFDS builder whose files exist, or raises FileNotFoundError with the remedy."""
    tfds = import_tfds()
    builder = tfds.builder(name, data_dir=data_dir)
    try:
        builder.download_and_prepare()  # does nothing where the files exist
    except Exception as error:
        # When several processes start together, the first to finish wins: use its files.
        builder = tfds.builder(name, data_dir=data_dir)
        if not builder.is_prepared():
            raise FileNotFoundError(
                f'Data set {name!r} is not in {builder.data_path} and could not be prepared there '
                f'({type(error).__name__}: {error}). If this machine has no network, run `python -c "import '
                f"tensorflow_datasets as tfds; tfds.load('{name}', data_dir='DIR')\"` on one that does, copy "
                f'DIR/{name} here, and set the environment variable TFDS_DATA_DIR, or --config.data_dir, to '
                f'the folder that contains {name}.'
            ) from error
    return builder
