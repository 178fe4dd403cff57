"""Whether processes train on the same examples."""

import hashlib
import json
from typing import Any

import numpy as np

from def_jax.trainer.data.dataset import Dataset, Split

__all__ = ['digest_of', 'fingerprint']

_EXAMPLES = 64  # of a split that has no checksum


def fingerprint(dataset: Dataset) -> str:
    """A digest of the splits, by their `checksum` or their first examples, and of what describes them."""
    splits = {'train': dataset.train, 'validation': dataset.validation, 'test': dataset.test}
    marks = {role: [len(split), _mark(split)] for role, split in splits.items() if split is not None}
    known = [marks, dataset.spec, dict(dataset.model_options), dict(dataset.about)]
    return hashlib.sha256(json.dumps(known, sort_keys=True, default=repr).encode()).hexdigest()


def _mark(split: Split) -> str:
    if checksum := getattr(split, 'checksum', ''):
        return checksum
    size = min(len(split), _EXAMPLES)
    return digest_of(next(iter(split.test_batches(batch_size=size, num_workers=1, workers=None))))


def digest_of(arrays: Any) -> str:
    """A digest of arrays by name: their dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.asarray(arrays[name])
        digest.update(f'{name} {array.dtype} {array.shape} '.encode())
        objects = array.dtype == object
        digest.update(repr(array.tolist()).encode() if objects else np.ascontiguousarray(array).data)
    return digest.hexdigest()
