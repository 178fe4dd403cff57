"""ImageNet, read during training: too large for memory, but its batches too are functions of seed and step.

TFDS's ArrayRecord files allow random access, so the order of an epoch is a permutation of the whole training
set, that of `in_memory.epoch_permutation`, and not whatever a shuffle buffer makes of the examples read so
far. This guarantees:

- A training batch depends only on the seed, the step and the batch size: not on the step at which the run was
  resumed, the number of processes that read it, or the threads that decode it.
- Resuming at a step reads only that step's images; there is no iterator to save.
- No image appears twice in an epoch, and each process decodes only the images of its own workers.

Pixels are those of TensorFlow's JPEG decoder: identical, bit for bit, for the same version of TensorFlow and
type of processor.
"""

import dataclasses
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from def_jax.trainer.data import in_memory
from def_jax.trainer.data.catalogue import DATASETS, DatasetSpec

__all__ = ['IMAGENET', 'StreamedSplit', 'open_dataset', 'test_batches', 'train_batches']

# Since images differ in size, they are cropped here; `augmentation.augment` flips and standardises them on
# the device, as for every data set.
IMAGENET = DATASETS['imagenet2012']

_ATTEMPTS = 10  # to draw a crop that fits the image


@dataclasses.dataclass(frozen=True, eq=False)
class StreamedSplit:
    """The examples of one split, on disk, in TFDS's order.

    Attributes:
        spec: the description of the data set; images are resized to its `image_shape`.
        records: has a length, and returns the serialised examples at a list of positions.
        parse: a TensorFlow function from a serialised example to a dict with `image`, the JPEG file, and
            `label`, int64 [].
        start: the position of the first example to use.
        stop: the position after the last; None for all.
    """

    spec: DatasetSpec
    records: Any
    parse: Callable[[Any], dict[str, Any]]
    start: int = 0
    stop: int | None = None

    def __len__(self) -> int:
        return (len(self.records) if self.stop is None else self.stop) - self.start

    def part(self, start: int, stop: int) -> 'StreamedSplit':
        """The examples at positions `start` to `stop` - 1 of this split."""
        return dataclasses.replace(self, start=self.start + start, stop=self.start + stop)

    def train_batches(self, **options: Any) -> Iterator[dict[str, np.ndarray]]:
        """The batches of a first step and all later steps, see the function `train_batches`."""
        return train_batches(self, **options)

    def test_batches(self, **options: Any) -> Iterator[dict[str, np.ndarray]]:
        """One pass over the split, see the function `test_batches`."""
        return test_batches(self, **options)


def open_dataset(
    spec: DatasetSpec = IMAGENET, data_dir: str | os.PathLike[str] | None = None
) -> tuple[StreamedSplit, StreamedSplit]:
    """Opens a data set that TFDS has prepared as ArrayRecord files.

    Args:
        spec: the description of a TFDS data set that has the features `image`, JPEG files, and `label`,
            and the splits `train` and `validation`.
        data_dir: TFDS's directory of prepared data sets. None means TFDS's default: the environment variable
            TFDS_DATA_DIR, or else ~/tensorflow_datasets.

    Returns:
        The training and validation splits.

    Raises:
        FileNotFoundError: if the data set is not prepared.
        ValueError: if it is not in the ArrayRecord format, or does not match its description.
    """
    tfds = in_memory.import_tfds()
    builder = tfds.builder(spec.tfds_name, data_dir=data_dir)
    if not builder.is_prepared():
        raise FileNotFoundError(
            f'Data set {spec.name!r} is not in {builder.data_path}. Put the files that its licence requires '
            f'you to download into DIR/downloads/manual, run `tfds build {spec.tfds_name} --data_dir=DIR '
            '--file_format=array_record`, and set the environment variable TFDS_DATA_DIR, or '
            '--config.data_dir, to DIR.'
        )
    num_classes = builder.info.features['label'].num_classes
    if num_classes != spec.num_classes:
        raise ValueError(
            f'num_classes={spec.num_classes} of data set {spec.name!r} must be {num_classes}, as in '
            f'{builder.data_path}.'
        )

    def parse(record):
        return builder.info.features.deserialize_example(
            record, decoders={'image': tfds.decode.SkipDecoding()}
        )

    def open_split(name: str) -> StreamedSplit:
        records = builder.as_data_source(
            split=name, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
        )
        return StreamedSplit(spec, records, parse)

    try:
        return open_split('train'), open_split('validation')
    except NotImplementedError as error:  # from TFDS, for TFRecord files
        raise ValueError(
            f'Data set {spec.name!r} in {builder.data_path} must be ArrayRecord files, whose examples can be '
            'read in any order. With apache-beam installed, run `tfds convert_format --dataset_version_dir='
            f'{builder.data_path} --out_file_format=array_record --out_dir=DIR/{spec.tfds_name}/'
            f'{builder.version}` and set TFDS_DATA_DIR, or --config.data_dir, to DIR.'
        ) from error


