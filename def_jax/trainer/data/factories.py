"""The data sets that a configuration can name, and how they are opened."""

import functools
import os
from collections.abc import Callable, Mapping

from def_jax.trainer.data import image_folder, in_memory, streaming
from def_jax.trainer.data.catalogue import DATASETS
from def_jax.trainer.data.dataset import Dataset
from def_jax.trainer.data.text.catalogue import TEXTS, open_text
from def_jax.trainer.data.text.folder import open_text_folder

__all__ = ['FACTORIES', 'open_images']


def open_images(name: str, data_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """Opens an image data set of the catalogue: in memory if it fits, otherwise streamed during training."""
    spec = DATASETS[name]
    train, test = (streaming.open_dataset if spec.streamed else in_memory.load_dataset)(spec, data_dir)
    return Dataset(
        train=train, test=test, spec=spec, model_options={'num_classes': spec.num_classes}, unit='images'
    )


FACTORIES: Mapping[str, Callable[..., Dataset]] = {
    **{name: functools.partial(open_images, name) for name in DATASETS},
    **TEXTS,
    'image_folder': image_folder.open_image_folder,
    'text_folder': open_text_folder,
    'tfds_images': image_folder.open_tfds_images,
    'tfds_text': open_text,
}
