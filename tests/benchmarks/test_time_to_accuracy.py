"""Accuracy against seconds: what both frameworks share, and what the page makes of the runs."""

import numpy as np
import pytest

from benchmarks.time_to_accuracy import page, workload


def make_images(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), np.uint8)


def test_patches_hold_the_pixels_of_a_square():
    images = make_images(2)
    found = workload.patches(images)
    assert found.shape == (2, 64, 48) and found.dtype == np.float32
    square = images[1, 4:8, 8:12].reshape(-1)  # the second row of squares, the third in it
    expected = (square / 255 - workload._MEAN) / workload._STD
    np.testing.assert_allclose(found[1, 8 + 2], expected, rtol=1e-5)


def test_workers_divide_an_epoch_and_every_seed_has_its_order():
    labels = np.arange(24)

    def epoch(worker, seed=0):
        options = {'batch': 3, 'seed': seed, 'worker': worker, 'num_workers': 2}
        stream = workload.batches(make_images(24), labels, **options)
        return np.concatenate([next(stream)[1] for _ in range(4)])

    np.testing.assert_array_equal(np.sort(np.concatenate([epoch(0), epoch(1)])), labels)
    np.testing.assert_array_equal(epoch(0), epoch(0))
    assert (epoch(0) != epoch(0, seed=1)).any()


def test_images_are_augmented_alike_on_every_call():
    images, labels = make_images(8), np.zeros(8)
    options = {'batch': 4, 'seed': 0, 'worker': 1, 'num_workers': 2}
    first, again = (next(workload.batches(images, labels, **options))[0] for _ in range(2))
    np.testing.assert_array_equal(first, again)


def test_the_rate_rises_to_its_peak_and_falls_to_zero():
    rates = workload.learning_rates({'num_steps': 100, 'learning_rate': 0.5})
    assert rates.shape == (100,) and rates.max() == rates[5] == rates[4] == 0.5
    assert np.all(np.diff(rates[:5]) > 0) and np.all(np.diff(rates[5:]) < 0) and rates[-1] < 0.001


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


# --- The page ---


def run(variant, seed, accuracies, bandwidth='', **fields):
    """A run with the accuracies of x after every step, and the same of y for DEF."""
    names = ('x',) if variant == 'dense' else ('x', 'y')
    curve = [{'step': n} | dict.fromkeys(names, a) for n, a in enumerate(accuracies, 1)]
    settings = {'variant': variant, 'seed': seed, 'bandwidth': bandwidth, 'workers': 4, 'batch': 1}
    settings |= {'num_steps': 3, 'train_images': None, 'learning_rate': 0.1, 'validation': False}
    commit = 'b' if bandwidth else f'a{seed}'
    return {'settings': settings, 'curve': curve, 'params': 4096, 'commit': commit} | fields


def clocked(variant, bandwidth, seconds, alone):
    return run(variant, 0, [50], bandwidth, step_seconds=seconds, standard_error=0.01 * seconds, alone=alone)


@pytest.fixture
def runs():
    whole = [run('dense', seed, [50, 70, 80 + seed]) for seed in (0, 1)]
    whole += [run('def64', seed, [40, 79.9, 80 + seed]) for seed in (0, 1)]
    fast = [clocked('dense', '1gbit', 2.0, 1.0), clocked('def64', '1gbit', 0.5, 0.4)]
    slow = [clocked('dense', '100mbit', 20.0, 1.0), clocked('def64', '100mbit', 1.0, 0.4)]
    return whole + fast + slow


def test_a_curve_gets_its_seconds_from_the_steps_timed_at_a_bandwidth(runs):
    found = page.timed(runs, 'dense', 'x', '100mbit')
    np.testing.assert_allclose(found.seconds(), [20.0, 40.0, 60.0])
    assert found.times_to(75) == {0: 60.0, 1: 60.0} and found.times_to(80.5) == {0: None, 1: 60.0}
    assert page.timed(runs, 'dense', 'y', '1gbit') is None


def test_the_table_compares_with_dense_jax(runs):
    # The target is 80.5 - 1: dense SGD needs 6 s, DEF 1 s and, for y, one all-reduce of 4,096 elements.
    text, fast, slow = ''.join(page.sections(runs, {'ddp': 'no PyTorch'}, 'p.png')).split('## ')
    assert 'Whole runs: commit a0, a1. Timed steps: commit b.' in text
    assert 'seconds to 79.5 %' in fast
    assert '| SGD, dense JAX | 0.1 | 2 | 80.50 ± 0.71 | 2000 ± 20 | 1000 (-50%) | 6 ± 0 | 0 | 1.00' in fast
    # exp(1.96 · √2 · 0.01) is 1.028.
    assert '| DEF, ratio 64 | 0.1 | 2 | 80.50 ± 0.71 | 500 ± 5 |' in fast
    assert '| 6.00 (5.83 to 6.17) |' in fast
    assert '| DEF, ratio 64, x | 0.1 | 2 |' in fast
    assert '| 60 ± 0 | 0 | 1.00 |' in slow and '| 30.00 (29.18 to 30.84) |' in slow
    assert 'PyTorch DDP, dense: not measured, no PyTorch' in slow


def test_the_table_compares_with_pytorchs_best_that_reaches_the_target(runs):
    for variant, last, seconds in (('ddp', 80, 1.5), ('ddp_fp16', 80, 1.0), ('ddp_powersgd', 79, 0.1)):
        whole = [run(variant, seed, [50, 70, last]) for seed in (0, 1)]
        for each in whole:
            each['curve'] = [{'step': p['step'], 'x': p['x']} for p in each['curve']]
        timed = run(variant, 0, [50], '1gbit', step_seconds=seconds, standard_error=0.01 * seconds)
        runs += [*whole, timed]
    table = page.sections(runs, {}, '')[2].splitlines()
    assert table[2].split(' | ')[-1] == 'as PyTorch DDP, fp16 hook |'
    # It needs 3 s, dense JAX 6 and DEF 1.
    last = {row.split(' | ')[0][2:]: row.split(' | ')[-1][:5] for row in table[4:]}
    assert last['SGD, dense JAX'] == '0.50 ' and last['DEF, ratio 64'] == '3.00 '
    assert last['PyTorch DDP, fp16 hook'] == '1.00 ' and last['PyTorch DDP, PowerSGD hook, rank 4'] == ' |'


def test_what_does_not_reach_the_target_is_counted(runs):
    for point in runs[3]['curve']:
        point['y'] = 60.0
    row = next(r for r in page.sections(runs, {}, '')[2].splitlines() if r.startswith('| DEF, ratio 64 |'))
    assert row.split(' | ')[-2:] == ['1', '6.00 (5.83 to 6.17) |']


def test_the_picture_has_a_panel_for_each_bandwidth(runs, tmp_path):
    page.draw(runs, tmp_path / 'p.png')
    assert (tmp_path / 'p.png').stat().st_size > 1000
