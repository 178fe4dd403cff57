"""Checkpoints: exact, in place, bounded in number, never half read; interrupted equals uninterrupted."""

import contextlib
import json
import os
import shutil
import sys
import threading
import time
import types
from concurrent import futures
from unittest import mock

import ml_collections
import numpy as np
import pytest
import training_fixtures as fixtures

from def_jax.trainer import loop, results
from def_jax.trainer.checkpointing import checkpoints, manifest
from def_jax.trainer.configuration.parts import complete
from def_jax.trainer.data import order
from def_jax.trainer.data.dataset import Dataset
from def_jax.trainer.data.in_memory import Arrays
from def_jax.trainer.launch import processes

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
    assert json.loads((folder / 'config.json').read_text()) == json.loads(complete(config).to_json())
    records = fixtures.records(folder)
    assert [r['step'] for r in records if 'loss' in r] == [3, 5, 6, 9, 10, 12, 15, *range(16, 21)]
    others = [[r for r in found if 'loss' not in r] for found in (records, fixtures.records(recorded.folder))]
    assert others[0] == others[1]
    assert os.listdir(folder / 'checkpoints') == ['20']


def test_training_goes_on_while_a_checkpoint_is_written(recorded, tmp_path, monkeypatch):
    """The first, after 5 steps, is not complete before step 7 is made."""
    made, write = threading.Event(), manifest.write

    def slow(*args):
        assert made.wait(20), 'training has waited'
        write(*args)

    monkeypatch.setattr(manifest, 'write', slow)
    with fixtures.poisoned_state(7, lambda state: made.set() or state):
        fixtures.train(recorded.config, tmp_path / 'run')
    assert fixtures.records(tmp_path / 'run') == fixtures.records(recorded.folder)
    assert sorted(os.listdir(tmp_path / 'run' / 'checkpoints')) == ['15', '20']
    fixtures.assert_restored(tmp_path / 'run', recorded, fixtures.NUM_STEPS)


def test_a_result_is_of_a_run_whose_last_checkpoint_is_complete(recorded, tmp_path, monkeypatch):
    monkeypatch.setattr(manifest, 'write', mock.Mock(side_effect=[None, None, None, OSError('disk full')]))
    with fixtures.refused('no checkpoint could be written'):
        fixtures.train(recorded.config, tmp_path / 'run')
    assert not (tmp_path / 'run' / 'result.json').exists()


def test_a_checkpoint_is_not_complete_before_its_name_would_survive_a_power_cut(
    recorded, tmp_path, monkeypatch
):
    """The folder is synced once the new name is in it, and before what it replaces is removed."""
    seen = []
    folder = tmp_path / 'checkpoints'
    monkeypatch.setattr(checkpoints, 'sync', lambda path: seen.append((path, sorted(os.listdir(path)))))
    fixtures.save(tmp_path, recorded, 5)
    assert seen == [(folder, ['5'])]
    fixtures.save(tmp_path, recorded, 5)  # as where the first is damaged
    assert seen[1:] == [(folder, ['5', '5.replaced'])] and os.listdir(folder) == ['5']


def test_a_clock_that_jumps_while_a_checkpoint_is_written_does_not_fail_it(recorded, tmp_path, monkeypatch):
    """As when a machine that was suspended for days wakes: orbax waits by the wall clock."""
    now = time.time

    def jumped():
        waits = sys._getframe(1).f_code.co_name == 'get_remaining_time'
        return now() + 1e6 * waits

    monkeypatch.setattr(time, 'time', jumped)
    fixtures.save(tmp_path, recorded, 5)
    fixtures.assert_restored(tmp_path, recorded, 5)


def test_a_damaged_result_is_made_again(recorded, tmp_path):
    folder = shutil.copytree(recorded.folder, tmp_path / 'run')
    (folder / 'result.json').write_text('{"status": "fini')
    assert fixtures.train(recorded.config, folder) == recorded.result
    assert json.loads((folder / 'result.json').read_text()) == recorded.result


# --- Files that another process does not see yet, as on a network file system ---


