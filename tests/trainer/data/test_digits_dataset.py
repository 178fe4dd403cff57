"""The digits data set: scikit-learn's images, byte for byte, in a split that never changes."""

import zlib

import numpy as np
import pytest
import sklearn.datasets
import sklearn.model_selection

from def_jax.trainer.data.catalogue import DATASETS
from def_jax.trainer.data.digits import split_indices
from def_jax.trainer.data.in_memory import load_dataset


@pytest.fixture(scope='module')
def splits():
    return load_dataset('digits')


def test_images_are_sklearns_byte_for_byte_in_the_published_split(splits):
    digits = sklearn.datasets.load_digits()
    images, indices = (15 * digits.images).astype(np.uint8), split_indices()
    expected = sklearn.model_selection.train_test_split(
        np.arange(1797), train_size=1000, stratify=digits.target, random_state=0
    )
    for found, each in zip(indices, expected, strict=True):
        np.testing.assert_array_equal(found, np.sort(each))
    for split, chosen, size in zip(splits, indices, (1000, 797), strict=True):
        assert (split.arrays['image'].shape, split.arrays['image'].dtype) == ((size, 8, 8, 1), np.uint8)
        assert (split.arrays['label'].shape, split.arrays['label'].dtype) == ((size,), np.int32)
        found = zip(map(bytes, split.arrays['image']), split.arrays['label'].tolist(), strict=True)
        assert dict(found) == {bytes(images[i]): digits.target[i] for i in chosen}  # no two are alike


def test_the_order_never_changes(splits):
    """A seed means the same batches everywhere only while the order stays."""
    assert zlib.crc32(splits[0].arrays['label'].astype('<i4').tobytes()) == 3458140105


def test_mean_and_std_are_those_of_the_training_images(splits):
    pixels = splits[0].arrays['image'] / 255
    np.testing.assert_allclose(DATASETS['digits'].mean, pixels.mean((0, 1, 2)), atol=5e-5)
    np.testing.assert_allclose(DATASETS['digits'].std, pixels.std((0, 1, 2)), atol=5e-5)
