"""TFDS builder for scikit-learn's 8×8 handwritten digits: real images, with nothing to download.

Importing this registers `digits`.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import sklearn.datasets
import sklearn.model_selection
import tensorflow_datasets as tfds

__all__ = ['Digits', 'split_indices']

_DESCRIPTION = """\
The 1,797 handwritten digits that come with scikit-learn: 8x8 grey images in 10 classes, the test
part of UCI's "Optical Recognition of Handwritten Digits". Grey levels 0 to 16 are stored times 15,
so that they use the range of a byte and lose nothing. The split into 1,000 training and 797 test
images is stratified and fixed.
"""

_NUM_CLASSES = 10
_NUM_TRAIN = 1000
_GREY_SCALE = 15  # 16 grey levels above black, 16 · 15 = 240


class Digits(tfds.core.GeneratorBasedBuilder):
    """Features: `image` uint8 [8, 8, 1] with values 0, 15, …, 240; `label` int64 in 0 … 9."""

    VERSION = tfds.core.Version('1.0.0')
    RELEASE_NOTES = {'1.0.0': 'A stratified split of 1,000 training and 797 test images.'}  # noqa: RUF012

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=_DESCRIPTION,
            features=tfds.features.FeaturesDict(
                {
                    'image': tfds.features.Image(shape=(8, 8, 1), dtype=np.uint8),
                    'label': tfds.features.ClassLabel(num_classes=_NUM_CLASSES),
                }
            ),
            supervised_keys=('image', 'label'),
            homepage='https://archive.ics.uci.edu/dataset/80/',
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager  # The images are part of the scikit-learn package.
        train, test = split_indices()
        return {
            'train': self._generate_examples(train),
            'test': self._generate_examples(test),
        }

    def _generate_examples(self, indices: np.ndarray) -> Iterator[tuple[int, dict[str, Any]]]:
        digits = sklearn.datasets.load_digits()
        images = (digits.images * _GREY_SCALE).astype(np.uint8)[..., np.newaxis]
        for index in indices:
            yield int(index), {'image': images[index], 'label': int(digits.target[index])}


def split_indices() -> tuple[np.ndarray, np.ndarray]:
    """The fixed split as positions in scikit-learn's `load_digits()`: int64 [1000] and int64 [797].

    The tests pin it with a checksum: if a scikit-learn release ever drew a different split, published numbers
    would no longer be comparable and `VERSION` would have to change.
    """
    labels = sklearn.datasets.load_digits().target
    train, test = sklearn.model_selection.train_test_split(
        np.arange(len(labels)), train_size=_NUM_TRAIN, stratify=labels, random_state=0
    )
    return train, test
