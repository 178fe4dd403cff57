"""Runs with `skip_nonfinite`: a step with NaN is left out, is counted, and changes nothing."""

import chex
import jax
import numpy as np
import optax
import pytest
import training_fixtures as fixtures

from def_jax.trainer import experiment, loop, steps


def test_a_run_leaves_the_step_out_and_says_so(data_dir, tmp_path):
    config = fixtures.tiny_config(data_dir, skip_nonfinite=True)
    with fixtures.poisoned_batch(step=7, worker=2):
        result = fixtures.train(config, tmp_path / 'run')
    assert result['metrics']['skipped'] == 1
    counts = {r['step']: r['skipped'] for r in fixtures.records(tmp_path / 'run') if 'skipped' in r}
    assert [step for step, count in counts.items() if count] == [9]  # the record of steps 7, 8 and 9
    state = fixtures.restored(tmp_path / 'run', experiment.build(config))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(state)))
    assert (int(state.step), int(optax.tree.get(state.opt_state, 'step'))) == (20, 19)


def test_a_skipped_step_holds_the_statistics_of_batch_normalisation(data_dir):
    run = experiment.build(fixtures.tiny_config(data_dir, skip_nonfinite=True))
    state, batch = steps.make_init(run)(), next(run.train_batches(0))
    batch['label'][2] = 99
    before = fixtures.shards(state)
    state, metrics = steps.make_train_step(run)(state, batch)
    assert not np.any(metrics['taken'])
    chex.assert_trees_all_equal(fixtures.shards(state.batch_stats), before.batch_stats)
    chex.assert_trees_all_equal(fixtures.shards(state.params), before.params)
    assert int(state.step) == 1


def test_a_run_of_which_nothing_is_left_has_diverged(data_dir, tmp_path):
    config = fixtures.tiny_config(data_dir, skip_nonfinite=True)
    with fixtures.poisoned_state(4, fixtures.poisoned_params), pytest.raises(loop.DivergedError) as error:
        fixtures.train(config, tmp_path / 'run')
    assert error.value.step in (5, 6)  # at the evaluation, or the window in which every step was left out
