"""League and map: what is sent, worked out by hand, one way to train, and how rates are chosen."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks import grid
from benchmarks.league import perceptron as league
from benchmarks.league.contenders import Contender
from benchmarks.league.costs import costs
from benchmarks.league.problems import PROBLEMS
from benchmarks.map import cifar10, page, perceptron, plan

RESULTS = Path(__file__).parents[2] / 'results' / 'map'


@pytest.mark.slow
@pytest.mark.parametrize('contender', [plan.PARTS['first'][1][0], plan.paper(64)], ids=lambda c: c.title)
def test_a_run_is_the_leagues(contender):
    """At the league's width and block seed; SGD's single worker has the images of all eight."""
    record = perceptron.train(contender, 64)(0.1, 0, False)
    ((train, test, accuracy),) = league.train(contender)([0.1], [0], False)[:, :, -1:].tolist()
    point = 'y' if contender.method == 'def' else 'x'
    assert record['course'][-1] == pytest.approx(train[0], abs=2e-3)
    assert record['loss'][point] == pytest.approx(test[0], abs=2e-3)
    assert 100 - record['error'][point] == pytest.approx(100 * accuracy[0], abs=0.3)


def test_folds_divide_the_training_images():
    train, _ = league.split(tuning=False)
    folds = [league.split(tuning=True, fold=fold) for fold in range(league.FOLDS)]
    assert np.array_equal(np.sort(np.concatenate([held_out for _, held_out in folds])), np.sort(train))
    assert all(not set(kept) & set(held_out) and len(kept) == 800 for kept, held_out in folds)


@pytest.mark.parametrize(
    ('images', 'tuning', 'trained'), [(1_000, True, 1_000), (7_000, True, 2_000), (7_000, False, 7_000)]
)
def test_no_run_that_chooses_a_rate_trains_on_the_images_that_choose_it(monkeypatch, images, tuning, trained):
    train, test = (np.arange(7_000.0)[:, None], np.arange(7_000)), (-np.ones((9, 1)), np.zeros(9, int))
    monkeypatch.setattr(cifar10, '_splits', lambda: [train, test])
    data = cifar10.make_data(0, images, 8, 8, 200, tuning)
    assert set(data.labels.flat) == set(range(trained)) and np.array_equal(data.images[..., 0], data.labels)
    assert np.array_equal(data.test_labels, np.arange(2_000, 7_000) if tuning else np.zeros(9))
    assert len(data.others[1]) == trained and data.weights.sum() == pytest.approx(1)


def test_the_grid_grows_until_the_best_has_neighbours():
    tried = grid.tune(lambda ks: [[abs(k - 4.0), np.inf if k < 0 else 1.0] for k in ks], 0)
    assert sorted(tried) == [-1, 0, 1, 2, 3, 4, 5] and grid.chosen(tried) == 4


def test_shares_tell_how_certain_a_choice_is():
    certain = grid.shares({0: np.full(10, 1.0), 1: np.full(10, 2.0)})
    open_ = grid.shares({0: np.arange(10.0), 1: np.arange(10.0)[::-1] + 0.01})
    assert certain == {0: 1.0, 1: 0.0}
    assert open_[0] == pytest.approx(0.5, abs=0.05) and sum(open_.values()) == 1


def test_the_law_on_the_page_is_that_of_the_runs():
    """What people wrote of it; of what the program wrote, see test_benchmark_pages.py."""
    power = page.law(page.widths(RESULTS / 'runs.jsonl')).powers['DEF (paper)', 64]
    gaps = [f'{gap:.2f}' for gap in power.gaps.values()]
    for path in (RESULTS / 'README.md', RESULTS.parent / 'claims.md'):
        text = ' '.join(path.read_text(encoding='utf-8').split())
        assert f'the power of {power.exponent:.2f} [{power.low:.2f}, {power.high:.2f}]' in text
        assert ', '.join(gaps[:-1]) + f' and {gaps[-1]}' in text


# --- The league ---

SIZE = 64 * 64 + 64 + 64 * 64 + 64 + 64 * 10 + 10
SIGNS = -(-SIZE // 32) + 6  # and a magnitude for each of six tensors


@pytest.mark.parametrize(
    ('contender', 'payload', 'hops'),
    [
        # Of 8 workers, a ring sends 2·7/8 of a message.
        (Contender('', 'streaming_diloco', 4, options={'every': 4}), 561 - 0.5, 7 / 4),
        (Contender('', 'sign_ef'), SIGNS, 7),
        (Contender('', 'onebit_adam', options={'freeze_after': 200}), (SIZE + 3 * SIGNS) / 4, 0),
        (Contender('', 'powersgd', 16), 64 + 64 + 64 + 2 * 64 + 10 + 64 + 64 + 10, 7 / 4),
        # int8: in bytes, two digits for each of six tensors, and a flag.
        (Contender('', 'sparta', 16, options={'bits': 8}), (561 + 6 * 2 + 1) / 4, 7 / 4),
    ],
)
def test_bytes_a_step(contender, payload, hops):
    found = costs(league.PERCEPTRON, contender)
    assert found['dense'] == 4 * SIZE and found['payload'] == pytest.approx(4 * payload)
    if hops:
        assert found['wire'] == pytest.approx(4 * payload * hops)


@pytest.mark.parametrize('name', PROBLEMS)
def test_every_contender_can_be_built(name):
    problem = PROBLEMS[name]
    for contender in problem.contenders:
        contender.optimizer(problem.inner(0.1, **contender.inner))
    assert len({(c.title, c.nominal) for c in problem.contenders}) == len(problem.contenders)
