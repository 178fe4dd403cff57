"""Data sets in memory, with batches that are pure functions of the step.

They are small enough to be read once, as arrays. A training batch depends only on the seed and the step, so
an interrupted run can resume at any step without a saved iterator.
"""

import contextlib
import dataclasses
import functools
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from def_jax.trainer.data.catalogue import DatasetSpec, get_dataset_spec

__all__ = [
    'Examples',
    'Split',
    'check_batch_size',
    'epoch_permutation',
    'import_tfds',
    'load_dataset',
    'prepared_builder',
    'steps_per_epoch',
    'test_batches',
    'train_batch',
]


class Examples(Protocol):
    """Examples that can be read in any order."""

    def __len__(self) -> int: ...

    def take(self, positions: np.ndarray) -> dict[str, np.ndarray]:
        """The examples at these positions, int64 [...], as arrays [..., *shape of the part]."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """The examples of one split, in a fixed order.

    Attributes:
        arrays: the parts of the examples by name, each [N, ...]: for images `image`, uint8 [N, H, W, C], and
            `label`, int32 [N].

    Raises:
        ValueError: at construction, if the arrays differ in length, there are none, or one is called `mask`.

    >>> split = Split({'input': np.zeros((6, 3)), 'target': np.arange(6)})
    >>> len(split), split.part(2, 4).arrays['target'].tolist()
    (6, [2, 3])
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

    def part(self, start: int, stop: int) -> 'Split':
        """The examples at positions `start` to `stop` - 1."""
        return Split({name: array[start:stop] for name, array in self.arrays.items()})

    def take(self, positions: np.ndarray) -> dict[str, np.ndarray]:
        """The examples at these positions, see `Examples`."""
        return {name: array[positions] for name, array in self.arrays.items()}

    def train_batches(self, *, first_step: int, **options: Any) -> Iterator[dict[str, np.ndarray]]:
        """The batches of `first_step` and all later steps; the options are those of `train_batch`."""
        return (train_batch(self, step=step, **options) for step in itertools.count(first_step))

    def test_batches(self, **options: Any) -> Iterator[dict[str, np.ndarray]]:
        """One pass over the split, see the function `test_batches`."""
        return test_batches(self, **options)


def load_dataset(
    dataset: DatasetSpec | str, data_dir: str | os.PathLike[str] | None = None
) -> tuple[Split, Split]:
    """Reads a data set into memory through TFDS, downloading and preparing it if necessary.

    `digits` comes with scikit-learn and needs no network. The order of examples is always the same.

    Args:
        dataset: a name in `DATASETS`, or the description of any TFDS data set that has the features
            `image` and `label` and the splits `train` and `test`.
        data_dir: TFDS's directory of prepared data sets. None means TFDS's default: the environment variable
            TFDS_DATA_DIR, or else ~/tensorflow_datasets.

    Returns:
        The training and test splits.

    Raises:
        FileNotFoundError: if the data set is missing and cannot be prepared.
        ValueError: if the name is unknown, or the data set does not match its description.
    """
    spec = get_dataset_spec(dataset) if isinstance(dataset, str) else dataset
    tfds = import_tfds()
    builder = prepared_builder(spec.tfds_name, data_dir)
    _check_builder(builder, spec)

    def read(split: str) -> Split:
        # batch_size=-1 makes the whole split one batch.
        data = tfds.as_numpy(builder.as_dataset(split=split, batch_size=-1, shuffle_files=False))
        return Split({'image': data['image'], 'label': data['label'].astype(np.int32)})

    return read('train'), read('test')


def import_tfds() -> Any:
    """Imports TFDS on first use, since that takes seconds, and keeps TensorFlow off JAX's GPUs."""
    import tensorflow as tf
    import tensorflow_datasets as tfds

    import def_jax.trainer.data.digits
    import def_jax.trainer.data.text.stdlib  # noqa: F401  Registers the builders with TFDS.

    # Too late if the caller's own TensorFlow code has already claimed the GPUs.
    with contextlib.suppress(RuntimeError):
        tf.config.set_visible_devices([], 'GPU')
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


def _check_builder(builder: Any, spec: DatasetSpec) -> None:
    """Raises ValueError if the prepared data set does not match its description."""
    features = builder.info.features
    for kind, found, wanted in (
        ('features', set(features), {'image', 'label'}),
        ('splits', set(builder.info.splits), {'train', 'test'}),
    ):
        if not found >= wanted:
            raise ValueError(
                f'Data set {spec.name!r} must have the {kind} {sorted(wanted)}, but '
                f'{builder.data_path} has {sorted(found)}. Delete the folder if it is incomplete.'
            )
    for field, value in (
        ('image_shape', features['image'].shape),
        ('num_classes', features['label'].num_classes),
    ):
        if value != getattr(spec, field):
            raise ValueError(
                f'{field}={getattr(spec, field)} of data set {spec.name!r} must be {value}, as in '
                f'{builder.data_path}. Correct the DatasetSpec, or delete the folder if it is stale.'
            )


