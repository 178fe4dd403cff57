"""Augmentation and standardisation, against NumPy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from def_jax.trainer.data import augmentation
from def_jax.trainer.data.catalogue import DATASETS
from def_jax.trainer.data.dataset import DatasetSpec

# Neither square nor grey, so that no two axes can be taken for each other.
SPEC = DatasetSpec(
    'toy', image_shape=(6, 5, 2), num_classes=3, mean=(0.3, 0.6), std=(0.2, 0.5), crop_padding=2, flip=True
)


def numpy_crops(images, spec):
    """Every crop and flip of each image, standardised: float32 [choices, B, H, W, C]."""
    height, width, _ = spec.image_shape
    padding = spec.crop_padding
    padded = np.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    offsets = range(2 * padding + 1)
    crops = [padded[:, i : i + height, j : j + width] for i in offsets for j in offsets]
    if spec.flip:
        crops += [crop[:, :, ::-1] for crop in crops]
    return ((np.stack(crops) / 255 - np.array(spec.mean)) / np.array(spec.std)).astype(np.float32)


@pytest.mark.parametrize('spec', [SPEC, DATASETS['digits']], ids=['flipped', 'not flipped'])
def test_augment_makes_every_crop_and_flip(spec, monkeypatch):
    """One image for each way in which the draws of the corner and of the mirror can come out."""
    offsets = range(2 * spec.crop_padding + 1)
    choices = [*itertools.product((False, True)[: 1 + spec.flip], offsets, offsets)]
    images = np.random.default_rng(0).integers(1, 256, (len(choices), *spec.image_shape), np.uint8)
    corners = np.array([choice[1:] for choice in choices])

    def randint(key, shape, low, high):
        assert (shape, low, high) == (corners.shape, 0, len(offsets))
        return jnp.asarray(corners)

    def bernoulli(key, shape):  # a half, unless another probability is given
        return jnp.asarray([choice[0] for choice in choices]).reshape(shape)

    monkeypatch.setattr(jax.random, 'randint', randint)
    monkeypatch.setattr(jax.random, 'bernoulli', bernoulli)
    augmented = np.asarray(augmentation.augment(jax.random.key(1), images, spec))

    assert augmented.dtype == np.float32
    crops = numpy_crops(images, spec)
    expected = [crops[choice, choice] for choice in range(len(choices))]
    np.testing.assert_allclose(augmented, np.stack(expected), atol=1e-5)


def test_how_each_data_set_is_augmented():
    """A digit's mirror image is another sign; the rest as usual, ImageNet's crops as its files are read."""
    found = {name: (spec.crop_padding, spec.flip) for name, spec in DATASETS.items()}
    usual = {'cifar10': (4, True), 'cifar100': (4, True), 'imagenet2012': (0, True)}
    assert found == usual | {'digits': (1, False)}


def test_image_errors():
    message = r"images.dtype=.*, images.shape=.* must be uint8 \[B, 6, 5, 2\] for data set 'toy'"
    for shape, dtype in (((4, 6, 5, 2), np.float32), ((4, 5, 6, 2), np.uint8)):
        images = np.zeros(shape, dtype)
        with pytest.raises(ValueError, match=message):
            augmentation.standardise(images, SPEC)
        with pytest.raises(ValueError, match=message):
            augmentation.augment(jax.random.key(0), images, SPEC)
