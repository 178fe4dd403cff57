"""What the input pipelines need to know about each image data set."""

import dataclasses
from collections.abc import Mapping

__all__ = ['DATASETS', 'DatasetSpec']


@dataclasses.dataclass(frozen=True)
class DatasetSpec:
    """What the input pipeline needs to know about a data set of images.

    Attributes:
        name: its name in TFDS.
        image_shape: (H, W, C).
        num_classes: the number of labels.
        mean: each channel's mean over the training images, with pixels scaled to [0, 1].
        std: each channel's standard deviation, likewise.
        crop_padding: zero pixels added on each side before a training image is cropped.
        flip: whether training images are flipped horizontally at random.
        streamed: whether it is too large for memory and read during training, see `streaming`.
    """

    name: str
    image_shape: tuple[int, int, int]
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_padding: int
    flip: bool
    streamed: bool = False


_CIFAR10 = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
_CIFAR100 = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DATASETS: Mapping[str, DatasetSpec] = {
    spec.name: spec
    for spec in (
        DatasetSpec('digits', (8, 8, 1), 10, (0.2869,), (0.3535,), crop_padding=1, flip=False),
        DatasetSpec('cifar10', (32, 32, 3), 10, *_CIFAR10, crop_padding=4, flip=True),
        DatasetSpec('cifar100', (32, 32, 3), 100, *_CIFAR100, crop_padding=4, flip=True),
        # The random resized crop is made when the files are read.
        DatasetSpec(
            'imagenet2012', (224, 224, 3), 1000, *_IMAGENET, crop_padding=0, flip=True, streamed=True
        ),
    )
}