@pytest.fixture
def as_two_processes(monkeypatch):
    """Runs `work()` in two threads, which agree as two processes do; gives both results, and who calls."""
    told, meeting, me = [None, None], threading.Barrier(2, timeout=60), threading.local()

    def everywhere(value):
        told[me.index] = value
        meeting.wait()
        values = tuple(told)
        meeting.wait()
        return values

    def process(index, work):
        me.index = index
        return work()

    def run(work):
        with futures.ThreadPoolExecutor(2) as pool:
            return list(pool.map(process, (0, 1), (work, work)))

    monkeypatch.setattr(processes, 'broadcast', lambda value: everywhere(value)[0])
    monkeypatch.setattr(processes, 'any_process', lambda flag: any(everywhere(flag)))
    return run, me


@pytest.mark.parametrize(
    ('late', 'listed', 'looks', 'step'),
    [
        pytest.param(1, [], 2, 9, id='process 1 sees none at first'),
        pytest.param(1, [7, 9], 99, 7, id='process 1 never sees the files of the newest'),
        pytest.param(0, [7], 0, 7, id='process 0 sees an old listing'),
    ],
)
def test_processes_agree_on_the_checkpoint(
    recorded, saved, warnings, monkeypatch, as_two_processes, late, listed, looks, step
):
    """One of them is late: it sees another listing, and the files of step 9 only after some looks."""
    (run, me), steps_of, read = as_two_processes, checkpoints.Checkpoints.steps, manifest.read_verified
    unseen = iter(range(looks))

    def read_late(path, step):
        if me.index == late and step == 9 and next(unseen, None) is not None:
            raise manifest.DamagedError('it has no manifest.json')
        return read(path, step)

    monkeypatch.setattr(processes, 'LATE_SECONDS', 4)
    monkeypatch.setattr(processes.time, 'sleep', lambda seconds: None)
    monkeypatch.setattr(manifest, 'read_verified', read_late)
    monkeypatch.setattr(
        checkpoints.Checkpoints, 'steps', lambda self: listed if me.index == late else steps_of(self)
    )
    for state in run(lambda: fixtures.restored(saved, recorded.experiment)):
        fixtures.assert_same_bits(fixtures.shards(state), recorded.states[step])
    assert len(warnings) == (2 if looks > 4 else 0)  # of both


def test_processes_agree_that_one_cannot_read_the_arrays(
    recorded, saved, warnings, monkeypatch, as_two_processes
):
    (run, me), restore = as_two_processes, checkpoints.ocp.StandardCheckpointer.restore

    def restore_or_fail(self, path, target):
        if me.index == 1 and path.parent.name == '9':
            raise OSError('stale file handle')
        return restore(self, path, target)

    monkeypatch.setattr(checkpoints.ocp.StandardCheckpointer, 'restore', restore_or_fail)
    for state in run(lambda: fixtures.restored(saved, recorded.experiment)):
        fixtures.assert_same_bits(fixtures.shards(state), recorded.states[7])
    assert any('another process cannot read' in line for line in warnings)
    assert any('stale file handle' in line for line in warnings) and len(warnings) == 2


@pytest.mark.parametrize(
    ('differs', 'words'),
    [('', ''), ('data', 'holds other examples for some'), ('log_every_steps', 'config differs between')],
)
def test_processes_that_would_train_something_else_are_refused(monkeypatch, as_two_processes, differs, words):
    run, me = as_two_processes
    monkeypatch.setattr(processes, 'count', lambda: 2)

    def check():
        data = Arrays({'label': np.arange(4) + (me.index if differs == 'data' else 0)})
        config = {'dataset': 'python_stdlib', 'elastic': False, 'data_dir': f'/scratch/{me.index}'}
        config['log_every_steps'] = me.index if differs == 'log_every_steps' else 0
        experiment = types.SimpleNamespace(
            dataset=Dataset(data, data), config=ml_collections.FrozenConfigDict(config)
        )
        loop._check_same(experiment)

    with fixtures.refused(words) if words else contextlib.nullcontext():
        run(check)