def train_batches(
    split: StreamedSplit,
    *,
    seed: int,
    first_step: int,
    batch_size: int,
    num_workers: int,
    workers: Sequence[int] | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """Returns the training batches of `first_step` and all later steps; they are read ahead.

    Each image is cropped to a random area, 8 to 100 %, with a random aspect ratio, 3/4 to 4/3, and resized,
    as in torchvision's `RandomResizedCrop`. `augmentation.augment` does the rest.

    Args:
        split: the training split.
        seed: the run's seed.
        first_step: the step, from 0 and counted over all epochs.
        batch_size: images per step, over all workers of all processes.
        num_workers: the number of workers, K; b = batch_size / K.
        workers: the workers that this process feeds, k of them; None for all.

    Returns:
        An endless iterator of `image`, uint8 [k, b, H, W, C], and `label`, int32 [k, b]: rows `workers` of
        the batches that a single process would read for all. No image appears twice in an epoch.

    Raises:
        ValueError: if the batch does not divide evenly among the workers or exceeds the split, a worker does
            not exist, or the seed or the step is negative.
    """
    rows = _rows(batch_size, num_workers, workers)
    steps_per_epoch = in_memory.steps_per_epoch(len(split), batch_size)
    if seed < 0 or first_step < 0:
        raise ValueError(f'{seed=} and {first_step=} must not be negative.')

    def choices() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        first_epoch, start = divmod(first_step, steps_per_epoch)
        for epoch in itertools.count(first_epoch):
            order = in_memory.epoch_permutation(seed, epoch, len(split))
            # A crop's seed is the epoch's key and the image's index: it depends on neither order nor worker.
            key = int(np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64)[0] >> np.uint64(1))
            for position in range(start, steps_per_epoch):
                batch = order[position * batch_size : (position + 1) * batch_size]
                indices = batch.reshape(num_workers, -1)[rows].reshape(-1)
                yield indices, np.stack([np.full_like(indices, key), indices], axis=1)
            start = 0

    shape = (len(rows), batch_size // num_workers)
    return _read(split, choices, shape, _random_resized_crop)


def test_batches(
    split: StreamedSplit, *, batch_size: int, num_workers: int, workers: Sequence[int] | None = None
) -> Iterator[dict[str, np.ndarray]]:
    """Returns the batches of one pass over a split, all of the same shape; they are read ahead.

    The shorter side of each image is resized to 8/7 of the network's input size, 256 pixels for 224, and the
    centre is cropped.

    Args:
        split: the split, usually the validation split.
        batch_size: images per batch, over all workers of all processes.
        num_workers: the number of workers, K; b = batch_size / K.
        workers: the workers that this process feeds, k of them; None for all.

    Returns:
        An iterator of `image`, uint8 [k, b, H, W, C], `label`, int32 [k, b], and `mask`, float32 [k, b].
        Over all workers, the mask is 1 exactly once for every image of the split; it is 0 for padding in the
        last batch.

    Raises:
        ValueError: if the batch does not divide evenly among the workers, or a worker does not exist.
    """
    rows = _rows(batch_size, num_workers, workers)
    indices = [
        np.arange(start, start + batch_size).reshape(num_workers, -1)[rows]
        for start in range(0, len(split), batch_size)
    ]

    def choices() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for chosen in indices:
            flat = np.where(chosen < len(split), chosen, 0).reshape(-1)
            yield flat, np.zeros((len(flat), 2), np.int64)  # nothing is random

    batches = _read(split, choices, (len(rows), batch_size // num_workers), _center_crop)
    masks = ((chosen < len(split)).astype(np.float32) for chosen in indices)
    return (batch | {'mask': mask} for batch, mask in zip(batches, masks, strict=True))


def _rows(batch_size: int, num_workers: int, workers: Sequence[int] | None) -> list[int]:
    """Checks the arguments and returns the workers that this process feeds."""
    in_memory.check_batch_size(batch_size, num_workers)
    rows = list(range(num_workers)) if workers is None else list(workers)
    if not rows or not all(0 <= row < num_workers for row in rows):
        raise ValueError(f'{workers=} must be one or more of the workers 0 … {num_workers - 1}.')
    return rows


def _read(
    split: StreamedSplit,
    choices: Callable[[], Iterator[tuple[np.ndarray, np.ndarray]]],
    shape: tuple[int, int],
    crop: Callable[[Any, Any, int], Any],
) -> Iterator[dict[str, np.ndarray]]:
    """Reads, decodes and crops in parallel; `choices` yields positions [n] and seeds [n, 2] per batch."""
    import tensorflow as tf

    count, size = shape[0] * shape[1], split.spec.image_shape[0]

    def records():
        for indices, seeds in choices():
            yield np.array(split.records.__getitems__((split.start + indices).tolist()), object), seeds

    def decode(record, seed):
        example = split.parse(record)
        return {'image': crop(example['image'], seed, size), 'label': tf.cast(example['label'], tf.int32)}

    signature = (tf.TensorSpec([count], tf.string), tf.TensorSpec([count, 2], tf.int64))
    dataset = tf.data.Dataset.from_generator(records, output_signature=signature)
    dataset = dataset.prefetch(1).unbatch()
    dataset = dataset.map(decode, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    dataset = dataset.batch(count, drop_remainder=True).prefetch(2)
    return (
        {name: x.reshape(*shape, *x.shape[1:]) for name, x in batch.items()}
        for batch in dataset.as_numpy_iterator()
    )


def _random_resized_crop(jpeg, seed, size: int):
    """A random part of a JPEG file, uint8 [size, size, 3]; only that part is decoded."""
    import tensorflow as tf

    height, width = tf.unstack(tf.io.extract_jpeg_shape(jpeg)[:2])
    box = _random_box(height, width, seed)
    return _resize(
        tf.io.decode_and_crop_jpeg(jpeg, box, channels=3, dct_method='INTEGER_ACCURATE'), size, size
    )


def _random_box(height, width, seed):
    """Top, left, height and width of the crop, int32 [4].

    Source: `torchvision.transforms.RandomResizedCrop.get_params`.

    `tf.image.stateless_sample_distorted_bounding_box` draws aspect ratios uniformly, where torchvision's are
    log-uniform, and falls back to the whole image; the paper's experiments use torchvision's.
    """
    import tensorflow as tf

    # Name the generator: the default might depend on the machine.
    uniform = tf.random.stateless_uniform([2 * _ATTEMPTS + 2], seed, alg='philox')
    full = tf.cast(tf.stack([height, width]), tf.float32)
    area = (0.08 + 0.92 * uniform[:_ATTEMPTS]) * full[0] * full[1]
    ratio = tf.exp((2 * uniform[_ATTEMPTS : 2 * _ATTEMPTS] - 1) * tf.math.log(4 / 3))
    sizes = tf.round(tf.sqrt(tf.stack([area / ratio, area * ratio], axis=1)))  # [attempts, 2]
    fits = tf.reduce_all((sizes >= 1) & (sizes <= full), axis=1)
    # If none fits, the image is long and narrow: take its centre, as long as the aspect ratio allows.
    fallback = tf.minimum(full, tf.round(full[::-1] * 4 / 3))
    choice = tf.where(tf.reduce_any(fits), sizes[tf.argmax(fits)], fallback)
    place = tf.where(tf.reduce_any(fits), uniform[-2:], 0.5)
    corner = tf.minimum(tf.floor(place * (full - choice + 1)), full - choice)
    return tf.cast(tf.concat([corner, choice], axis=0), tf.int32)


def _center_crop(jpeg, seed, size: int):
    """The centre of a JPEG file, uint8 [size, size, 3]."""
    import tensorflow as tf

    del seed
    image = tf.io.decode_jpeg(jpeg, channels=3, dct_method='INTEGER_ACCURATE')
    height, width = tf.unstack(tf.shape(image)[:2])
    shorter, resized = tf.minimum(height, width), round(size * 8 / 7)
    height, width = resized * height // shorter, resized * width // shorter
    image = _resize(image, height, width)
    return tf.image.crop_to_bounding_box(image, (height - size) // 2, (width - size) // 2, size, size)


def _resize(image, height, width):
    """Resizes uint8 [H, W, 3], with antialiasing when shrinking, as PIL and torchvision do."""
    import tensorflow as tf

    image = tf.image.resize(image, (height, width), antialias=True)
    return tf.cast(tf.clip_by_value(tf.round(image), 0, 255), tf.uint8)
