"""A folder of images, a subfolder per class, or any images of TFDS, as a data set in memory."""

import os
from typing import Any

import numpy as np

from def_jax.checks import check_integer
from def_jax.trainer.data import in_memory
from def_jax.trainer.data.dataset import Dataset, DatasetSpec

__all__ = ['open_image_folder', 'open_tfds_images']

_SHUFFLE_SEED = 0  # of the order of the examples, which else would be that of the classes


def open_image_folder(
    folder: str | os.PathLike[str], image_size: int = 32, *, crop_padding: int = 4, flip: bool = True
) -> Dataset:
    """Reads JPEG or PNG files at FOLDER/SPLIT/CLASS/NAME into memory, through `tfds.ImageFolder`.

    Args:
        folder: contains the folders `train` and `test` and possibly `validation`, each with one folder per
            class.
        image_size: height and width of the images, in pixels. The shorter side of each image is resized to
            it, and the centre is cropped.
        crop_padding: zero pixels added on each side before a training image is cropped.
        flip: whether training images are flipped horizontally at random.

    Returns:
        The data set. Its order is a fixed permutation of the files, sorted by class and name, so the last
        examples, which may be held out, are of all classes.

    Raises:
        ValueError: if the image size is not positive, or the folder lacks a split, a class or images.
    """
    check_integer('image_size', image_size, 1, 'the edge of an image, in pixels')
    if not os.path.isdir(folder):
        raise ValueError(f'folder={str(folder)!r} is not a folder.')
    tfds = in_memory.import_tfds()
    try:
        builder = tfds.ImageFolder(os.fspath(folder), shape=(None, None, 3))
        found = {name: info.num_examples for name, info in builder.info.splits.items() if info.num_examples}
    except (OSError, ValueError) as error:
        raise ValueError(f'folder={str(folder)!r} cannot be read ({error}).') from error
    if missing := [name for name in ('train', 'test') if name not in found]:
        raise ValueError(
            f'folder={str(folder)!r} has no images in {" and ".join(f"{name}/CLASS/" for name in missing)}; '
            f'it has {", ".join(sorted(found)) or "none at all"}. Put JPEG or PNG files there.'
        )
    name = os.path.basename(os.path.abspath(folder))
    return _dataset(name, builder, {split: split for split in found}, image_size, crop_padding, flip)


def open_tfds_images(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    *,
    image_size: int = 32,
    train: str = 'train',
    validation: str = '',
    test: str = 'test',
    crop_padding: int = 4,
    flip: bool = True,
) -> Dataset:
    """Reads images of TFDS, with the features `image` and `label`, by their name in TFDS.

    Images are resized as by `open_image_folder`. Splits may be slices, such as 'train[:90%]', and
    `validation` may be empty for none.

    Raises:
        ValueError: if a feature or a split is missing, or the image size is not positive.
        FileNotFoundError: if the data set is missing and cannot be prepared.
    """
    check_integer('image_size', image_size, 1, 'the edge of an image, in pixels')
    builder = in_memory.prepared_builder(name, data_dir)
    if not {'image', 'label'} <= set(builder.info.features):
        raise ValueError(
            f'{name=} must have the features image and label, but has {sorted(builder.info.features)}.'
        )
    splits = {'train': train, 'validation': validation, 'test': test}
    return _dataset(name, builder, {k: v for k, v in splits.items() if v}, image_size, crop_padding, flip)


def _dataset(
    name: str, builder: Any, names: dict[str, str], image_size: int, crop_padding: int, flip: bool
) -> Dataset:
    splits = {role: _read(builder, split, image_size) for role, split in names.items()}
    pixels = splits['train'].arrays['image'] / 255
    spec = DatasetSpec(
        name=name,
        image_shape=pixels.shape[1:],
        num_classes=builder.info.features['label'].num_classes,
        mean=tuple(pixels.mean((0, 1, 2)).tolist()),
        std=tuple(np.maximum(pixels.std((0, 1, 2)), 1 / 255).tolist()),
        crop_padding=crop_padding,
        flip=flip,
    )
    return Dataset(
        train=splits['train'],
        test=splits['test'],
        validation=splits.get('validation'),
        spec=spec,
        model_options={'num_classes': spec.num_classes},
        unit='images',
    )


def _read(builder: Any, split: str, size: int) -> in_memory.Arrays:
    """One split in a fixed order."""
    import tensorflow as tf

    def cropped(example: dict[str, Any]) -> dict[str, Any]:
        image = tf.cast(example['image'], tf.float32)
        shape = tf.shape(image)[:2]
        resized = tf.maximum(tf.cast(tf.math.ceil(shape * size / tf.reduce_min(shape)), tf.int32), size)
        image = tf.image.resize_with_crop_or_pad(tf.image.resize(image, resized, antialias=True), size, size)
        return example | {'image': tf.cast(tf.clip_by_value(tf.round(image), 0, 255), tf.uint8)}

    data = builder.as_dataset(split=split, shuffle_files=False).map(cropped)
    examples = list(in_memory.import_tfds().as_numpy(data))
    examples.sort(key=lambda example: (example['label'], example.get('image/filename', b'')))
    order = np.random.default_rng(_SHUFFLE_SEED).permutation(len(examples))
    return in_memory.Arrays(
        {
            'image': np.stack([examples[i]['image'] for i in order]),
            'label': np.array([examples[i]['label'] for i in order], np.int32),
        }
    )
