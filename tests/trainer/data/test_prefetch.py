"""Batches made ahead: in order, on the devices, no thread left behind."""

import itertools
import threading

import jax
import numpy as np
import pytest

from def_jax.trainer.data import prefetch
from def_jax.trainer.workers import WholeWorkers


def batch_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith('batches')]


def test_a_thread_works_ahead_no_further_than_asked_and_ends():
    made, second = [], threading.Event()

    def place(batch):
        made.append(batch)
        if batch == 2:
            second.set()
        return threading.current_thread().name

    with prefetch.ahead(itertools.count(), place, depth=2) as batches:
        assert next(batches).startswith('batches')
        assert second.wait(10)  # nobody has asked for it
        assert batch_threads()
    assert made == [0, 1, 2] and not batch_threads()


def test_an_error_comes_with_its_batch_and_leaves_no_thread():
    def batches():
        yield 1
        raise OSError('unreadable')

    with prefetch.ahead(batches(), lambda x: x, depth=3) as ready:
        assert next(ready) == 1
        with pytest.raises(OSError, match='unreadable'):
            next(ready)
    with pytest.raises(KeyboardInterrupt), prefetch.ahead(itertools.count(), lambda x: x):
        raise KeyboardInterrupt
    assert not batch_threads()


def test_placed_where_pmap_wants_it():
    devices, label = jax.devices()[:4], np.arange(24, dtype=np.int32).reshape(4, 2, 3)
    placed = WholeWorkers(devices).place({'label': label})['label']
    returned = jax.pmap(lambda x: x, axis_name='workers', devices=devices)(placed)
    assert placed.sharding.is_equivalent_to(returned.sharding, 3)
    np.testing.assert_array_equal(returned, label)