def steps_per_epoch(num_examples: int, batch_size: int) -> int:
    """Returns the number of full batches in an epoch; the remaining examples are dropped.

    Args:
        num_examples: the number of training examples.
        batch_size: examples per step, over all workers.

    Raises:
        ValueError: if an epoch does not fill one batch.

    >>> steps_per_epoch(1000, 128)
    7
    """
    if not 1 <= batch_size <= num_examples:
        raise ValueError(
            f'{batch_size=} must be between 1 and {num_examples=}: it counts the examples of all workers '
            'in one step, and an epoch needs at least one step.'
        )
    return num_examples // batch_size


def epoch_permutation(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    """Returns the order in which an epoch visits the training examples.

    Args:
        seed: the run's seed.
        epoch: the epoch, from 0.
        num_examples: the number of training examples, N.

    Returns:
        A permutation of 0 … N-1, int64 [N], that depends only on the arguments.

    Raises:
        ValueError: if the seed or the epoch is negative.

    >>> sorted(epoch_permutation(seed=0, epoch=3, num_examples=5).tolist())
    [0, 1, 2, 3, 4]
    """
    if seed < 0 or epoch < 0:
        raise ValueError(f'{seed=} and {epoch=} must not be negative.')
    return np.random.default_rng((seed, epoch)).permutation(num_examples)


# Shuffling once per epoch, not once per step, makes the cost of a step that of its batch.
_cached_permutation = functools.lru_cache(maxsize=2)(epoch_permutation)


def train_batch(
    split: Examples,
    *,
    seed: int,
    step: int,
    batch_size: int,
    num_workers: int,
    workers: Sequence[int] | None = None,
) -> dict[str, np.ndarray]:
    """Returns the training batch of a step, as a pure function of the arguments.

    Args:
        split: the training split.
        seed: the run's seed.
        step: the step, from 0 and counted over all epochs.
        batch_size: examples per step, over all workers.
        num_workers: the number of workers, K; b = batch_size / K.
        workers: the workers that this process feeds, k of them; None for all.

    Returns:
        The parts of the examples by name, [k, b, ...]: for images `image`, uint8 [k, b, H, W, C], and
        `label`, int32 [k, b]. No example appears twice in an epoch.

    Raises:
        ValueError: if the batch does not divide evenly among the workers or exceeds the split, or the seed or
            the step is negative.

    >>> split = Split({'image': np.zeros((6, 8, 8, 1), np.uint8), 'label': np.arange(6, dtype=np.int32)})
    >>> batch = train_batch(split, seed=0, step=0, batch_size=4, num_workers=2)
    >>> batch['image'].shape, batch['label'].shape
    ((2, 2, 8, 8, 1), (2, 2))
    """
    check_batch_size(batch_size, num_workers)
    epoch, position = divmod(step, steps_per_epoch(len(split), batch_size))
    order = _cached_permutation(seed, epoch, len(split))
    indices = order[position * batch_size : (position + 1) * batch_size].reshape(num_workers, -1)
    indices = indices if workers is None else indices[list(workers)]
    return split.take(indices)


def test_batches(
    split: Examples, *, batch_size: int, num_workers: int, workers: Sequence[int] | None = None
) -> Iterator[dict[str, np.ndarray]]:
    """Returns the batches of one pass over a split, all of the same shape.

    Args:
        split: the split, usually the test split.
        batch_size: examples per batch, over all workers.
        num_workers: the number of workers, K; b = batch_size / K.
        workers: the workers that this process feeds, k of them; None for all.

    Returns:
        An iterator of the parts of the examples, [k, b, ...], and `mask`, float32 [k, b]. Over all workers,
        the mask is 1 exactly once for every example of the split; it is 0 for padding in the last batch.

    Raises:
        ValueError: if the batch does not divide evenly among the workers.

    >>> split = Split({'label': np.arange(6, dtype=np.int32)})
    >>> [int(batch['mask'].sum()) for batch in test_batches(split, batch_size=4, num_workers=2)]
    [4, 2]
    """
    check_batch_size(batch_size, num_workers)

    def batch(start: int) -> dict[str, np.ndarray]:
        indices = np.arange(start, start + batch_size).reshape(num_workers, -1)
        indices = indices if workers is None else indices[list(workers)]
        real = indices < len(split)
        return split.take(np.where(real, indices, 0)) | {'mask': real.astype(np.float32)}

    # Not a generator function, which would delay the checks until the first batch.
    return map(batch, range(0, len(split), batch_size))


def check_batch_size(batch_size: int, num_workers: int) -> None:
    """Raises ValueError unless every worker gets the same, positive number of examples."""
    if num_workers < 1:
        raise ValueError(f'{num_workers=} must be at least 1.')
    if batch_size < 1 or batch_size % num_workers:
        nearest = max(1, round(batch_size / num_workers)) * num_workers
        raise ValueError(f'{batch_size=} must be a multiple of {num_workers=}; the nearest is {nearest}.')
