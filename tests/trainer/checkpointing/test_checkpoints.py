"""Checkpoints: exact, in place, bounded in number, never half read; interrupted equals uninterrupted."""

import json
import shutil

import jax
import numpy as np
import pytest
import training_fixtures as fixtures

from def_jax.trainer import plots, results, steps
from def_jax.trainer.checkpointing import checkpoints
from def_jax.trainer.data import order

# --- Interrupted equals uninterrupted ---


def assert_equals_uninterrupted(recorded, folder, result):
    """Bit for bit: parameters, every worker's residual, momentum and statistics, step, key, metrics."""
    state = fixtures.restored(folder, recorded.experiment)
    fixtures.assert_same_bits(fixtures.shards(state), recorded.states[-1])
    assert fixtures.records(folder) == fixtures.records(recorded.folder)
    assert {name: value for name, value in result['metrics'].items() if name != 'seconds'} == {
        name: value for name, value in recorded.result['metrics'].items() if name != 'seconds'
    }
    assert result['communication'] == recorded.result['communication']
    assert {path.name for path in (folder / 'checkpoints').iterdir()} == {'15', '20'}


# Evaluations, each after a checkpoint, come after 5, 10, 15 and 20 steps; each goes over the test
# images twice, for x and for y.
INTERRUPTIONS = {
    'before the first step': (order, 'train_batch', 0),
    'after the first checkpoint': (order, 'train_batch', 5),
    'between checkpoints': (order, 'train_batch', 13),
    'in the first evaluation': (order, 'test_batches', 1),
    'in the second evaluation, of y': (order, 'test_batches', 3),
    'in the last evaluation, of x': (order, 'test_batches', 6),
    'before the checkpoint of the second evaluation': (checkpoints.Checkpoints, 'save', 1),
    'after the last checkpoint': (results, 'write', 0),
    'before the curves are drawn': (plots, 'plot_curves', 0),
}


@pytest.mark.parametrize('moment', INTERRUPTIONS)
def test_interrupted_equals_uninterrupted(recorded, tmp_path, moment):
    target, name, when = INTERRUPTIONS[moment]
    with fixtures.killed(target, name, when=when):
        fixtures.train(recorded.config, tmp_path / 'run')
    if 'first evaluation' in moment:
        assert [p.name for p in (tmp_path / 'run' / 'checkpoints').iterdir()] == ['5']
    result = fixtures.train(recorded.config, tmp_path / 'run')
    assert_equals_uninterrupted(recorded, tmp_path / 'run', result)
    assert steps.make_train_step(recorded.experiment).traces() == 1  # a restored state lies where it did


def test_interrupted_twice_equals_uninterrupted(recorded, tmp_path):
    for when in (7, 6):  # the second time counted from the checkpoint of step 5
        with fixtures.killed(order, 'train_batch', when=when):
            fixtures.train(recorded.config, tmp_path / 'run')
    result = fixtures.train(recorded.config, tmp_path / 'run')
    assert_equals_uninterrupted(recorded, tmp_path / 'run', result)


def test_output_settings_may_change_between_two_starts(recorded, data_dir, tmp_path):
    with fixtures.killed(order, 'train_batch', when=12):
        fixtures.train(recorded.config, tmp_path / 'run')
    config = fixtures.tiny_config(data_dir, log_every_steps=1, keep_checkpoints=1)
    fixtures.train(config, tmp_path / 'run')
    state = fixtures.restored(tmp_path / 'run', recorded.experiment)
    fixtures.assert_same_bits(fixtures.shards(state), recorded.states[-1])
    training = [r['step'] for r in fixtures.records(tmp_path / 'run') if 'loss' in r]
    assert training == [3, 5, 6, 9, 10, *range(11, 21)]
    assert {path.name for path in (tmp_path / 'run' / 'checkpoints').iterdir()} == {'20'}


