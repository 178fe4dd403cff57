"""What the input pipelines need to know about each data set."""

import dataclasses
from collections.abc import Mapping

from def_jax.checks import look_up

__all__ = ['DATASETS', 'DatasetSpec', 'get_dataset_spec']


@dataclasses.dataclass(frozen=True)
class DatasetSpec:
    """What the input pipeline needs to know about a data set.

    Attributes:
        name: its name in `DATASETS`.
        tfds_name: its name in TFDS.
        image_shape: (H, W, C).
        num_classes: the number of labels.
        mean: each channel's mean over the training images, with pixels scaled to [0, 1].
        std: each channel's standard deviation, likewise.
        crop_padding: zero pixels added on each side before a training image is cropped.
        flip: whether training images are flipped horizontally at random.
        streamed: whether it is too large for memory and read during training, see `streaming`.
    """

    name: str
    tfds_name: str
    image_shape: tuple[int, int, int]
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_padding: int
    flip: bool
    streamed: bool = False


DATASETS: Mapping[str, DatasetSpec] = {
    spec.name: spec
    for spec in (
        DatasetSpec(
            name='digits',
            tfds_name='digits',
            image_shape=(8, 8, 1),
            num_classes=10,
            mean=(0.2869,),
            std=(0.3535,),
            crop_padding=1,
            flip=False,
        ),
        DatasetSpec(
            name='cifar10',
            tfds_name='cifar10',
            image_shape=(32, 32, 3),
            num_classes=10,
            mean=(0.4914, 0.4822, 0.4465),
            std=(0.2470, 0.2435, 0.2616),
            crop_padding=4,
            flip=True,
        ),
        DatasetSpec(
            name='cifar100',
            tfds_name='cifar100',
            image_shape=(32, 32, 3),
            num_classes=100,
            mean=(0.5071, 0.4865, 0.4409),
            std=(0.2673, 0.2564, 0.2762),
            crop_padding=4,
            flip=True,
        ),
        DatasetSpec(
            name='imagenet2012',
            tfds_name='imagenet2012',
            image_shape=(224, 224, 3),
            num_classes=1000,
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
            crop_padding=0,  # the random resized crop is made when the files are read
            flip=True,
            streamed=True,
        ),
    )
}


def get_dataset_spec(name: str) -> DatasetSpec:
    """Looks up a data set in `DATASETS`.

    Args:
        name: a key of `DATASETS`.

    Returns:
        The data set's description.

    Raises:
        ValueError: if the name is unknown.

    >>> get_dataset_spec('cifar10').image_shape
    (32, 32, 3)
    """
    return look_up('dataset', name, DATASETS)
