"""ImageNet, read during training: too large for memory, but its batches too are functions of seed and step.

TFDS's ArrayRecord files allow random access, so the order of an epoch is a permutation of the whole training
set, see `order`, and not whatever a shuffle buffer makes of the examples read so far. A batch does not depend
on the threads that decode it either.

Pixels are those of TensorFlow's JPEG decoder: identical, bit for bit, for the same version of TensorFlow and
type of processor.
"""

import dataclasses
import itertools
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from def_jax.trainer.data import in_memory
from def_jax.trainer.data.fingerprint import digest_of
from def_jax.trainer.data.order import test_positions, train_positions

__all__ = ['StreamedSplit', 'open_dataset']

_MARKED = 16  # examples of a split that its checksum reads
_ATTEMPTS = 10  # to draw a crop that fits the image


@dataclasses.dataclass(frozen=True, eq=False)
class StreamedSplit:
    """The examples of one split, on disk, in TFDS's order.

    Attributes:
        size: the height and width to which images are cropped and resized.
        records: has a length, and returns the serialised examples at a list of positions.
        parse: a TensorFlow function from a serialised example to a dict with `image`, the JPEG file, and
            `label`, int64 [].
        start: the position of the first example to use.
        stop: the position after the last; None for all.
    """

    size: int
    records: Any
    parse: Callable[[Any], dict[str, Any]]
    start: int = 0
    stop: int | None = None

    def __len__(self) -> int:
        return (len(self.records) if self.stop is None else self.stop) - self.start

    @property
    def checksum(self) -> str:
        """Of some examples as they are stored, from all over the split, for `fingerprint`."""
        positions = np.linspace(self.start, self.start + len(self) - 1, _MARKED).astype(int).tolist()
        return digest_of(
            {str(i): np.frombuffer(x, np.uint8) for i, x in enumerate(self.records.__getitems__(positions))}
        )

    def part(self, start: int, stop: int) -> 'StreamedSplit':
        """The examples at positions `start` to `stop` - 1 of this split."""
        return dataclasses.replace(self, start=self.start + start, stop=self.start + stop)

    def train_batches(self, *, seed: int, first_step: int, **options: Any) -> Iterator[dict[str, np.ndarray]]:
        """The batches of `first_step` and all later steps, read ahead; see `order.train_positions`.

        Each image is cropped to a random area, 8 to 100 %, with a random aspect ratio, 3/4 to 4/3, and
        resized, as in torchvision's `RandomResizedCrop`. `augmentation.augment` does the rest.
        """

        def choice(step: int) -> tuple[np.ndarray, np.ndarray]:
            epoch, chosen = train_positions(len(self), seed=seed, step=step, **options)
            # A crop's seed is the epoch's key and the image's index: it depends on neither order nor worker.
            key = int(np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64)[0] >> np.uint64(1))
            return chosen, np.stack([np.full_like(chosen, key), chosen], axis=-1)

        return self._read(map(choice, itertools.count(first_step)), _random_resized_crop)

    def test_batches(self, **options: Any) -> Iterator[dict[str, np.ndarray]]:
        """One pass over the split, read ahead; `mask`, float32 [k, b], is 0 on padding in the last batch.

        The shorter side of each image is resized to 8/7 of the network's input size, 256 pixels for 224, and
        the centre is cropped.
        """
        positions = test_positions(len(self), **options)
        chosen = (np.where(each < len(self), each, 0) for each in positions)
        unseeded = ((each, np.zeros((*each.shape, 2), np.int64)) for each in chosen)  # nothing is random
        batches = self._read(unseeded, _center_crop)
        masks = ((each < len(self)).astype(np.float32) for each in positions)
        return (batch | {'mask': mask} for batch, mask in zip(batches, masks, strict=True))

    def _read(
        self, choices: Iterator[tuple[np.ndarray, np.ndarray]], crop: Callable[[Any, Any, int], Any]
    ) -> Iterator[dict[str, np.ndarray]]:
        """Reads, decodes and crops in parallel; `choices` are positions [k, b] and seeds [k, b, 2]."""
        import tensorflow as tf

        first = next(choices)
        shape, count = first[0].shape, first[0].size

        def records():
            for positions, seeds in itertools.chain([first], choices):
                found = self.records.__getitems__((self.start + positions).ravel().tolist())
                yield np.array(found, object), seeds.reshape(-1, 2)

        def decode(record, seed):
            example = self.parse(record)
            return {
                'image': crop(example['image'], seed, self.size),
                'label': tf.cast(example['label'], tf.int32),
            }

        signature = (tf.TensorSpec([count], tf.string), tf.TensorSpec([count, 2], tf.int64))
        dataset = tf.data.Dataset.from_generator(records, output_signature=signature)
        dataset = dataset.prefetch(1).unbatch()
        dataset = dataset.map(decode, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        dataset = dataset.batch(count, drop_remainder=True).prefetch(2)
        return (
            {name: x.reshape(*shape, *x.shape[1:]) for name, x in batch.items()}
            for batch in dataset.as_numpy_iterator()
        )


def open_dataset(
    name: str, size: int, data_dir: str | os.PathLike[str] | None = None
) -> tuple[StreamedSplit, StreamedSplit]:
    """Opens the splits `train` and `validation` of a data set that TFDS has prepared as ArrayRecord files.

    Raises:
        FileNotFoundError: if the data set is not prepared.
        ValueError: if it is not in the ArrayRecord format.
    """
    tfds = in_memory.import_tfds()
    builder = tfds.builder(name, data_dir=data_dir)
    if not builder.is_prepared():
        raise FileNotFoundError(
            f'Data set {name!r} is not in {builder.data_path}. Put the files that its licence requires '
            f'you to download into DIR/downloads/manual, run `tfds build {name} --data_dir=DIR '
            '--file_format=array_record`, and set the environment variable TFDS_DATA_DIR, or '
            '--config.data_dir, to DIR.'
        )

    def parse(record):
        return builder.info.features.deserialize_example(
            record, decoders={'image': tfds.decode.SkipDecoding()}
        )

    def open_split(split: str) -> StreamedSplit:
        records = builder.as_data_source(
            split=split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
        )
        return StreamedSplit(size, records, parse)

    try:
        return open_split('train'), open_split('validation')
    except NotImplementedError as error:  # from TFDS, for TFRecord files
        raise ValueError(
            f'Data set {name!r} in {builder.data_path} must be ArrayRecord files, whose examples can be '
            'read in any order. With apache-beam installed, run `tfds convert_format --dataset_version_dir='
            f'{builder.data_path} --out_file_format=array_record --out_dir=DIR/{name}/'
            f'{builder.version}` and set TFDS_DATA_DIR, or --config.data_dir, to DIR.'
        ) from error


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
