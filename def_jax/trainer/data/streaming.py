"""ImageNet, read during training: too large for memory, but its batches too are functions of seed and step.

TFDS's ArrayRecord files allow random access, so an epoch is a permutation of the whole training set.
"""

import dataclasses
import io
import itertools
import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageOps

from def_jax.trainer.data.dataset import check_labels, digest_of
from def_jax.trainer.data.order import Readable, train_positions
from def_jax.trainer.data.prepared import import_tfds, prepared_builder

__all__ = ['StreamedSplit', 'open_dataset']

_MARKED = 16  # examples of a split that its checksum reads
_ATTEMPTS = 10  # to draw a crop that fits the image
Box = tuple[int, int, int, int]  # left, top, right, bottom


@dataclasses.dataclass(frozen=True, eq=False)
class StreamedSplit(Readable):
    """The examples of one split, on disk, in TFDS's order."""

    size: int  # the height and width to which images are cropped and resized
    records: Any  # has a length and, by a list of positions, dicts with `image`, a JPEG file, and `label`
    num_classes: int
    name: str  # TFDS's, of the whole split
    start: int = 0  # the position of the first example to use
    stop: int | None = None  # that after the last; None for all

    def __len__(self) -> int:
        return (len(self.records) if self.stop is None else self.stop) - self.start

    @property
    def checksum(self) -> str:
        """Of some examples as they are stored, from all over the split, for `fingerprint`."""
        positions = np.linspace(self.start, self.start + len(self) - 1, _MARKED).astype(int).tolist()
        found = self.records.__getitems__(positions)
        files = {str(at): np.frombuffer(x['image'], np.uint8) for at, x in enumerate(found)}
        return digest_of(files | {'label': [int(x['label']) for x in found]})

    def part(self, start: int, stop: int) -> 'StreamedSplit':
        """The examples at positions `start` to `stop` - 1 of this split."""
        return dataclasses.replace(self, start=self.start + start, stop=self.start + stop)

    def train_batches(self, *, first_step: int, **options: Any) -> Iterator[dict[str, np.ndarray]]:
        """The batches of `first_step` and all later steps, cropped as by `RandomResizedCrop`."""
        for step in itertools.count(first_step):
            epoch, positions = train_positions(len(self), step=step, **options)

            def crop(image: PIL.Image.Image, position: int, epoch: int = epoch) -> PIL.Image.Image:
                # It depends on neither the order nor the worker.
                box = _random_box(*image.size, np.random.default_rng((options['seed'], epoch, position)))
                return image.crop(box).resize((self.size, self.size), PIL.Image.Resampling.BILINEAR)

            yield self._read(positions, crop)

    def take(self, positions: np.ndarray) -> dict[str, np.ndarray]:
        """The centres of the images at these positions, int64 [...], as testing takes them."""
        return self._read(positions, lambda image, position: _center_crop(self.size, image))

    def _read(self, positions: np.ndarray, crop: Callable[..., PIL.Image.Image]) -> dict[str, np.ndarray]:
        """Threads decode the images, and crop each by a function of it and its position."""

        def read(example: dict[str, Any], position: int) -> np.ndarray:
            with PIL.Image.open(io.BytesIO(example['image'])) as image:
                return np.asarray(crop(image.convert('RGB'), position))

        places = positions.ravel().tolist()
        found = self.records.__getitems__([self.start + place for place in places])
        with ThreadPoolExecutor(thread_name_prefix='images') as pool:
            images = np.stack(list(pool.map(read, found, places)))
        labels = np.array([each['label'] for each in found])
        check_labels(self.name, labels, self.num_classes)
        return {
            'image': images.reshape(*positions.shape, *images.shape[1:]),
            'label': labels.reshape(positions.shape).astype(np.int32),
        }


def open_dataset(
    name: str, size: int, data_dir: str | os.PathLike[str] | None = None
) -> tuple[StreamedSplit, StreamedSplit]:
    """The splits `train` and `validation` of a data set that TFDS has prepared as ArrayRecord files."""
    builder, decoders = prepared_builder(name, data_dir), {'image': import_tfds().decode.SkipDecoding()}
    classes = builder.info.features['label'].num_classes
    try:
        train, test = (
            StreamedSplit(size, builder.as_data_source(split=split, decoders=decoders), classes, split)
            for split in ('train', 'validation')
        )
    except NotImplementedError as error:  # from TFDS, for TFRecord files
        raise ValueError(
            f'Data set {name!r} in {builder.data_path} must be ArrayRecord files, read in any order. With '
            'apache-beam installed, run `tfds convert_format --out_file_format=array_record '
            f'--dataset_version_dir={builder.data_path} --out_dir=DIR/{name}/{builder.version}` and set '
            'TFDS_DATA_DIR, or --config.data_dir, to DIR.'
        ) from error
    return train, test


def _random_box(width: int, height: int, rng: np.random.Generator) -> Box:
    """The part that is kept. Source: `torchvision.transforms.RandomResizedCrop.get_params`."""
    for _ in range(_ATTEMPTS):
        area, ratio = width * height * rng.uniform(0.08, 1), math.exp(rng.uniform(-1, 1) * math.log(4 / 3))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = (int(rng.integers(rest + 1)) for rest in (width - w, height - h))
            return left, top, left + w, top + h
    # The image is long and narrow: its centre, as long as the aspect ratio allows.
    w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def _center_crop(size: int, image: PIL.Image.Image) -> PIL.Image.Image:
    """The centre, 7/8 of the shorter side: 224 of 256 pixels."""
    return PIL.ImageOps.fit(image, (size, size), PIL.Image.Resampling.BILINEAR, bleed=1 / 16)
