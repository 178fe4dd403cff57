"""ImageNet, read during training: too large for memory, but its batches too are functions of seed and step.

TFDS's ArrayRecord files allow random access, so an epoch is a permutation of the whole training set.
"""

import collections
import dataclasses
import functools
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

from def_jax.trainer.data.fingerprint import digest_of
from def_jax.trainer.data.order import test_positions, train_positions
from def_jax.trainer.data.prepared import import_tfds, prepared_builder

__all__ = ['StreamedSplit', 'open_dataset']

_MARKED = 16  # examples of a split that its checksum reads
_ATTEMPTS = 10  # to draw a crop that fits the image
_BATCHES_AHEAD = 2
Box = tuple[int, int, int, int]  # left, top, right, bottom


@dataclasses.dataclass(frozen=True, eq=False)
class StreamedSplit:
    """The examples of one split, on disk, in TFDS's order."""

    size: int  # the height and width to which images are cropped and resized
    records: Any  # has a length and, by a list of positions, dicts with `image`, a JPEG file, and `label`
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

    def train_batches(self, *, seed: int, first_step: int, **options: Any) -> Iterator[dict[str, np.ndarray]]:
        """The batches of `first_step` and all later steps, read ahead, cropped as by `RandomResizedCrop`."""

        def crop(epoch: int, image: PIL.Image.Image, position: int) -> PIL.Image.Image:
            # It depends on neither the order nor the worker.
            box = _random_box(*image.size, np.random.default_rng((seed, epoch, position)))
            return image.crop(box).resize((self.size, self.size), PIL.Image.Resampling.BILINEAR)

        chosen = (
            train_positions(len(self), seed=seed, step=step, **options)
            for step in itertools.count(first_step)
        )
        return self._read((positions, functools.partial(crop, epoch)) for epoch, positions in chosen)

    def test_batches(self, **options: Any) -> Iterator[dict[str, np.ndarray]]:
        """One pass over the split, read ahead; `mask`, float32 [k, b], is 0 on padding in the last batch."""
        positions = test_positions(len(self), **options)
        crop = functools.partial(_center_crop, self.size)
        batches = self._read((np.where(each < len(self), each, 0), crop) for each in positions)
        for each, batch in zip(positions, batches, strict=True):
            yield batch | {'mask': (each < len(self)).astype(np.float32)}

    def _read(self, choices: Iterator[tuple[np.ndarray, Callable]]) -> Iterator[dict[str, np.ndarray]]:
        """Reads positions [k, b]; threads decode, and crop by a function of the image and its position."""
        waiting: collections.deque = collections.deque()
        with ThreadPoolExecutor(thread_name_prefix='images') as pool:
            try:
                for positions, crop in choices:
                    found = self.records.__getitems__((self.start + positions).ravel().tolist())
                    labels = np.array([each['label'] for each in found], np.int32).reshape(positions.shape)
                    files = [each['image'] for each in found]
                    images = pool.map(_decoded, files, itertools.repeat(crop), positions.ravel().tolist())
                    waiting.append((images, labels))
                    if len(waiting) > _BATCHES_AHEAD:
                        yield _stacked(*waiting.popleft())
                yield from itertools.starmap(_stacked, waiting)
            finally:
                pool.shutdown(wait=False, cancel_futures=True)


def open_dataset(
    name: str, size: int, data_dir: str | os.PathLike[str] | None = None
) -> tuple[StreamedSplit, StreamedSplit]:
    """The splits `train` and `validation` of a data set that TFDS has prepared as ArrayRecord files."""
    builder, decoders = prepared_builder(name, data_dir), {'image': import_tfds().decode.SkipDecoding()}
    try:
        train, test = (
            StreamedSplit(size, builder.as_data_source(split=split, decoders=decoders))
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


def _decoded(
    jpeg: bytes, crop: Callable[[PIL.Image.Image, int], PIL.Image.Image], position: int
) -> np.ndarray:
    with PIL.Image.open(io.BytesIO(jpeg)) as image:
        return np.asarray(crop(image.convert('RGB'), position))


def _stacked(images: Iterator[np.ndarray], labels: np.ndarray) -> dict[str, np.ndarray]:
    pixels = np.stack(list(images))
    return {'image': pixels.reshape(*labels.shape, *pixels.shape[1:]), 'label': labels}


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


def _center_crop(size: int, image: PIL.Image.Image, position: int) -> PIL.Image.Image:
    """The centre, 7/8 of the shorter side: 224 of 256 pixels."""
    del position
    return PIL.ImageOps.fit(image, (size, size), PIL.Image.Resampling.BILINEAR, bleed=1 / 16)
