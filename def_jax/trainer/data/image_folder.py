"""A folder of images, a subfolder per class, or any images of TFDS, as a data set in memory."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageOps
from absl import logging

from def_jax.ground.arguments import check_integer
from def_jax.trainer.data import in_memory
from def_jax.trainer.data.dataset import Dataset, DatasetSpec
from def_jax.trainer.data.prepared import examples, prepared_builder

__all__ = ['open_image_folder', 'open_tfds_images']

# What Pillow decodes by itself: for .eps it runs a program.
_SUFFIXES = ('.bmp', '.gif', '.jpeg', '.jpg', '.pgm', '.png', '.ppm', '.tif', '.tiff', '.webp')
_SPLITS = 'train', 'validation', 'test'
_SHUFFLE_SEED = 0  # of the order of the examples, which else would be that of the classes


def open_image_folder(
    folder: str | os.PathLike[str], image_size: int = 32, *, crop_padding: int = 4, flip: bool = True
) -> Dataset:
    """Reads image files (JPEG, PNG, WebP, TIFF, BMP, GIF) at FOLDER/SPLIT/CLASS/NAME into memory.

    Args:
        folder: contains the folders `train` and `test` and possibly `validation`, each with one folder per
            class. A folder without images is no class; hidden files and folders are left out, other files
            in those of classes and folders that are no split with a warning.
        image_size: height and width of the images, in pixels. The shorter side of each image, turned
            as its EXIF orientation says, is resized to it, and the centre is cropped.
        crop_padding: zero pixels added on each side before a training image is cropped.
        flip: whether training images are flipped horizontally at random.

    Returns:
        The data set. Its order is a fixed permutation of the files, sorted by class and name, so the last
        examples, which may be held out, are of all classes.

    Raises:
        ValueError: if the image size is not positive, there are no images to train on or to test, or of one
            class alone, one lies in a split but in no class, a class is tested but not trained on, or a file
            is no image.
    """
    check_integer('image_size', image_size, 1, 'the edge of an image, in pixels')
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise ValueError(f'folder={str(folder)!r} is not a folder.')
    files = {split: _images_in(root / split) for split in _SPLITS}
    for split in ('train', 'test'):
        if not files[split]:
            raise ValueError(
                f'folder={str(folder)!r} needs image files, such as JPEG, in {split}/CLASS/. Put some there.'
            )
    if others := sorted({path.name for path in root.glob('[!.]*') if path.is_dir()} - {*_SPLITS}):
        what = '%s of %s left out: its splits are the folders train, validation and test'
        logging.warning(what, ', '.join(others), root)
    classes = sorted({file.parent.name for file in files['train']})
    if len(classes) == 1:  # whatever is learned, the accuracy would be 100 %
        remedy = 'Sort its images into one folder per class'
        raise ValueError(f'{str(root / "train")!r} has one class alone, {classes[0]!r}. {remedy}.')
    for file in (*files['validation'], *files['test']):
        if file.parent.name not in classes:
            has = f'which has {", ".join(classes)}'
            raise ValueError(f'{str(file)!r} is of a class that train lacks, {has}. Rename or remove it.')

    def read(file: Path) -> dict[str, Any]:
        try:
            if not file.is_file():  # a pipe would be waited for
                raise ValueError('it is not a regular file')
            with PIL.Image.open(file) as image:
                if image.mode.startswith(('I', 'F')):
                    raise ValueError(f'its mode is {image.mode}: convert it to 8 bits a channel')
                upright = PIL.ImageOps.exif_transpose(image)
                pixels = _fitted(upright.convert('RGB'), image_size)
        except Exception as error:  # Pillow raises many types for a damaged file
            raise ValueError(f'{str(file)!r} cannot be read as an image ({error}). Remove it.') from error
        return {'image': pixels, 'label': classes.index(file.parent.name)}

    splits = {split: map(read, several) for split, several in files.items() if several}
    return _dataset(root.absolute().name, splits, len(classes), crop_padding, flip)


def _images_in(split: Path) -> list[Path]:
    """The images in the folders of a split, in order of class and name; a warning says what is left out."""
    within = [path for path in split.glob('[!.]*') if not path.is_dir()]
    if strays := sorted(file for file in within if file.suffix.lower() in _SUFFIXES):
        raise ValueError(f'{str(strays[0])!r} lies in no folder of a class. Move it into one, or remove it.')
    found = [*split.glob('[!.]*/[!.]*')]
    images = sorted(file for file in found if file.suffix.lower() in _SUFFIXES)
    if others := sorted({*found} - {*images}):
        what = '%s of the entries in %s/CLASS/ are left out, e.g. %s: images are files that end in %s'
        logging.warning(what, len(others), split, others[0], ', '.join(_SUFFIXES))
    return images


def open_tfds_images(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    *,
    image_size: int = 32,
    image: str = 'image',
    label: str = 'label',
    train: str = 'train',
    validation: str = '',
    test: str = 'test',
    crop_padding: int = 4,
    flip: bool = True,
) -> Dataset:
    """Reads images of TFDS by their name in TFDS; `image` and `label` name the features.

    Images are resized as by `open_image_folder`. Labels are classes or integers from 0; of these there are as
    many as the largest of the training split says. Splits may be slices, such as 'train[:90%]', and
    `validation` may be empty for none.

    Raises:
        ValueError: if a feature or a split is missing, a label is no class, or the image size is not
            positive.
        FileNotFoundError: if the data set is missing and cannot be prepared.
    """
    check_integer('image_size', image_size, 1, 'the edge of an image, in pixels')
    builder = prepared_builder(name, data_dir)
    features = builder.info.features
    for argument, feature in (('image', image), ('label', label)):
        if feature not in features:
            has = f'{name!r} has {sorted(features)}'
            raise ValueError(f'{argument}={feature!r} must be a feature of the data set, but {has}.')
    if not np.issubdtype(kind := features[label].np_dtype, np.integer):
        raise ValueError(f'{label=} must be a feature of classes or integers, but is {np.dtype(kind)}.')

    def resized(example: dict[str, Any]) -> dict[str, Any]:
        pixels = example[image]
        opened = PIL.Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
        return {'image': _fitted(opened, image_size), 'label': example[label]}

    splits = {
        role: sorted(map(resized, examples(builder, split)), key=lambda example: example['label'])
        for role, split in (('train', train), ('validation', validation), ('test', test))
        if split
    }
    largest = max((example['label'] for example in splits['train']), default=0)
    num_classes = getattr(features[label], 'num_classes', None) or int(largest) + 1
    return _dataset(name, splits, num_classes, crop_padding, flip)


def _fitted(image: PIL.Image.Image, size: int) -> np.ndarray:
    """The centre of an image whose shorter side is resized to `size`: uint8 [size, size, channels]."""
    pixels = np.asarray(PIL.ImageOps.fit(image, (size, size), PIL.Image.Resampling.BILINEAR))
    return pixels.reshape(size, size, -1)


def _dataset(
    name: str, splits: Mapping[str, Iterable[Mapping]], num_classes: int, crop_padding: int, flip: bool
) -> Dataset:
    """A data set of examples that are sorted by class: they are put into a fixed order of all classes."""
    opened: dict[str, Any] = {}
    for role, found in splits.items():
        arrays = in_memory.stacked(found)
        order = np.random.default_rng(_SHUFFLE_SEED).permutation(len(arrays['label']))
        opened[role] = in_memory.Arrays({key: array[order] for key, array in arrays.items()})
    pixels = opened['train'].arrays['image']
    channels = np.moveaxis(pixels, -1, 0)  # one after the other: in float64 all are eight times as large
    spec = DatasetSpec(
        name=name,
        image_shape=pixels.shape[1:],
        num_classes=num_classes,
        mean=tuple(float(each.mean()) / 255 for each in channels),
        std=tuple(max(float(each.std()), 1) / 255 for each in channels),
        crop_padding=crop_padding,
        flip=flip,
    )
    return Dataset(**opened, spec=spec, model_options={'num_classes': num_classes}, unit='images')
