"""The folder of a run: who may use it, and files that are whole or not there."""

import errno
import json
import os
from pathlib import Path
from unittest import mock

import pytest
import training_fixtures as fixtures

from configs import digits
from def_jax.trainer.checkpointing import workdir
from def_jax.trainer.configuration.defaults import KEYS
from def_jax.trainer.metrics import MetricLog


def config(**changes):
    config = digits.get_config()
    config.update(changes)
    return config


@pytest.fixture
def run(tmp_path):
    """The folder of a run."""
    return workdir.claim(tmp_path / 'run', config())


# --- locked ---


def test_two_runs_do_not_share_a_folder(tmp_path):
    """The lock is the kernel's, who frees it when a process is killed, and not when its file is deleted."""
    in_use = r'is in use by another process. Wait for it, or'
    for change in (lambda: None, (tmp_path / 'lock').unlink):
        with workdir.locked(tmp_path):
            change()
            with pytest.raises(ValueError, match=in_use), workdir.locked(tmp_path):
                pass


def test_a_file_system_without_locks_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(workdir.fcntl, 'flock', mock.Mock(side_effect=OSError(errno.ENOLCK, 'No locks')))
    without = 'is on a file system without locks .*No locks.* Choose another --workdir'
    with pytest.raises(ValueError, match=without), workdir.locked(tmp_path):
        pass


# --- claim ---


