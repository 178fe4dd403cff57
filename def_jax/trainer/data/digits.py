"""scikit-learn's 1,797 handwritten digits of 8×8 pixels, the test part of UCI's: nothing to download.

scikit-learn's file is read without importing it, which takes longer than all other imports of the trainer.
"""

import base64
import hashlib
import importlib.util
from pathlib import Path

import numpy as np

__all__ = ['read', 'split_indices']

_SIZE = 1797
_GREY_SCALE = 15  # 16 grey levels above black use the range of a byte, 16 · 15 = 240
# A bit for each digit: whether it is among the 797 for testing. The split is that of scikit-learn's
# `train_test_split(range(1797), train_size=1000, stratify=labels, random_state=0)`.
_TEST = (
    'yDhEyrXmcNEZVm0h12JNHtooDhMqtACvJyweCDEYlh4B0DkypjH+oZLDnvRCKE/ftEQXLslCzuJKITCaYAbYpXnroTAJWI3FhZBC'
    'H+CQEQVK6AHxHgE2rswJBfo2lgzDu4U8p6bebkIkEC/L1GgFprn9EhLyceVAsSxwTpw376fSF0FUyEBIYqmknKpUQfZfhWPuiZOK'
    'z5LtisWiBQaPYiEJ8gLB0f2M08hJ+ZUNls4hAoRYqPVyM6w5IclNzMhuimEy0yqygwmyrkAtpsclyO9wgdjIpBRShjJKEpU8vB1g'
)


def read(split: str) -> dict[str, np.ndarray]:
    """'train' or 'test' in a fixed order: `image`, uint8 [N, 8, 8, 1], and `label`, int32 [N]."""
    table = _table()
    indices = split_indices()[split == 'test']
    # The order in which TFDS shuffles them: a seed means the batches that it has always meant.
    order = sorted(indices.tolist(), key=lambda index: hashlib.md5(f'{split}{index}'.encode()).digest())
    images = (table[order, :-1] * _GREY_SCALE).astype(np.uint8)
    return {'image': images.reshape(-1, 8, 8, 1), 'label': table[order, -1].astype(np.int32)}


def split_indices() -> tuple[np.ndarray, np.ndarray]:
    """The fixed split as positions in scikit-learn's `load_digits()`: int64 [1000] and int64 [797]."""
    is_test = np.unpackbits(np.frombuffer(base64.b64decode(_TEST), np.uint8), count=_SIZE)
    return np.flatnonzero(is_test == 0), np.flatnonzero(is_test)


def _table() -> np.ndarray:
    """A digit a row: 64 grey levels, 0 to 16, and the label."""
    found = importlib.util.find_spec('sklearn')
    if found is None or found.origin is None:
        raise ValueError("dataset='digits' needs scikit-learn's file. Run pip install 'def_jax[training]'.")
    path = Path(found.origin).parent / 'datasets/data/digits.csv.gz'
    return np.loadtxt(path, delimiter=',', dtype=np.int64)
