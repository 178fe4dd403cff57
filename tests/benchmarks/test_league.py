"""The league's costs, worked out by hand, what counts as its frontier, and that its pages can be written."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import def_jax
from benchmarks.league import __main__ as runs
from benchmarks.league import page
from benchmarks.league.contenders import Contender
from benchmarks.league.costs import costs, kept
from benchmarks.league.narrow import narrow
from benchmarks.league.perceptron import PERCEPTRON
from benchmarks.league.problems import PROBLEMS

SIZE = 64 * 64 + 64 + 64 * 64 + 64 + 64 * 10 + 10


@pytest.mark.parametrize(
    ('contender', 'payload', 'hops'),
    [
        (Contender('', 'sgd'), SIZE, 7 / 4),  # of 8 workers, a ring sends 2·7/8 of a message
        (Contender('', 'local_sgd', options={'every': 16}), SIZE / 16, 7 / 4),
        (Contender('', 'streaming_diloco', 4, options={'every': 4}), 561 - 0.5, 7 / 4),
        (Contender('', 'sign_ef'), -(-SIZE // 32) + 6, 7),
        (
            Contender('', 'onebit_adam', options={'freeze_after': 200}),
            (SIZE + 3 * (-(-SIZE // 32) + 6)) / 4,
            0,
        ),
        (Contender('', 'powersgd', 16), 64 + 64 + 64 + 2 * 64 + 10 + 64 + 64 + 10, 7 / 4),
        (Contender('', 'sparta', 16, levels=1), -(-561 // 4) + 6, 7 / 4),  # int8, and six scales
    ],
)
def test_bytes_a_step(contender, payload, hops):
    found = costs(PERCEPTRON, contender)
    assert found['dense'] == 4 * SIZE and found['payload'] == pytest.approx(4 * payload)
    if hops:
        assert found['wire'] == pytest.approx(4 * payload * hops)


def test_state_is_counted_apart():
    found = costs(PERCEPTRON, Contender('', 'def', 16))
    assert (found['own_state'], found['shared_state']) == (2, 0)
    assert kept(PERCEPTRON, Contender('', 'def', 16)) == ('m r', '')  # momentum and residual
    found = costs(PERCEPTRON, Contender('', 'top_k', 16))
    assert (found['own_state'], found['shared_state']) == (1, 1)
    assert kept(PERCEPTRON, Contender('', 'diloco', options={'every': 4})) == ('m r', 'o')


@pytest.mark.parametrize('name', PROBLEMS)
def test_every_contender_can_be_built(name):
    problem = PROBLEMS[name]
    for contender in problem.contenders:
        contender.optimizer(problem.inner(0.1, **contender.inner))
    assert len({(c.title, c.nominal) for c in problem.contenders}) == len(problem.contenders)


def test_the_grid_grows_until_the_best_is_inside():
    tried = []

    def run(rates, seeds, tuning):
        assert tuning and len(rates) == len(seeds)
        tried.extend(rates)
        losses = np.abs(np.log(np.array(rates) / 0.001))
        return np.stack([losses, losses], 1)[:, :, None]

    problem = PERCEPTRON._replace(grid=(0.3, 1, 3), tuning_seeds=(0,))
    best, all_tried = runs.tuned(problem, Contender('', 'sgd', rate=0.1), run)
    assert best == pytest.approx(0.00081) and min(all_tried) < best < max(all_tried)
    assert len(tried) == len(all_tried)


@pytest.mark.parametrize('levels', [1, 15])
def test_a_narrow_block_and_what_is_left_restore_what_was_pending(levels):
    """The mean of the workers' integers is what they sent, and the rest stays where the block lies."""
    pending = {'w': jax.random.normal(jax.random.key(0), (2, 8, 6)), 'b': jnp.zeros((2, 4))}

    def worker(pending):
        blocks = narrow(def_jax.random_block(4), levels, 'workers')
        selection = blocks(def_jax.compressors.shared_key(0), jnp.uint32(0), pending)
        sent = selection.take(pending)
        return sent, selection.place(sent, pending), selection.replace(pending, 0 * sent)

    sent, placed, rest = jax.vmap(worker, axis_name='workers')(pending)
    jax.tree.map(lambda p, s, r: np.testing.assert_allclose(s + r, p, atol=1e-6), pending, placed, rest)
    scale = np.abs(sent[sent != 0]).min()
    assert (
        np.abs(sent / scale - np.round(sent / scale)).max() < 1e-3
        and np.abs(sent / scale).max() < levels + 0.5
    )


def test_the_frontier():
    def record(wire, loss):
        return {'wire': wire, 'test_loss': [[9.0, loss], [9.0, loss]]}

    records = [record(4, 0.1), record(1, 0.5), record(2, 0.6), record(3, 0.2)]
    assert [r['wire'] for r in page.frontier(records)] == [1, 3, 4]
