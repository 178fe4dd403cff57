"""A run of K workers goes on with K': x as it was, y to rounding, momentum and statistics by their mean."""

import json
import signal

import chex
import jax
import numpy as np
import pytest
import training_fixtures as fixtures

from def_jax.mesh.regrouping import regroup
from def_jax.trainer import loop
from def_jax.trainer.checkpointing import regrouping
from def_jax.trainer.experiment import build

STEP = 7


def config_of(data_dir, workers, per_device=1, **changes):
    batch = round(40 / workers) * workers
    changes = {'average_every': 0, 'num_workers': workers, 'workers_per_device': per_device} | changes
    return fixtures.tiny_config(data_dir, **{'batch_size': batch} | changes)


def filled(run):
    """A state, on the host, in which nothing is zero and no two workers agree."""
    random = np.random.default_rng(run.config.num_workers)

    def fill(leaf):
        if leaf.dtype != np.float32:
            return np.full(leaf.shape, STEP, leaf.dtype)
        return random.normal(size=leaf.shape).astype(np.float32)

    return jax.tree.map(fill, jax.eval_shape(run.steps.init))


def by_worker(tree, shape):
    """Arrays [K, ...] as float64."""
    return jax.tree.map(lambda a: np.float64(a).reshape(-1, *a.shape[len(shape) :]), tree)


def output(state, run):
    """y in float64, flattened."""
    residual = by_worker(fixtures.residual(state), run.workers.shape)
    y = jax.tree.map(lambda x, r: np.float64(x) + r.mean(0), state.params, residual)
    return np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(y)])


@pytest.mark.parametrize(
    ('old', 'new', 'changes'),
    [
        ((4, 1), (3, 1), {}),  # a number that does not divide the other, each with one on a device
        ((2, 1), (8, 4), {}),  # more, several on a device
        ((4, 2), (1, 1), {'overlap': True, 'skip_nonfinite': True}),
    ],
    ids=str,
)
def test_the_state_is_that_of_the_mean_worker(data_dir, old, new, changes):
    """Messages in flight are a part of the residual, and other workers send what they then hold."""
    old_run, new_run = (build(config_of(data_dir, *workers, **changes)) for workers in (old, new))
    before = filled(old_run)
    after = regroup(before, new_run.is_per_worker, old_run.workers.shape, new_run.workers.shape)
    shapes = jax.eval_shape(new_run.steps.init)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, shapes)
    for shared in ('step', 'key', 'params'):
        fixtures.assert_same_bits(getattr(after, shared), getattr(before, shared))
    drift = np.abs(output(after, new_run) - output(before, old_run)).max()
    assert drift <= np.finfo(np.float32).eps * np.abs(output(before, old_run)).max()
    for part in (fixtures.residual, fixtures.momentum, lambda state: state.batch_stats):
        of_old = by_worker(part(before), old_run.workers.shape)
        of_new = by_worker(part(after), new_run.workers.shape)
        for a, b in zip(jax.tree.leaves(of_old), jax.tree.leaves(of_new), strict=True):
            assert len(b) == new[0] and (b == b[0]).all()
            np.testing.assert_array_equal(b[0], np.float32(a.mean(0)))
    (note,) = regrouping.describe(old_run.workers.shape, new_run.config.batch_size, 1, new_run)
    assert f'workers: {old[0]} before, {new[0]} now' in note and 'mean' in note


# --- The whole trainer ---


def test_a_run_goes_on_with_other_workers_and_says_so(data_dir, tmp_path):
    """A run of four that was stopped after 7 steps, with losses not yet recorded."""
    with fixtures.signalled(signal.SIGTERM, STEP), pytest.raises(loop.InterruptedRunError):
        fixtures.train(fixtures.tiny_config(data_dir), tmp_path)
    before = fixtures.contents(tmp_path)
    for changes, message in (
        ({'seed': 1}, 'another configuration .seed: 0 there, 1 here'),
        ({'num_workers': 3, 'batch_size': 150}, r'step 7, but with config\.batch_size=150 .* only 4 steps'),
    ):
        with pytest.raises(ValueError, match=message):
            fixtures.train(fixtures.tiny_config(data_dir, **changes), tmp_path)
        assert fixtures.contents(tmp_path) == before
    config = fixtures.tiny_config(data_dir, num_workers=3, batch_size=39)
    result, text = fixtures.printed(config, tmp_path)
    assert 'resuming at step 7' in text
    assert 'workers: 4 before, 3 now; each receives the mean of the 4 residuals, momenta and' in text
    assert 'batch: 40 examples before, 39 now; epochs count by the new' in text
    assert (result['config']['num_workers'], result['config']['batch_size']) == (3, 39)
    assert json.loads((tmp_path / 'config.json').read_text())['num_workers'] == 3
    training = [r['step'] for r in fixtures.records(tmp_path) if 'loss' in r]
    assert training == [3, 5, 6, 9, 10, 12, 15, 18, 20]
    assert sorted(path.name for path in (tmp_path / 'checkpoints').iterdir()) == ['15', '20']
