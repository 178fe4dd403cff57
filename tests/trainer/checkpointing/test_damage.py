"""Damaged, foreign and incomplete checkpoints: the newest good one is taken, or the run stops; never zero."""

import contextlib
import dataclasses
import json
import os
import pickle
import shutil
import subprocess
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import pytest
import training_fixtures as fixtures

from def_jax.trainer import experiment
from def_jax.trainer.checkpointing import checkpoints, manifest
from def_jax.trainer.data import in_memory

# Orbax leaves the coroutines of a failed write to the garbage collector, which reports them.
ignore_abandoned_writes = pytest.mark.filterwarnings(
    'ignore::pytest.PytestUnraisableExceptionWarning', 'ignore::pytest.PytestUnhandledThreadExceptionWarning'
)


def complete(folder):
    """All but a partial checkpoint: after a failure, threads of tensorstore may still write to one."""
    return {path: data for path, data in fixtures.contents(folder).items() if '.partial/' not in str(path)}


def with_one_bit_flipped(content):
    place = np.random.default_rng(len(content)).integers(8 * len(content))
    changed = bytearray(content)
    changed[place // 8] ^= 1 << (place % 8)
    return bytes(changed)


DAMAGES = {
    'truncated': lambda content: content[: len(content) // 2],
    'overwritten': lambda content: np.random.default_rng(0).bytes(max(1, len(content))),
    'emptied': lambda content: b'',
    'one bit': with_one_bit_flipped,
    'deleted': None,
}


def damage(path, kind):
    """Does to a file what a kind of `DAMAGES` says."""
    content = path.read_bytes()
    path.unlink()
    if kind != 'deleted':
        path.write_bytes(DAMAGES[kind](content))


def assert_falls_back(recorded, folder, warnings):
    """The checkpoint of step 7 is restored and the warning names it and that of step 9."""
    fixtures.assert_restored(folder, recorded, 7)
    (line,) = warnings
    assert f'checkpoint {folder}/checkpoints/9 cannot be used' in line and '\n' not in line
    assert f'continuing from {folder}/checkpoints/7, step 7' in line
    warnings.clear()


# --- Damage ---


def test_damage_to_any_one_file_is_noticed(recorded, saved, tmp_path, warnings):
    """Also a flipped bit in the arrays, which orbax alone restores without a word."""
    whole = fixtures.contents(saved / 'checkpoints' / '9')
    assert len(whole) > 5 and Path('manifest.json') in whole
    folder = shutil.copytree(saved, tmp_path / 'run')
    newest = folder / 'checkpoints' / '9'
    for path, content in whole.items():
        for kind in DAMAGES:
            damage(newest / path, kind)
            with pytest.raises(manifest.DamagedError):
                manifest.read_verified(newest, 9)
            (newest / path).write_bytes(content)
    assert manifest.read_verified(newest, 9)
    damage(newest / max(whole, key=lambda path: len(whole[path])), 'one bit')
    assert_falls_back(recorded, folder, warnings)


def test_no_bit_of_the_manifest_can_change_unseen(saved, tmp_path):
    folder = shutil.copytree(saved / 'checkpoints' / '9', tmp_path / '9')
    whole = (folder / 'manifest.json').read_bytes()
    expected = manifest.read_verified(folder, 9)
    for place in np.random.default_rng(0).integers(8 * len(whole), size=300):
        content = bytearray(whole)
        content[place // 8] ^= 1 << (place % 8)
        (folder / 'manifest.json').write_bytes(content)
        if chr(whole[place // 8]).isspace():  # which may become another
            with contextlib.suppress(manifest.DamagedError):
                assert manifest.read_verified(folder, 9) == expected
        else:
            with pytest.raises(manifest.DamagedError):
                manifest.read_verified(folder, 9)


def of_another_format(folder):
    content = json.loads((folder / 'manifest.json').read_text()) | {'format': 99}
    (folder / 'manifest.json').write_text(json.dumps(content))


def of_another_step(folder):
    shutil.rmtree(folder)
    shutil.copytree(folder.with_name('7'), folder)


@pytest.mark.parametrize(
    ('change', 'reason'),
    [
        (of_another_format, 'its format is 99, but this version reads 2; def_jax .* wrote it and can finish'),
        (of_another_step, 'it was written at step 7'),
    ],
)
def test_the_newest_good_checkpoint_is_taken(recorded, saved, tmp_path, warnings, change, reason):
    folder = shutil.copytree(saved, tmp_path / 'run')
    change(folder / 'checkpoints' / '9')
    assert_falls_back(recorded, folder, warnings)
    shutil.rmtree(folder / 'checkpoints' / '7')
    before = fixtures.contents(folder)
    other = 'no other .* another --workdir to start from scratch'
    with fixtures.refused(f'checkpoints/9 cannot be used .*({reason}).* {other}'):
        fixtures.restored(folder, recorded.experiment)
    assert fixtures.contents(folder) == before


@pytest.mark.parametrize(
    ('changes', 'difference'),
    [
        (
            {'method': 'ef', 'ratio': 16, 'seed': 7},
            r"method: 'def' there, 'ef' here, ratio: 8\.0 there, 16\.0 here, seed: 0 there, 7 here",
        ),
        # Whatever the configuration says, as after a change of the library.
        ({'method': 'sgd'}, r'opt_state.* is missing there|opt_state.* is .* there, missing here'),
        ({'model': 'vgg_small', 'dataset': 'digits'}, r'params\..* there, .* here'),
    ],
)
def test_a_checkpoint_of_another_configuration_or_with_other_arrays_is_refused(
    recorded, saved, data_dir, changes, difference
):
    """Also where its arrays have the same names and shapes, and were copied into the run's folder."""
    other = experiment.build(fixtures.tiny_config(data_dir, **changes))
    arrays = 'there|' in difference or 'params' in difference
    run = dataclasses.replace(other, config=(recorded.experiment if arrays else other).config)
    where = 'another model or method: .*' if arrays else 'cannot be used .*with another configuration: '
    with checkpoints.Checkpoints(saved, run) as manager, fixtures.refused(f'{where}({difference})'):
        manager.restore(jax.eval_shape(other.steps.init))


def lose_records(folder):
    """Or the accuracy of an earlier step would be reported as that of the last."""
    (folder / 'result.json').unlink()
    (folder / 'metrics.jsonl').write_bytes((folder / 'metrics.jsonl').read_bytes()[:-800])


def lose_all(folder):
    shutil.rmtree(folder / 'checkpoints')


def fill_the_disk(folder):
    mock.patch.object(checkpoints.shutil, 'disk_usage', lambda path: mock.Mock(free=99)).start()


@pytest.mark.parametrize(
    ('lose', 'message'),
    [
        (lose_records, r'before the checkpoint of step 20 are lost\. Restore that file'),
        (lose_all, 'are missing, but it has the records of 4 evaluations'),
        (fill_the_disk, r'has 0.0 MB free, and a checkpoint of this run takes 0\.0 MB'),
    ],
)
def test_a_run_that_cannot_go_on_is_refused_and_left_as_it_was(recorded, tmp_path, lose, message):
    """It does not start from zero."""
    folder = shutil.copytree(recorded.folder, tmp_path / 'run')
    lose(folder)
    before = fixtures.contents(folder)
    with pytest.raises(ValueError, match=message):
        fixtures.train(recorded.config, folder)
    mock.patch.stopall()
    assert fixtures.contents(folder).items() >= before.items()


# --- What a kill leaves ---


def test_what_a_kill_leaves_of_a_checkpoint_is_not_taken_for_one(recorded, saved, tmp_path, warnings):
    folder = shutil.copytree(saved, tmp_path / 'run')
    (folder / 'checkpoints' / '9').rename(folder / 'checkpoints' / '9.partial')
    late = folder / 'checkpoints' / '11.partial' / 'state.orbax-checkpoint-tmp' / 'd'
    late.mkdir(parents=True)
    (late / 'block').write_bytes(b'written by a thread that had not heard of a failure')
    fixtures.assert_restored(folder, recorded, 7)
    assert not warnings  # nothing is wrong
    fixtures.save(folder, recorded, 9)
    assert sorted(os.listdir(folder / 'checkpoints')) == ['7', '9']


# --- Parts that orbax leaves out, and a folder that is elsewhere ---


def test_a_checkpoint_is_not_certified_where_orbax_has_left_parts_out(recorded, tmp_path):
    """It takes this path for a pattern, finds none of its own files and merges nothing."""
    folder = tmp_path / 'a[1]'
    folder.mkdir()
    with fixtures.refused(r'no checkpoint could be written to .* \(orbax wrote an incomplete checkpoint\)'):
        fixtures.save(folder, recorded, 9)
    assert os.listdir(folder / 'checkpoints') == []


def test_a_folder_that_was_renamed_is_not_made_again(recorded, saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / 'run')
    manager = checkpoints.Checkpoints(folder, recorded.experiment)
    folder.rename(tmp_path / 'elsewhere')
    with fixtures.refused(r'the folder is gone: rename it back'):
        manager.save(fixtures.placed(fixtures.gathered(recorded.states[11]), recorded.experiment))
    manager.close()
    assert os.listdir(tmp_path) == ['elsewhere']


# --- Nothing in files is executed ---


def test_checkpoints_and_data_are_read_and_never_executed(recorded, saved, data_dir, tmp_path, monkeypatch):
    """Not even by a library: no unpickling, no process, no import from the folders."""

    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / 'executed'), 'w'))

    def refuse(*args, **kwargs):
        raise AssertionError('something was executed')

    folder = shutil.copytree(saved, tmp_path / 'run')
    newest = folder / 'checkpoints' / '9'
    for name in ('aggregate', 'state/_METADATA.pickle', 'state/extra.pkl'):
        (newest / name).write_bytes(pickle.dumps(Bomb()))
    (newest / 'sitecustomize.py').write_text('raise SystemExit')
    for module, name in ((pickle, 'load'), (pickle, 'loads'), (pickle, 'Unpickler'), (subprocess, 'Popen')):
        monkeypatch.setattr(module, name, refuse)
    fixtures.assert_restored(folder, recorded, 9)
    in_memory.load_dataset('digits', data_dir)
    assert not (tmp_path / 'executed').exists()


# --- A full disk, and one that cannot be written to ---


@ignore_abandoned_writes
def test_a_checkpoint_that_cannot_be_written_leaves_the_earlier_ones(recorded, saved, tmp_path, small_files):
    folder = shutil.copytree(saved, tmp_path / 'run')
    before = fixtures.contents(folder)
    with small_files(1000), fixtures.refused(r'no checkpoint could be written to .*earlier ones are kept'):
        fixtures.save(folder, recorded, 11)
    assert complete(folder) == before
