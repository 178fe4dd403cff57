"""Data in memory: the order of training images, reading. What all splits promise: test_splits.py."""

import functools
import shutil
import sys
from unittest import mock

import numpy as np
import pytest

from def_jax.trainer.data import order
from def_jax.trainer.data.catalogue import DATASETS
from def_jax.trainer.data.in_memory import Arrays, load_dataset, prepared_builder
from def_jax.trainer.data.order import train_batch


def test_permutation_depends_on_seed_and_epoch_alone_and_is_drawn_once():
    permuted = functools.partial(order.epoch_permutation, num_examples=100)
    assert sorted(permuted(3, 4)) == list(range(100))
    np.testing.assert_array_equal(permuted(3, 4), permuted(3, 4))
    orders = {tuple(permuted(seed, epoch)) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16  # (0, 1) and (1, 0) differ, too
    order._cached_permutation.cache_clear()
    split = Arrays({'label': np.arange(24)})
    for step in range(9):  # what a caller does to a batch stays its own
        train_batch(split, seed=0, step=step, batch_size=8, num_workers=2)['label'][:] = -1
    assert order._cached_permutation.cache_info().misses == 3
    assert split.arrays['label'].tolist() == list(range(24))


@pytest.mark.parametrize('name', ['cifar10', 'cifar100'])
def test_cifar_is_as_tfds_describes_it(name):
    import tensorflow_datasets as tfds

    with tfds.testing.mock_data():
        features = tfds.builder(name).info.features
    assert features['image'].shape == DATASETS[name].image_shape
    assert features['label'].num_classes == DATASETS[name].num_classes


def test_absent_data_set(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    fails = mock.Mock(side_effect=ConnectionError('no route to host'))
    monkeypatch.setattr(tfds.core.DatasetBuilder, 'download_and_prepare', fails)
    with pytest.raises(FileNotFoundError) as error:
        load_dataset('cifar10', tmp_path)
    message = str(error.value)
    assert message.startswith(f"Data set 'cifar10' is not in {tmp_path}/cifar10/3.")
    load = "tfds.load('cifar10', data_dir='DIR')"
    for part in ('(ConnectionError: no route to host)', load, 'TFDS_DATA_DIR', '--config.data_dir'):
        assert part in message
    assert isinstance(error.value.__cause__, ConnectionError)


def test_a_class_that_a_data_set_names_is_not_run(tmp_path, monkeypatch, data_dir):
    """TFDS would import its module; a user who has imported it may use it."""
    (tmp_path / 'code').mkdir()
    code = 'import tensorflow_datasets as tfds\nclass Image(tfds.features.Image):\n    pass\n'
    (tmp_path / 'code' / 'foreign_features.py').write_text(code)
    monkeypatch.syspath_prepend(tmp_path / 'code')
    shutil.copytree(data_dir / 'digits', tmp_path / 'data' / 'mine')
    (features,) = (tmp_path / 'data' / 'mine').rglob('features.json')
    text = features.read_text().replace('tensorflow_datasets.core.features.image_feature', 'foreign_features')
    features.write_text(text)
    for info in (tmp_path / 'data' / 'mine').rglob('dataset_info.json'):
        info.write_text(info.read_text().replace('"digits"', '"mine"'))
    with pytest.raises(ValueError, match=r"names the class 'foreign_features.Image', whose module would be"):
        prepared_builder('mine', tmp_path / 'data')
    assert 'foreign_features' not in sys.modules
    import foreign_features

    builder = prepared_builder('mine', tmp_path / 'data')
    assert type(builder.info.features['image']) is foreign_features.Image


def test_steps_per_epoch():
    assert [order.steps_per_epoch(20, size) for size in (1, 6, 10, 20)] == [20, 3, 2, 1]
    for size in (0, 21, -4):
        with pytest.raises(ValueError, match=rf'batch_size={size} must be between 1 and num_examples=20'):
            order.steps_per_epoch(20, size)
