"""scikit-learn's 1,797 handwritten digits of 8×8 pixels, the test part of UCI's: nothing to download."""

import hashlib

import numpy as np
import sklearn.datasets
import sklearn.model_selection

__all__ = ['read', 'split_indices']

_NUM_TRAIN = 1000
_GREY_SCALE = 15  # 16 grey levels above black use the range of a byte, 16 · 15 = 240


def read(split: str) -> dict[str, np.ndarray]:
    """'train' or 'test' in a fixed order: `image`, uint8 [N, 8, 8, 1], and `label`, int32 [N]."""
    digits = sklearn.datasets.load_digits()
    indices = split_indices()[split == 'test']
    # The order in which TFDS shuffles them: a seed means the batches that it has always meant.
    order = sorted(indices.tolist(), key=lambda index: hashlib.md5(f'{split}{index}'.encode()).digest())
    images = (digits.images[order] * _GREY_SCALE).astype(np.uint8)
    return {'image': images[..., np.newaxis], 'label': digits.target[order].astype(np.int32)}


def split_indices() -> tuple[np.ndarray, np.ndarray]:
    """The fixed split as positions in scikit-learn's `load_digits()`: int64 [1000] and int64 [797]."""
    labels = sklearn.datasets.load_digits().target
    train, test = sklearn.model_selection.train_test_split(
        np.arange(len(labels)), train_size=_NUM_TRAIN, stratify=labels, random_state=0
    )
    return train, test
