"""Data in memory: the order of training images, reading. What all splits promise: test_splits.py."""

import functools

import numpy as np
import pytest

from def_jax.trainer.data import order
from def_jax.trainer.data.in_memory import Arrays
from def_jax.trainer.data.order import train_batch


def test_permutation_depends_on_seed_and_epoch_alone_and_is_drawn_once():
    permuted = functools.partial(order.epoch_permutation, num_examples=100)
    assert sorted(permuted(3, 4)) == list(range(100))
    np.testing.assert_array_equal(permuted(3, 4), permuted(3, 4))
    orders = {tuple(permuted(seed, epoch)) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16  # (0, 1) and (1, 0) differ, too
    order.epoch_permutation.cache_clear()
    split = Arrays({'label': np.arange(24)})
    for step in range(9):  # what a caller does to a batch stays its own
        train_batch(split, seed=0, step=step, batch_size=8, num_workers=2)['label'][:] = -1
    assert order.epoch_permutation.cache_info().misses == 3
    assert split.arrays['label'].tolist() == list(range(24))


def test_steps_per_epoch():
    assert [order.steps_per_epoch(20, size) for size in (1, 6, 10, 20)] == [20, 3, 2, 1]
    for size in (0, 21, -4):
        with pytest.raises(ValueError, match=rf'batch_size={size} must be between 1 and num_examples=20'):
            order.steps_per_epoch(20, size)