@pytest.mark.parametrize('damage', [None, '', '{"status": "fini'])
def test_a_lost_result_is_made_again(recorded, tmp_path, damage):
    folder = shutil.copytree(recorded.folder, tmp_path / 'run')
    (folder / 'result.json').unlink()
    if damage is not None:
        (folder / 'result.json').write_text(damage)
    assert fixtures.train(recorded.config, folder) == recorded.result
    assert json.loads((folder / 'result.json').read_text()) == recorded.result


def test_diagnostics_of_an_interrupted_run_equal_those_of_an_uninterrupted_one(recorded, data_dir, tmp_path):
    config = fixtures.tiny_config(data_dir, diagnostics_every=5)
    fixtures.train(config, tmp_path / 'whole')
    with fixtures.killed(order, 'train_batch', when=7):  # after the diagnostics of step 5
        fixtures.train(config, tmp_path / 'run')
    fixtures.train(config, tmp_path / 'run')
    whole = fixtures.records(tmp_path / 'whole')
    assert [r['step'] for r in whole if 'detach_optimum' in r] == [0, 5, 10, 15]
    assert fixtures.records(tmp_path / 'run') == whole
    # Looking on changes nothing.
    assert [r for r in whole if 'detach_optimum' not in r] == fixtures.records(recorded.folder)
    state = fixtures.restored(tmp_path / 'run', recorded.experiment)
    fixtures.assert_same_bits(fixtures.shards(state), recorded.states[-1])


# --- Save and restore ---


@pytest.fixture(scope='module')
def saved(recorded, tmp_path_factory):
    """A folder with the checkpoints of steps 7 and 9; that of step 4 has been dropped."""
    folder = tmp_path_factory.mktemp('saved')
    manager = fixtures.manager_of(folder, recorded.experiment)
    for step in (4, 7, 9):
        manager.save(fixtures.placed(fixtures.gathered(recorded.states[step]), recorded.experiment))
    manager.close()
    return folder


def test_only_the_newest_are_kept(saved):
    assert {path.name for path in (saved / 'checkpoints').iterdir()} == {'7', '9'}


def test_a_state_is_restored_bit_for_bit_where_it_was(recorded, saved):
    state = fixtures.restored(saved, recorded.experiment)
    fixtures.assert_same_bits(fixtures.shards(state), recorded.states[9])
    like = steps.make_init(recorded.experiment)()
    placement = jax.tree.map(lambda leaf: (leaf.sharding, leaf.committed), like)
    assert jax.tree.map(lambda leaf: (leaf.sharding, leaf.committed), state) == placement


def test_workers_keep_their_own_residuals(recorded, saved):
    state = fixtures.restored(saved, recorded.experiment)
    for leaf in jax.tree.leaves(fixtures.residual(state)):
        assert len({np.asarray(leaf[worker]).tobytes() for worker in range(fixtures.NUM_WORKERS)}) == 4


def test_training_goes_on_from_a_restored_state(recorded, saved):
    batch = order.train_batch(
        recorded.experiment.dataset.train, seed=0, step=9, batch_size=40, num_workers=fixtures.NUM_WORKERS
    )
    place = recorded.experiment.workers.place
    train_step = steps.make_train_step(recorded.experiment)
    state, _ = train_step(fixtures.restored(saved, recorded.experiment), place(batch))
    fixtures.assert_same_bits(fixtures.shards(state), recorded.states[10])
    assert train_step.traces() == 1


def test_saving_a_step_again_changes_nothing(recorded, saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / 'run')
    manager = fixtures.manager_of(folder, recorded.experiment)
    manager.save(fixtures.placed(fixtures.gathered(recorded.states[9]), recorded.experiment))
    manager.close()
    files = [path.relative_to(saved) for path in saved.rglob('*') if path.is_file()]
    assert files and all((folder / path).read_bytes() == (saved / path).read_bytes() for path in files)


def test_without_a_checkpoint_the_state_stays(recorded, tmp_path):
    state = fixtures.restored(tmp_path, recorded.experiment)
    fixtures.assert_same_bits(fixtures.shards(state), recorded.states[0])
