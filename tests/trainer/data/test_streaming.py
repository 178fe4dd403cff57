"""Streaming: images and labels of real files, at ImageNet's size; crops; errors. Batches: test_splits.py."""

import dataclasses
import functools
import itertools

import numpy as np
import PIL.Image
import pytest
import training_fixtures as fixtures
from toy_images import NAME, NUM_EXAMPLES, prepared

from def_jax.trainer.data import streaming
from def_jax.trainer.data.catalogue import DATASETS

IMAGENET = DATASETS['imagenet2012']


@pytest.fixture(scope='module')
def train(tmp_path_factory):
    return toy_train_split(tmp_path_factory.getbasetemp())


@functools.cache
def toy_train_split(folder):
    return streaming.open_dataset(NAME, 8, prepared(folder))[0]


def batches(split, count, **changes):
    arguments = {'seed': 3, 'first_step': 0, 'batch_size': 6, 'num_workers': 3} | changes
    return list(itertools.islice(split.train_batches(**arguments), count))


def test_a_batch_holds_the_images_of_its_labels(train):
    for batch in batches(train, 3):
        assert (batch['image'].shape, batch['image'].dtype) == ((3, 2, 8, 8, 3), np.uint8)
        assert (batch['label'].shape, batch['label'].dtype) == ((3, 2), np.int32)
        np.testing.assert_array_equal((batch['image'].mean(axis=(2, 3, 4)) + 2) // 10, batch['label'])


def test_a_label_that_is_no_class_is_refused_when_it_is_read(train):
    """Such as -1, by which TFDS says that an example has none."""
    few = dataclasses.replace(train, num_classes=NUM_EXAMPLES - 1)
    with fixtures.refused(rf"^labels of the split 'train' must be .*but one is {NUM_EXAMPLES - 1}"):
        batches(few, 5)


def test_crops_differ_by_seed_and_epoch(train):
    def images(**changes):
        (batch,) = batches(train, 1, batch_size=NUM_EXAMPLES, num_workers=1, **changes)
        return batch['image'][0, np.argsort(batch['label'][0])]

    first = images()
    for other in (images(first_step=1), images(seed=4)):
        assert not np.array_equal(first, other)


def test_random_boxes_are_drawn_as_torchvisions():
    """8 to 100 % of the area, ratios of 3/4 to 4/3, as often wide as high, anywhere in the image."""
    rng, width, height = np.random.default_rng(0), 400, 300
    boxes = np.array([streaming._random_box(width, height, rng) for _ in range(2000)])
    left, top, right, bottom = boxes.T
    assert left.min() == top.min() == 0 and right.max() == width and bottom.max() == height
    areas, ratios = (right - left) * (bottom - top) / (width * height), (right - left) / (bottom - top)
    assert 0.079 < areas.min() < 0.09 and 0.95 < areas.max() <= 1
    assert 0.74 < ratios.min() < 0.76 and 1.32 < ratios.max() < 1.35
    assert abs(np.log(ratios[areas < 0.5]).mean()) < 0.02
    free = right - left < width
    assert abs((left[free] / (width - right + left)[free]).mean() - 0.5) < 0.02


def test_of_narrow_images_the_centre_is_taken():
    """8 % of the area do not fit with any of the ratios."""
    for width, height, box in ((400, 10, (193, 0, 206, 10)), (10, 400, (0, 193, 10, 206))):
        assert streaming._random_box(width, height, np.random.default_rng(0)) == box


def test_the_centre_of_test_images_is_taken_at_imagenets_size():
    """A ramp of 400 pixels is 341 wide when its shorter side has 256, and keeps the columns 58 to 281."""
    ramp = np.tile(np.arange(400)[:, None] * (255 / 399), (300, 1, 3)).astype(np.uint8)
    for pixels, axis in ((ramp, 1), (ramp.swapaxes(0, 1), 0)):
        cropped = np.asarray(streaming._center_crop(224, PIL.Image.fromarray(pixels)), int)
        assert cropped.shape == (224, 224, 3)
        expected = ((np.arange(58, 282) + 0.5) * 400 / 341 - 0.5) * 255 / 399
        assert np.abs(cropped.mean((1 - axis, 2)) - expected).max() < 1.5
    assert IMAGENET.crop_padding == 0 and IMAGENET.flip  # the random crop is made when files are read


def test_data_sets_that_are_absent_or_can_be_read_in_order_only(tmp_path):
    build = '(?s:.*)DIR/downloads/manual.*tfds build imagenet2012 --data_dir=DIR --file_format=array_record'
    with pytest.raises(FileNotFoundError, match=f"^Data set 'imagenet2012' is not in {tmp_path}/{build}"):
        streaming.open_dataset('imagenet2012', 224, tmp_path)
    with pytest.raises(ValueError, match=r'must be ArrayRecord files, .* `tfds convert_format'):
        streaming.open_dataset(NAME, 8, prepared(tmp_path, 'tfrecord'))
