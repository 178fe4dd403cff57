"""The data sets that a configuration can name, and how they are opened."""

import functools
import os
from collections.abc import Callable, Mapping

from def_jax.trainer.data import image_folder, in_memory, streaming
from def_jax.trainer.data.dataset import Dataset, DatasetSpec, Split
from def_jax.trainer.data.text import catalogue as text

__all__ = ['DATASETS', 'FACTORIES', 'open_images']

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


def open_images(name: str, data_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """Opens an image data set of `DATASETS`: in memory if it fits, otherwise streamed during training."""
    spec = DATASETS[name]
    opened: tuple[Split, Split] = (
        streaming.open_dataset(name, spec.image_shape[0], data_dir)
        if spec.streamed
        else in_memory.load_dataset(name, data_dir)
    )
    return Dataset(*opened, spec=spec, model_options={'num_classes': spec.num_classes}, unit='images')


FACTORIES: Mapping[str, Callable[..., Dataset]] = {
    **{name: functools.partial(open_images, name) for name in DATASETS},
    **text.TEXTS,
    'image_folder': image_folder.open_image_folder,
    'text_folder': text.open_text_folder,
    'tfds_images': image_folder.open_tfds_images,
    'tfds_text': text.open_text,
}
