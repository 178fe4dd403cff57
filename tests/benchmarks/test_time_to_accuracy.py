"""Accuracy against seconds: what both frameworks share; of the page, see test_benchmark_pages.py."""

import numpy as np

from benchmarks.time_to_accuracy import workload


def make_images(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), np.uint8)


def test_workers_divide_an_epoch_and_every_seed_has_its_order():
    def epoch(worker, seed=0):
        options = {'batch': 3, 'seed': seed, 'worker': worker, 'num_workers': 2}
        stream = workload.batches(make_images(24), np.arange(24), **options)
        images, labels = zip(*(next(stream) for _ in range(4)), strict=True)
        return np.concatenate(images), np.concatenate(labels)

    images, labels = epoch(0)
    np.testing.assert_array_equal(np.sort([*labels, *epoch(1)[1]]), np.arange(24))
    np.testing.assert_array_equal(labels, epoch(0)[1])
    np.testing.assert_array_equal(images, epoch(0)[0])  # augmented alike
    assert (labels != epoch(0, seed=1)[1]).any()


def test_the_clock_runs_during_steps_alone(tmp_path):
    np.savez(tmp_path / 'd.npz', train_images=make_images(8), train_labels=np.zeros(8))
    job = {'data': tmp_path / 'd.npz', 'batch': 2, 'seed': 0, 'worker': 0, 'num_workers': 1}
    seen: list[int] = []
    found = workload.train(
        job | {'run_steps': 5, 'eval_every': 2, 'bandwidth': ''},
        lambda inputs, labels, index: seen.append(index),
        lambda: {'x': float(len(seen))},
    )
    assert seen == list(range(5)) and len(found['seconds']) == 5
    assert [(point['step'], point['x']) for point in found['curve']] == [(2, 2.0), (4, 4.0), (5, 5.0)]
