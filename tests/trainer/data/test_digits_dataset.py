"""The digits data set: scikit-learn's images, byte for byte, in a split that never changes."""

import zlib

import numpy as np
import pytest
import sklearn.datasets
import tensorflow_datasets as tfds
import training_fixtures as fixtures

from def_jax.trainer.data.catalogue import DATASETS
from def_jax.trainer.data.digits import Digits, split_indices
from def_jax.trainer.data.in_memory import load_dataset


@pytest.fixture(scope='module')
def splits(tmp_path_factory):
    return load_dataset('digits', fixtures.prepared_digits(tmp_path_factory.getbasetemp()))


def as_pairs(split):
    """Pixels, as bytes, to label: the images are all different, so the pixels name an image."""
    arrays = split.arrays
    return {
        image.tobytes(): int(label) for image, label in zip(arrays['image'], arrays['label'], strict=True)
    }


def test_images_are_sklearns_byte_for_byte_in_the_published_split(splits):
    digits = sklearn.datasets.load_digits()
    images, indices = (15 * digits.images).astype(np.uint8), split_indices()
    assert zlib.crc32(np.sort(indices[1]).astype('<i4').tobytes()) == 3668016001
    assert sorted([*indices[0], *indices[1]]) == list(range(1797))
    for split, chosen, size in zip(splits, indices, (1000, 797), strict=True):
        assert (split.arrays['image'].shape, split.arrays['image'].dtype) == ((size, 8, 8, 1), np.uint8)
        assert (split.arrays['label'].shape, split.arrays['label'].dtype) == ((size,), np.int32)
        assert as_pairs(split) == {images[i].tobytes(): int(digits.target[i]) for i in chosen}
    train, test = (np.bincount(split.arrays['label'], minlength=10) for split in splits)
    assert np.abs(train - (train + test) * 1000 / 1797).max() < 1  # stratified


def test_order_is_the_same_at_every_preparation(splits, tmp_path, monkeypatch):
    prepare = tfds.core.DatasetBuilder.download_and_prepare

    def lose_the_race(self):  # to another process
        prepare(self)
        raise FileExistsError(self.data_path)

    monkeypatch.setattr(tfds.core.DatasetBuilder, 'download_and_prepare', lose_the_race)
    again = load_dataset('digits', tmp_path)
    monkeypatch.undo()
    monkeypatch.setattr(Digits, '_generate_examples', lambda *_: pytest.fail('prepared again'))
    for found in (again, load_dataset('digits', tmp_path)):
        for split, other in zip(splits, found, strict=True):
            np.testing.assert_array_equal(split.arrays['image'], other.arrays['image'])
            np.testing.assert_array_equal(split.arrays['label'], other.arrays['label'])
    # TFDS's own shuffle at preparation, from the examples' keys: classes are mixed.
    assert len(set(splits[0].arrays['label'][:50].tolist())) == 10
    # A seed means the same batches everywhere only while this order stays.
    assert zlib.crc32(splits[0].arrays['label'].astype('<i4').tobytes()) == 3458140105


def test_mean_and_std_are_those_of_the_training_images(splits):
    pixels = splits[0].arrays['image'] / 255
    np.testing.assert_allclose(DATASETS['digits'].mean, pixels.mean((0, 1, 2)), atol=5e-5)
    np.testing.assert_allclose(DATASETS['digits'].std, pixels.std((0, 1, 2)), atol=5e-5)
