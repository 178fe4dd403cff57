"""The folder of a run: who may use it, and files that are whole or not there."""

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import training_fixtures as fixtures

from configs import digits
from def_jax.trainer.checkpointing import workdir


def config(**changes):
    config = digits.get_config()
    config.update(changes)
    return config


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob('*') if path.is_file()}


# --- locked ---

HOLDER = """
import sys
from pathlib import Path
from def_jax.trainer.checkpointing import workdir
with workdir.locked(Path(sys.argv[1])):
    print('locked', flush=True)
    sys.stdin.read()
"""


def test_two_processes_do_not_share_a_folder_and_a_killed_one_frees_it(tmp_path):
    command = [sys.executable, '-c', HOLDER, str(tmp_path)]
    root = Path(__file__).parents[3]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=root) as other:
        assert other.stdout.readline() == b'locked\n'
        refused = pytest.raises(workdir.InUseError, match=r'is in use by another process. Wait for it, or')
        with refused, workdir.locked(tmp_path):
            pass
        other.kill()
    with workdir.locked(tmp_path):
        pass


@pytest.mark.parametrize('code', [errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP])
def test_a_file_system_without_locks_is_refused(tmp_path, monkeypatch, code):
    def flock(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(workdir.fcntl, 'flock', flock)
    with (
        pytest.raises(
            ValueError, match=r'is on a file system without locks .* Choose another --workdir'
        ) as error,
        workdir.locked(tmp_path),
    ):
        pass
    assert not isinstance(error.value, workdir.InUseError)  # a sweep would wait for it


# --- claim ---


@pytest.mark.parametrize('name', ['a/b/run', 'läufe mit Zwischenraum'])
def test_a_new_folder_is_made_with_its_configuration(tmp_path, name):
    run = workdir.claim(tmp_path / name, config())
    assert run == tmp_path / name and run.is_absolute()
    assert [path.name for path in run.iterdir()] == ['config.json']
    assert json.loads((run / 'config.json').read_text()) == json.loads(config().to_json())


def test_a_folder_may_be_given_as_text_and_relative(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert workdir.claim('run', config()) == tmp_path / 'run'


def test_home_is_where_a_tilde_stands(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    assert workdir.claim('~/run', config()) == tmp_path / 'run'


@pytest.mark.parametrize(('name', 'letters'), [('a[1]', '['), ('runs*/b', '*'), ('why?', '?')])
def test_a_path_that_orbax_takes_for_a_pattern_is_refused(tmp_path, name, letters):
    with pytest.raises(ValueError, match=rf'contains {re.escape(letters)}, but orbax.* as a pattern'):
        workdir.claim(tmp_path / name, config())
    assert os.listdir(tmp_path) == []


def test_an_empty_folder_can_be_used(tmp_path):
    workdir.claim(tmp_path, config())
    assert (tmp_path / 'config.json').exists()


def test_the_same_configuration_finds_its_folder_again(tmp_path):
    run = workdir.claim(tmp_path / 'run', config())
    (run / 'metrics.jsonl').write_text('{}\n')
    before = contents(run)
    assert workdir.claim(tmp_path / 'run', config()) == run
    assert contents(run) == before


def test_another_configuration_is_refused_with_what_differs(tmp_path):
    run = workdir.claim(tmp_path / 'run', config())
    before = contents(run)
    with pytest.raises(ValueError) as error:
        workdir.claim(run, config(ratio=256, method='ef', learning_rate_drops=(0.9,), log_every_steps=7))
    message = str(error.value)
    assert str(run) in message and '\n' not in message and 'Choose another --workdir' in message
    for difference in (
        'ratio: 64.0 there, 256.0 here',
        "method: 'def' there, 'ef' here",
        'learning_rate_drops: [0.5, 0.75] there, [0.9] here',
    ):
        assert difference in message
    assert 'seed' not in message and 'log_every_steps' not in message
    assert contents(run) == before


@pytest.mark.parametrize(
    'changes',
    [{'seed': 1}, {'num_epochs': 281}, {'momentum': 0.8}, {'workers_per_device': 2}, {'train_examples': 500}],
)
def test_whatever_shapes_the_trajectory_is_bound(tmp_path, changes):
    workdir.claim(tmp_path / 'run', config())
    with pytest.raises(ValueError, match=f'another configuration .{next(iter(changes))}: '):
        workdir.claim(tmp_path / 'run', config(**changes))


@pytest.mark.parametrize(
    'changes',
    [
        *({'data_dir': '/moved'}, {'fake_devices': False}),
        *({'keep_checkpoints': 9}, {'log_every_steps': 1}, {'diagnostics_every': 1}),
        {'check_replicas_every': 1},
    ],
)
def test_whatever_shapes_only_the_output_is_free(tmp_path, changes):
    workdir.claim(tmp_path / 'run', config())
    run = workdir.claim(tmp_path / 'run', config(**changes))
    (key, value), *_ = changes.items()
    assert json.loads((run / 'config.json').read_text())[key] != value  # not before it is locked
    workdir.record(run, config(**changes))
    assert json.loads((run / 'config.json').read_text())[key] == value


@pytest.mark.parametrize(
    'changes',
    [{'num_workers': 8}, {'num_workers': 3, 'batch_size': 129}, {'num_workers': 32, 'workers_per_device': 4}],
)
def test_other_workers_may_go_on_with_a_run_where_they_are_asked_for(tmp_path, changes):
    run = workdir.claim(tmp_path / 'run', config())
    before = contents(run)
    with pytest.raises(ValueError, match='another configuration'):
        workdir.claim(run, config(**changes))
    assert workdir.claim(run, config(**changes), other_workers=True) == run
    assert contents(run) == before


def test_the_batch_may_change_only_along_with_the_workers(tmp_path):
    run = workdir.claim(tmp_path / 'run', config())
    for changes in ({'batch_size': 64}, {'num_workers': 8, 'batch_size': 64, 'seed': 1}):
        with pytest.raises(ValueError, match='another configuration'):
            workdir.claim(run, config(**changes), other_workers=True)


def test_keys_of_another_version_count_as_a_difference(tmp_path):
    run = workdir.claim(tmp_path / 'run', config())
    settings = json.loads((run / 'config.json').read_text())
    del settings['detach']
    (run / 'config.json').write_text(json.dumps(settings | {'colour': 'red'}))
    with pytest.raises(ValueError, match=r"colour: 'red' there, None here.*detach: None there, 0.3 here"):
        workdir.claim(run, config())


@pytest.mark.parametrize('detach', [0.3, 'auto'])
def test_a_run_of_version_0_2_goes_on(tmp_path, detach):
    run, ours = workdir.claim(tmp_path / 'run', config(detach=detach)), config(detach=detach)
    settings = json.loads((run / 'config.json').read_text())
    for later in ('elastic', 'min_workers', 'patience', 'overlap'):
        del settings[later]
    settings |= {'detach': 0.3, 'auto_detach': detach == 'auto'}
    (run / 'config.json').write_text(json.dumps(settings))
    assert workdir.claim(run, ours) == run
    with pytest.raises(ValueError, match=rf'detach: {detach!r} there, 0\.1 here'):
        workdir.claim(run, config(detach=0.1))
    bound = workdir.bound_settings(ours)  # what a checkpoint records
    earlier = {name: value for name, value in settings.items() if name in {*bound, 'auto_detach'}}
    assert not workdir.describe_differences(earlier, bound)


def test_foreign_files_are_left_alone(tmp_path):
    (tmp_path / 'thesis.tex').write_text('precious')
    with pytest.raises(ValueError, match='holds files that are not a run') as error:
        workdir.claim(tmp_path, config())
    assert str(tmp_path) in str(error.value)
    assert contents(tmp_path) == {Path('thesis.tex'): b'precious'}


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / 'file').write_text('precious')
    with pytest.raises(ValueError, match='is a file'):
        workdir.claim(tmp_path / 'file', config())
    assert (tmp_path / 'file').read_text() == 'precious'


def test_there_is_no_folder_below_a_file(tmp_path):
    (tmp_path / 'file').write_text('precious')
    with pytest.raises(ValueError, match='file'):
        workdir.claim(tmp_path / 'file' / 'run', config())
    assert (tmp_path / 'file').read_text() == 'precious'


@pytest.mark.parametrize('damage', ['', '{"ratio": 64, "meth', '\x00\x00', '[]', 'null', '64', '[' * 100_000])
def test_a_damaged_record_is_not_overwritten(tmp_path, damage):
    run = workdir.claim(tmp_path / 'run', config())
    (run / 'config.json').write_text(damage)
    with pytest.raises(ValueError) as error:
        workdir.claim(run, config())
    message = str(error.value)
    assert str(run / 'config.json') in message and 'Restore that file or choose another --workdir' in message
    assert '\n' not in message
    assert (run / 'config.json').read_text() == damage


def test_a_folder_is_not_lost_by_a_crash_in_its_first_moment(tmp_path, monkeypatch):
    def crash(*args):
        raise OSError('no space left on device')

    with monkeypatch.context() as patch, pytest.raises((OSError, ValueError)):
        patch.setattr(os, 'replace', crash)
        patch.setattr(Path, 'replace', crash)
        workdir.claim(tmp_path / 'run', config())
    workdir.claim(tmp_path / 'run', config())


def test_every_key_is_bound_free_or_of_the_workers():
    """`claim` and `bound_settings` agree on what a state depends on."""
    bound = workdir.bound_settings(config())
    assert not bound.keys() & {
        'num_workers',
        'shards_per_worker',
        'batch_size',
        'log_every_steps',
        'data_dir',
    }
    assert {'method', 'seed', 'ratio', 'granularity', 'order', 'allocation', 'num_epochs'} < bound.keys()


# --- write_json ---


def test_json_is_written_readably(tmp_path):
    workdir.write_json(tmp_path / 'file.json', {'a': [1, 2.5, None], 'λ': 'é'})
    text = (tmp_path / 'file.json').read_text()
    assert json.loads(text) == {'a': [1, 2.5, None], 'λ': 'é'}
    assert text.endswith('\n') and text.count('\n') > 3
    assert os.listdir(tmp_path) == ['file.json']


def half_write(path, text, *args, **kwargs):
    with path.open('w') as file:
        file.write(text[: len(text) // 2])
    raise OSError('no space left on device')


def no_replace(*args):
    raise OSError('interrupted')


@pytest.mark.parametrize(
    ('target', 'name', 'crash'),
    [(Path, 'write_text', half_write), (os, 'replace', no_replace)],
)
def test_a_crash_while_writing_leaves_the_old_file(tmp_path, monkeypatch, target, name, crash):
    path = tmp_path / 'file.json'
    workdir.write_json(path, {'old': 1})
    with monkeypatch.context() as patch, pytest.raises(OSError):
        patch.setattr(target, name, crash)
        workdir.write_json(path, {'new': 2})
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


@pytest.mark.parametrize('before', ['looking', 'listing'])
def test_two_processes_of_a_sweep_may_claim_its_folder_at_once(tmp_path, monkeypatch, before):
    """The other one claims it and writes its table while this one looks what is there."""
    folder, looked_at = tmp_path / 'sweep', {'looking': 'exists', 'listing': 'is_dir'}[before]
    look = getattr(Path, looked_at)

    def claimed_first(path, **options):
        result = look(path, **options)
        if path == (folder if before == 'listing' else folder / 'config.json'):
            monkeypatch.setattr(Path, looked_at, look)
            workdir.claim(folder, config())
            workdir.write_json(folder / 'sweep.json', {})
        return result

    monkeypatch.setattr(Path, looked_at, claimed_first)
    assert workdir.claim(folder, config()) == folder
    assert sorted(os.listdir(folder)) == ['config.json', 'sweep.json']


def test_content_that_is_not_json_leaves_the_old_file(tmp_path):
    path = tmp_path / 'file.json'
    workdir.write_json(path, {'old': 1})
    with pytest.raises(TypeError):
        workdir.write_json(path, {'new': object()})
    assert json.loads(path.read_text()) == {'old': 1}


@pytest.mark.parametrize('code', [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_a_folder_that_cannot_be_written_to_is_refused(recorded, tmp_path, monkeypatch, code):
    def fail(path, *args, **kwargs):
        raise OSError(code, os.strerror(code), str(path))

    monkeypatch.setattr(Path, 'write_text', fail)
    with pytest.raises(ValueError, match=f'cannot be written to .*{os.strerror(code)}') as error:
        fixtures.train(recorded.config, tmp_path / 'run')
    assert '\n' not in str(error.value)


def test_the_home_of_an_unknown_user_is_refused():
    with pytest.raises(ValueError, match='names the home of an unknown user'):
        workdir.claim('~nobody_of_this_name/x', config())
