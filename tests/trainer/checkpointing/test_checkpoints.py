"""Checkpoints: exact, in place, bounded in number, never half read; interrupted equals uninterrupted."""

import json
import os
import shutil

import jax
import numpy as np
import training_fixtures as fixtures

from def_jax.trainer import metrics, results
from def_jax.trainer.checkpointing import checkpoints
from def_jax.trainer.data import order

# --- Interrupted equals uninterrupted ---


# What is called for the n-th time since the last start when the run is killed. Evaluations, each after a
# checkpoint, come after 5, 10, 15 and 20 steps; each goes over the test images twice, for x and for y.
INTERRUPTIONS = {
    'before the first step': (order, 'train_batch', 0),
    'in the first evaluation': (order, 'test_positions', 1),
    'after the first checkpoint': (order, 'train_batch', 1),
    'before the second checkpoint': (checkpoints.Checkpoints, 'save', 0),
    'in the second evaluation, of y': (order, 'test_positions', 1),
    'between checkpoints': (order, 'train_batch', 4),
    'in the last evaluation, of x': (order, 'test_positions', 4),
    'after the last checkpoint': (results, 'write', 0),
}


def test_interrupted_at_any_moment_equals_uninterrupted(recorded, tmp_path):
    """Bit for bit: parameters, every worker's residual, momentum and statistics, step, key, metrics."""
    folder, kept, traced = tmp_path / 'run', [], []
    train_step = recorded.experiment.steps.train
    for target, name, when in INTERRUPTIONS.values():
        with fixtures.killed(target, name, when=when):
            fixtures.train(recorded.config, folder)
        kept.append(sorted(path.name for path in folder.glob('checkpoints/[0-9]*')))
        traced.append(train_step.traces)
    assert kept == [[], ['5'], ['5'], ['5'], *[['10', '5']] * 2, *[['15', '20']] * 2]
    result = fixtures.train(recorded.config, folder)
    fixtures.assert_restored(folder, recorded, fixtures.NUM_STEPS)
    assert fixtures.records(folder) == fixtures.records(recorded.folder)
    assert result['communication'] == recorded.result['communication']
    assert result['metrics'] | {'seconds': 0} == recorded.result['metrics'] | {'seconds': 0}
    assert {path.name for path in (folder / 'checkpoints').iterdir()} == {'15', '20'}
    # A restored state lies where that of a fresh start does (the second, here): nothing is traced again.
    assert 0 < traced[1] == train_step.traces


def test_a_run_goes_on_from_the_good_checkpoint_with_other_output_settings(
    recorded, data_dir, tmp_path, warnings, monkeypatch
):
    """It replaces the damaged one, and a configuration that is lost meanwhile."""
    folder, save = shutil.copytree(recorded.folder, tmp_path / 'run'), checkpoints.Checkpoints.save
    (folder / 'checkpoints' / '20' / 'state' / '_METADATA').write_bytes(b'')

    def losing(self, *arguments):
        (folder / 'config.json').unlink()
        save(self, *arguments)

    monkeypatch.setattr(checkpoints.Checkpoints, 'save', losing)
    config = fixtures.tiny_config(data_dir, log_every_steps=1, keep_checkpoints=1)
    fixtures.train(config, folder)
    fixtures.assert_restored(folder, recorded, fixtures.NUM_STEPS)
    (warning,) = warnings
    assert 'checkpoints/20 cannot be used (state/_METADATA was changed); continuing from' in warning
    assert json.loads((folder / 'config.json').read_text()) == json.loads(config.to_json())
    records = fixtures.records(folder)
    assert [r['step'] for r in records if 'loss' in r] == [3, 5, 6, 9, 10, 12, 15, *range(16, 21)]
    others = [[r for r in found if 'loss' not in r] for found in (records, fixtures.records(recorded.folder))]
    assert others[0] == others[1]
    assert os.listdir(folder / 'checkpoints') == ['20']


def test_a_damaged_result_is_made_again(recorded, tmp_path):
    folder = shutil.copytree(recorded.folder, tmp_path / 'run')
    (folder / 'result.json').write_text('{"status": "fini')
    assert fixtures.train(recorded.config, folder) == recorded.result
    assert json.loads((folder / 'result.json').read_text()) == recorded.result


def test_a_finished_run_of_which_nothing_is_seen_is_trained_again_to_the_same_bits(
    recorded, tmp_path, monkeypatch
):
    """By another machine, to which a network file system shows it late: time is lost, and nothing else."""
    folder = shutil.copytree(recorded.folder, tmp_path / 'run')
    with monkeypatch.context() as late:
        late.setattr(checkpoints.Checkpoints, 'steps', lambda self: [])
        late.setattr(metrics, 'read', lambda path: [])
        result = fixtures.train(recorded.config, folder)
    assert result['metrics'] | {'seconds': 0} == recorded.result['metrics'] | {'seconds': 0}
    assert fixtures.records(folder) == fixtures.records(recorded.folder)
    fixtures.assert_restored(folder, recorded, fixtures.NUM_STEPS)
    assert {path.name for path in (folder / 'checkpoints').iterdir()} == {'15', '20'}


# --- Save and restore ---


def test_a_state_is_restored_bit_for_bit_where_it_was(recorded, saved):
    assert {path.name for path in (saved / 'checkpoints').iterdir()} == {'7', '9'}  # the newest
    state = fixtures.restored(saved, recorded.experiment)
    fixtures.assert_same_bits(fixtures.shards(state), recorded.states[9])
    like = recorded.experiment.steps.init()
    placement = jax.tree.map(lambda leaf: (leaf.sharding, leaf.committed), like)
    assert jax.tree.map(lambda leaf: (leaf.sharding, leaf.committed), state) == placement
    for leaf in jax.tree.leaves(fixtures.residual(state)):  # every worker keeps its own
        assert len({np.asarray(leaf[worker]).tobytes() for worker in range(fixtures.NUM_WORKERS)}) == 4
