"""What every split promises, wherever its examples are stored: batches are pure functions of the step."""

import functools
import itertools

import numpy as np
import pytest
import training_fixtures as fixtures
from test_streaming import toy_train_split
from toy_images import NUM_EXAMPLES

from def_jax.trainer.data import order
from def_jax.trainer.data.dataset import Dataset, DatasetSpec
from def_jax.trainer.data.in_memory import Arrays
from def_jax.trainer.data.text.corpus import Corpus
from def_jax.trainer.data.text.windows import Windows

BATCH, WORKERS, STEPS = 6, 3, NUM_EXAMPLES // 6  # of an epoch


def arrays(_):
    return Arrays({'label': np.arange(NUM_EXAMPLES, dtype=np.int32)})


def windows(_):
    """Each window repeats its number."""
    text = np.repeat(np.arange(NUM_EXAMPLES, dtype=np.uint8), 4)
    return Windows(Corpus(text, np.array([len(text)])), 4)


def files(tmp_path_factory):
    return toy_train_split(tmp_path_factory.getbasetemp())


@pytest.fixture(scope='module', params=[arrays, windows, files], ids=lambda make: make.__name__)
def split(request, tmp_path_factory):
    return request.param(tmp_path_factory)


def numbers(batch):
    """Which example is where, [k, b]."""
    return batch['label'] if 'label' in batch else batch['targets'][..., 0]


@pytest.fixture(scope='module')
def in_order(split):
    return numbers_of(split)


def numbers_of(split):
    """The numbers of the examples, in the split's order."""
    return numbers(next(iter(split.test_batches(batch_size=len(split), num_workers=1))))[0]


def trained(split, count, **changes):
    """The first batches, by name [count, k, b, ...]."""
    options = {'seed': 3, 'first_step': 0, 'batch_size': BATCH, 'num_workers': WORKERS} | changes
    batches = list(itertools.islice(split.train_batches(**options), count))
    return {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}


def assert_same(actual, *expected):
    """The arrays of `expected` along the axis of workers."""
    for name, array in actual.items():
        np.testing.assert_array_equal(array, np.concatenate([part[name] for part in expected], axis=1))


def test_an_epoch_visits_every_example_at_most_once_in_the_order_of_its_seed(split, in_order):
    assert len(split) == NUM_EXAMPLES and sorted(in_order) == list(range(NUM_EXAMPLES))
    seen = numbers(trained(split, 3 * STEPS))
    for step, batch in enumerate(seen):
        options = {'seed': 3, 'step': step, 'batch_size': BATCH, 'num_workers': WORKERS}
        _, positions = order.train_positions(NUM_EXAMPLES, **options)
        np.testing.assert_array_equal(batch, in_order[positions])
    epochs = [tuple(epoch) for epoch in seen.reshape(3, -1)]
    assert len(set(epochs)) == 3 and all(len(set(epoch)) == BATCH * STEPS for epoch in epochs)


def test_resuming_at_any_step_and_in_any_processes_gives_the_same_batches(split):
    whole = trained(split, 7)
    order.epoch_permutation.cache_clear()  # as in a new process
    assert_same({name: array[3:] for name, array in whole.items()}, trained(split, 4, first_step=3))
    assert_same(whole, *(trained(split, 7, workers=workers) for workers in ([0], [1, 2])))
    alone = trained(split, 7, num_workers=1)  # divides the same batch
    np.testing.assert_array_equal(numbers(alone).ravel(), numbers(whole).ravel())


def test_a_fingerprint_is_of_the_examples(split):
    def made(split, **about):
        return Dataset(split, split, spec='spec', about=about).fingerprint()

    class Plain:
        """A user's split, of which nothing is known."""

        def __init__(self, split):
            self.split = split

        def __len__(self):
            return len(self.split)

        def test_batches(self, **options):
            return self.split.test_batches(**options)

    last = NUM_EXAMPLES - 1
    others = [split.part(0, last), split.part(1, last + 1), split.part(1, last)]
    assert made(split.part(0, NUM_EXAMPLES)) == made(split)
    assert len({made(one) for one in [split, *others]} | {made(split, version='3.11.4')}) == 5
    assert made(Plain(split)) == made(Plain(split)) != made(Plain(others[0]))
    if isinstance(split, Arrays):
        changed = split.arrays['label'].copy()
        changed[11] += 1
        assert made(Arrays({'label': changed})) != made(split)


@pytest.mark.parametrize(('batch_size', 'count'), [(6, 4), (24, 1)])
def test_test_batches_count_every_example_once(split, in_order, batch_size, count):
    def passed(**workers):
        batches = list(split.test_batches(batch_size=batch_size, num_workers=WORKERS, **workers))
        assert len(batches) == count
        return {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}

    whole = passed()
    assert numbers(whole).shape == whole['mask'].shape == (count, WORKERS, batch_size // WORKERS)
    assert whole['mask'].dtype == np.float32 and whole['mask'].sum() == NUM_EXAMPLES
    np.testing.assert_array_equal(numbers(whole)[whole['mask'] == 1], in_order)
    assert_same(whole, *(passed(workers=workers) for workers in ([0], [1, 2])))


def test_a_part_holds_the_examples_at_its_positions(split, in_order):
    part = split.part(5, 20).part(2, 9)
    np.testing.assert_array_equal(numbers_of(part), in_order[7:14])
    assert set(numbers(trained(part, 1)).ravel()) < set(in_order[7:14])


def test_permutation_depends_on_seed_and_epoch_alone_and_is_drawn_once():
    permuted = functools.partial(order.epoch_permutation, num_examples=100)
    assert sorted(permuted(3, 4)) == list(range(100))
    np.testing.assert_array_equal(permuted(3, 4), permuted(3, 4))
    orders = {tuple(permuted(seed, epoch)) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16  # (0, 1) and (1, 0) differ, too
    order.epoch_permutation.cache_clear()
    split = Arrays({'label': np.arange(24)})
    for step in range(9):  # what a caller does to a batch stays its own
        order.train_batch(split, seed=0, step=step, batch_size=8, num_workers=2)['label'][:] = -1
    assert order.epoch_permutation.cache_info().misses == 3
    assert split.arrays['label'].tolist() == list(range(24))


@pytest.mark.parametrize(
    ('labels', 'found'),
    [
        ([0, 1, -1, 2], 'must be in .0, 2., as num_classes=3, but one is -1. Count classes from 0'),
        ([1, 2, 3], 'must be in .0, 2., as num_classes=3, but one is 3'),
        (np.array([0, 2**32 + 1, 2]), '.*but one is 4294967297'),  # 1 in int32
        ([0.0, 1.0], 'must be integers, but are float64'),
    ],
)
@pytest.mark.parametrize('name', ['train', 'validation', 'test'])
def test_labels_that_are_no_classes_are_refused(labels, found, name):
    spec = DatasetSpec('toy', (2, 2, 1), 3, (0.0,), (1.0,), crop_padding=0, flip=False)
    splits = dict.fromkeys(('train', 'validation', 'test'), Arrays({'label': np.arange(3)}))
    splits[name] = Arrays({'label': np.array(labels)})
    with fixtures.refused(f"^labels of the split '{name}' {found}"):
        Dataset(**splits, spec=spec)
    Dataset(**splits)  # a user's own task may give them another meaning
