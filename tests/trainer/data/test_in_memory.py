"""Data in memory: the order of training images, reading, errors. What all splits promise: test_splits.py."""

import dataclasses
import functools

import numpy as np
import pytest
import training_fixtures as fixtures

from def_jax.trainer.data import order
from def_jax.trainer.data.catalogue import DATASETS
from def_jax.trainer.data.in_memory import Arrays, load_dataset
from def_jax.trainer.data.order import train_batch


def numbered_split(num_examples):
    return Arrays({'label': np.arange(num_examples)})


# --- The order of training images ---


def test_permutation_depends_on_seed_and_epoch_alone_and_is_drawn_once():
    permuted = functools.partial(order.epoch_permutation, num_examples=100)
    assert sorted(permuted(3, 4)) == list(range(100))
    np.testing.assert_array_equal(permuted(3, 4), permuted(3, 4))
    orders = {tuple(permuted(seed, epoch)) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16  # (0, 1) and (1, 0) differ, too
    order._cached_permutation.cache_clear()
    split = numbered_split(24)
    for step in range(9):  # what a caller does to a batch stays its own
        train_batch(split, seed=0, step=step, batch_size=8, num_workers=2)['label'][:] = -1
    assert order._cached_permutation.cache_info().misses == 3
    assert split.arrays['label'].tolist() == list(range(24))


# --- Reading ---


@pytest.mark.parametrize('name', ['cifar10', 'cifar100'])
def test_cifar_is_as_tfds_describes_it(name):
    import tensorflow_datasets as tfds

    with tfds.testing.mock_data():
        features = tfds.builder(name).info.features
    assert features['image'].shape == DATASETS[name].image_shape
    assert features['label'].num_classes == DATASETS[name].num_classes


def fail_to_prepare(self, **kwargs):
    raise ConnectionError('no route to host')


def test_absent_data_set(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    monkeypatch.setattr(tfds.core.DatasetBuilder, 'download_and_prepare', fail_to_prepare)
    with pytest.raises(FileNotFoundError) as error:
        load_dataset('cifar10', tmp_path)
    message = str(error.value)
    assert message.startswith(f"Data set 'cifar10' is not in {tmp_path}/cifar10/3.")
    load = "tfds.load('cifar10', data_dir='DIR')"
    for part in ('(ConnectionError: no route to host)', load, 'TFDS_DATA_DIR', '--config.data_dir'):
        assert part in message
    assert isinstance(error.value.__cause__, ConnectionError)


@pytest.mark.parametrize(
    ('field', 'value', 'message'),
    [
        ('image_shape', (28, 28, 1), r"image_shape=\(28, 28, 1\) of .*'digits' must be \(8, 8, 1\), as in "),
        ('num_classes', 7, r"num_classes=7 of data set 'digits' must be 10, as in .*digits/1\.0\.0"),
    ],
)
def test_data_set_that_is_not_as_described(tmp_path_factory, field, value, message):
    spec = dataclasses.replace(DATASETS['digits'], **{field: value})
    with pytest.raises(ValueError, match=message):
        load_dataset(spec, fixtures.prepared_digits(tmp_path_factory.getbasetemp()))
    with pytest.raises(ValueError, match=r"dataset='cifar-10' is unknown; .* Did you mean 'cifar10'\?"):
        load_dataset('cifar-10')


# --- Arguments ---


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'batch_size': 10}, r'batch_size=10 must be a multiple of num_workers=4; the nearest is 8\.'),
        ({'batch_size': 0}, r'batch_size=0 must be a multiple of num_workers=4; the nearest is 4\.'),
        (
            {'batch_size': 3, 'num_workers': 16},
            r'batch_size=3 must be a multiple of num_workers=16; the nearest is 16\.',
        ),
        ({'num_workers': 0}, r'num_workers=0 must be at least 1\.'),
        ({'batch_size': 24}, 'batch_size=24 must be between 1 and num_examples=20'),
        ({'seed': -1}, r'seed=-1 and step=0 must not be negative'),
        ({'step': -1}, r'seed=0 and step=-1 must not be negative'),
        ({'workers': [4]}, r'workers=\[4\] must be one or more of the workers 0 … 3\.'),
    ],
)
def test_argument_errors(changes, message):
    arguments = {'seed': 0, 'step': 0, 'batch_size': 8, 'num_workers': 4} | changes
    with pytest.raises(ValueError, match=message):
        train_batch(numbered_split(20), **arguments)
    if 'multiple' in message:
        del arguments['seed'], arguments['step']
        with pytest.raises(ValueError, match=message):
            numbered_split(20).test_batches(**arguments)


def test_steps_per_epoch():
    assert [order.steps_per_epoch(20, size) for size in (1, 6, 10, 20)] == [20, 3, 2, 1]
    for size in (0, 21, -4):
        with pytest.raises(ValueError, match=rf'batch_size={size} must be between 1 and num_examples=20'):
            order.steps_per_epoch(20, size)