@pytest.mark.parametrize('name', ['a/b/run', 'läufe mit Zwischenraum', '', '~/run', 'relative'])
def test_a_new_folder_is_made_with_its_configuration_which_finds_it_again(tmp_path, monkeypatch, name):
    """The folder may be text, relative, the user's, or there and empty."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('HOME', str(tmp_path))
    given = name if name in ('~/run', 'relative') else tmp_path / name
    run = workdir.claim(given, config())
    assert run == tmp_path / name.removeprefix('~/') and run.is_absolute()
    assert [path.name for path in run.iterdir()] == ['config.json']
    assert json.loads((run / 'config.json').read_text()) == json.loads(config().to_json())
    (run / 'metrics.jsonl').write_text('{}\n')
    before = fixtures.contents(run)
    assert workdir.claim(given, config()) == run
    assert fixtures.contents(run) == before


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('runs*/a[1]?', r'contains \* \? \[, but orbax.* as a pattern'),
        (b'l\xc3\xa4ufe'.decode('ascii', 'surrogateescape'), 'is not text in UTF-8, as .* Set PYTHONUTF8=1'),
        ('', 'holds files that are not a run'),
        ('file', 'or is a file'),
        ('file/run', 'file'),
        ('~nobody_of_this_name/x', 'names the home of an unknown user'),
    ],
)
def test_what_cannot_be_a_new_folder_is_refused_and_foreign_files_are_left_alone(tmp_path, name, message):
    (tmp_path / 'file').write_text('precious')
    with pytest.raises(ValueError, match=message):
        workdir.claim(name if name[:1] == '~' else tmp_path / name, config())
    assert fixtures.contents(tmp_path) == {Path('file'): b'precious'}


@pytest.mark.parametrize('name', ['metrics.jsonl', 'checkpoints', 'lock'])
@pytest.mark.parametrize('is_there', [True, False])
def test_a_folder_with_links_is_refused_and_nothing_is_written_through_them(run, tmp_path, name, is_there):
    target = tmp_path / 'precious'
    if is_there:
        target.write_text('precious')
    (run / name).symlink_to(target)
    before = fixtures.contents(tmp_path)
    with fixtures.refused(f'{run}.* holds the links {name}, .* overwrite the files .*Remove them'):
        workdir.claim(run, config())
    # Nor if the link is made after that.
    if name == 'lock':
        with fixtures.refused('cannot be written to'), workdir.locked(run):
            pass
    if name == 'metrics.jsonl':
        with fixtures.refused('cannot be written'):
            MetricLog(run, 0, None)
    assert fixtures.contents(tmp_path) == before


def test_a_folder_of_another_user_is_refused(tmp_path, monkeypatch):
    (tmp_path / 'run').mkdir()
    stat, me = Path.stat, os.geteuid()

    def claim(owner):
        def owned(*args, **options):
            found = stat(*args, **options)
            return os.stat_result([*found[:4], owner, *found[5:10]])

        with monkeypatch.context() as patch:
            patch.setattr(Path, 'stat', owned)
            return workdir.claim(tmp_path / 'run', config())

    with fixtures.refused(f'/run.* belongs to the user {me + 1}, and this is {me}.* chown'):
        claim(owner=me + 1)
    assert claim(owner=0) == claim(owner=me) == tmp_path / 'run'  # a volume is often root's


def test_another_configuration_is_refused_with_what_differs(run):
    settings = json.loads((run / 'config.json').read_text())
    del settings['decay']  # keys of another version count as well
    (run / 'config.json').write_text(json.dumps(settings | {'colour': 'red'}))
    before = fixtures.contents(run)
    differences = (
        r".colour: 'red' there, None here, decay: None there, 1\.0 here, "
        r'learning_rate_drops: \[0\.5, 0\.75\] there, \[0\.9\] here, '
        r"method: 'def' there, 'ef' here, ratio: 64\.0 there, 256\.0 here."
    )
    with fixtures.refused(f'{run}.* another configuration {differences}.* Choose another --workdir'):
        workdir.claim(run, config(ratio=256, method='ef', learning_rate_drops=(0.9,), log_every_steps=7))
    assert fixtures.contents(run) == before


def test_whatever_shapes_the_trajectory_is_bound_and_the_output_is_free(run):
    """Other workers may go on with a run; the batch may change only along with them, and nothing else."""
    for changes in (
        *({'seed': 1}, {'num_steps': 9000}, {'momentum': 0.8}, {'train_examples': 500}, {'batch_size': 64}),
        {'num_epochs': config().num_epochs - 1},
        {'num_workers': 8, 'batch_size': 64, 'seed': 1},
    ):
        with pytest.raises(ValueError, match='another configuration'):
            workdir.claim(run, config(**changes))
    for changes in ({'num_workers': 3, 'batch_size': 129}, {'num_workers': 32, 'workers_per_device': 4}):
        assert workdir.claim(run, config(**changes)) == run
    free = {'data_dir': '/moved', 'fake_devices': False, 'keep_checkpoints': 9, 'log_every_steps': 1}
    free |= {'evaluate_on': 'validation', 'eval_every_epochs': 1, 'eval_every_steps': 1, 'test_examples': 9}
    free |= {'evaluate_train_examples': 9, 'recalibrate_batches': 1}
    for key, value in (free | {'diagnostics_every': 1, 'check_replicas_every': 1}).items():
        assert workdir.claim(run, config(**{key: value})) == run
        assert json.loads((run / 'config.json').read_text())[key] != value  # not before it is locked
        workdir.record(run, config(**{key: value}))
        assert json.loads((run / 'config.json').read_text())[key] == value
    workdir.record(run, config(num_epochs=1000))  # it may be prolonged, and not cut short again
    with pytest.raises(ValueError, match='num_epochs: 1000 there'):
        workdir.claim(run, config())
    # What a state depends on: a checkpoint says the same.
    settings = workdir.bound_settings(config()).keys()
    sizes = {'num_workers', 'inside', 'shards_per_worker', 'workers_per_device', 'batch_size'}
    may_change = {*free, *sizes, 'num_epochs', 'num_steps', 'diagnostics_every', 'check_replicas_every'}
    may_change |= {'sequential_workers', 'elastic', 'min_workers', 'patience'}
    assert settings == KEYS.keys() - may_change


def test_a_damaged_record_is_not_overwritten(run):
    for damage in ('{"ratio": 64, "meth', '[]', '[' * 100_000):
        (run / 'config.json').write_text(damage)
        with fixtures.refused(f'{run}/config.json.* Restore that file or choose another --workdir'):
            workdir.claim(run, config())
        assert (run / 'config.json').read_text() == damage


@pytest.mark.parametrize(('target', 'name'), [(Path, 'write_text'), (os, 'link')])
def test_a_folder_that_cannot_be_written_to_is_refused_and_not_lost(tmp_path, monkeypatch, target, name):
    with monkeypatch.context() as patch, fixtures.refused('cannot be written to .*Read-only'):
        patch.setattr(target, name, mock.Mock(side_effect=OSError(errno.EROFS, 'Read-only')))
        workdir.claim(tmp_path / 'run', config())
    workdir.claim(tmp_path / 'run', config())


# --- write_json ---


def half_write(path, text, *args, **kwargs):
    path.write_bytes(text[: len(text) // 2].encode())
    raise OSError('no space left on device')


@pytest.mark.parametrize(
    ('target', 'name', 'crash'),
    [(Path, 'write_text', half_write), (os, 'replace', mock.Mock(side_effect=OSError('interrupted')))],
)
def test_a_crash_while_writing_leaves_the_old_file(tmp_path, monkeypatch, target, name, crash):
    path = tmp_path / 'file.json'
    workdir.write_json(path, {'old': 1})
    with monkeypatch.context() as patch, pytest.raises(OSError):
        patch.setattr(target, name, crash)
        workdir.write_json(path, {'new': 2})
    with pytest.raises(TypeError):  # no JSON
        workdir.write_json(path, {'new': object()})
    assert json.loads(path.read_text()) == {'old': 1}
    workdir.write_json(path, {'new': 2})
    assert json.loads(path.read_text()) == {'new': 2}
    assert os.listdir(tmp_path) == ['file.json']  # and nothing is left behind


def test_two_processes_may_write_a_file_at_once(tmp_path, monkeypatch):
    path, replace = tmp_path / 'file.json', os.replace

    def replace_after_another_process(*paths):
        monkeypatch.setattr(os, 'replace', replace)
        workdir.write_json(path, 'theirs')
        replace(*paths)

    monkeypatch.setattr(os, 'replace', replace_after_another_process)
    workdir.write_json(path, 'ours')
    assert json.loads(path.read_text()) == 'ours' and os.listdir(tmp_path) == ['file.json']


@pytest.mark.parametrize('listed', [False, True])
def test_a_run_that_is_not_seen_yet_is_not_overwritten(run, monkeypatch, listed):
    """A network file system shows what another machine wrote late: names, or only listings of them."""
    exists, listing = Path.exists, Path.iterdir
    before = fixtures.contents(run)
    monkeypatch.setattr(Path, 'exists', lambda path, **kw: path.parent != run and exists(path, **kw))
    monkeypatch.setattr(Path, 'iterdir', lambda path: listing(path) if listed else iter(()))
    assert workdir.claim(run, config()) == run
    with pytest.raises(ValueError, match=r'another configuration .ratio: 64\.0 there, 256\.0 here'):
        workdir.claim(run, config(ratio=256))
    monkeypatch.undo()
    assert fixtures.contents(run) == before


def test_a_file_system_needs_no_hard_links(tmp_path, monkeypatch):
    monkeypatch.setattr(os, 'link', mock.Mock(side_effect=PermissionError(errno.EPERM, 'no links')))
    run = workdir.claim(tmp_path / 'run', config())
    assert [path.name for path in run.iterdir()] == ['config.json'] and workdir.claim(run, config()) == run
