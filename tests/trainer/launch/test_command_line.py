"""Programs as a user runs them: how processes end, a run, a kill, a resumption."""

import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import pytest

from benchmarks.reliability import processes
from def_jax.trainer import metrics
from def_jax.trainer.launch import command_line

SHORT = [
    *processes.SMALL,
    *('--config.num_workers=2', '--config.train_examples=256', '--config.batch_size=64', '--config.ratio=8'),
    *('--config.num_epochs=10', '--config.eval_every_epochs=1', '--config.log_every_steps=3'),
]


# --- Refusals: what is wrong with a configuration, test_config_errors.py and test_rules.py say. ---


def test_an_address_that_is_taken_is_refused(environment, tmp_path):
    with socket.socket(socket.AF_INET6) as taken:
        taken.bind(('::', 0))
        taken.listen()
        place = [f'--coordinator_address=localhost:{taken.getsockname()[1]}', '--num_processes=2']
        flags = [*SHORT, *place, '--process_id=0', f'--workdir={tmp_path / "run"}']
        process = processes.ran(flags, environment)
    assert process.returncode == 2
    last = process.stderr.splitlines()[-1]
    assert last.startswith('train.py: cannot join the processes at localhost:')
    assert not (tmp_path / 'run').exists()


@pytest.fixture
def kept_in(tmp_path, monkeypatch):
    """Sets up the environment of a run; gives the folder for compiled programs, if it has one."""
    monkeypatch.setattr(command_line.flags, 'FLAGS', {'verbosity': mock.Mock(present=True)})
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    monkeypatch.delenv('JAX_COMPILATION_CACHE_DIR')

    def set_up():
        config = mock.Mock()
        monkeypatch.setattr(command_line, 'jax', config)
        command_line.set_environment(fake_devices=False)
        settings = dict(call.args for call in config.config.update.call_args_list)
        return settings.get('jax_compilation_cache_dir')

    return set_up


def test_compiled_programs_are_kept_where_the_users_cache_can_be_written_to(tmp_path, kept_in):
    (tmp_path / 'def_jax').touch()
    assert kept_in() is None
    (tmp_path / 'def_jax').unlink()
    umask = os.umask(0o002)  # with which others of the group may write to new folders
    try:
        assert kept_in() == kept_in() == f'{tmp_path}/def_jax/compiled'
    finally:
        os.umask(umask)


@pytest.mark.parametrize('name', ['def_jax', 'def_jax/compiled'])
def test_programs_that_somebody_else_may_have_put_there_are_not_run(tmp_path, monkeypatch, kept_in, name):
    kept_in()
    for mode in (0o777, 0o720):
        (tmp_path / name).chmod(mode)
        assert kept_in() is None
    (tmp_path / name).chmod(0o755)
    assert kept_in() is not None
    stat, lstat = Path.stat, Path.lstat

    def owned(found):
        return os.stat_result([*found[:4], os.geteuid() + 1, *found[5:10]])

    for function, found in (('stat', stat), ('lstat', lstat)):  # a link is its maker's
        with monkeypatch.context() as patch:
            patch.setattr(Path, function, lambda path, found=found, **options: owned(found(path, **options)))
            assert kept_in() is None


WATCHED = 'import os, signal, sys, time\nfrom def_jax.trainer.launch.supervision import supervised\n'


def test_how_watched_processes_end(environment):
    endings = 'lambda: 3, lambda: sys.exit(5), lambda: {}[1], os.abort, lambda: os.kill(os.getpid(), 9)'
    program = f"{WATCHED}for run in {endings}:\n    print(supervised('program', run))"
    process = processes.ran([], environment, '-c', program)
    assert process.stdout.split() == ['3', '5', '1', '6', '137'] and process.returncode == 0
    first, *_, error, aborted, killed = process.stderr.splitlines()
    assert first.startswith('Traceback') and error == 'KeyError: 1'
    assert aborted.startswith('program: aborted by JAX') and killed == 'program: killed by SIGKILL.'


def test_signals_are_passed_on_and_a_killed_parent_takes_its_child_along():
    program = f"""{WATCHED}import threading
def run():
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    signal.signal(signal.SIGTERM, lambda *_: print('told', flush=True))
    print(os.getpid(), flush=True)
    for _ in range(36_000): time.sleep(0.1)
# A signal that another thread receives interrupts no system call here, as one that comes just before it.
threading.Thread(target=time.sleep, args=[3600], daemon=True).start()
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
supervised('program', run)"""
    command = [sys.executable, '-c', program]
    process = subprocess.Popen(command, cwd=processes.ROOT, text=True, stdout=subprocess.PIPE)
    child = int(process.stdout.readline())
    assert child != process.pid
    until(lambda: catches(process.pid, signal.SIGTERM))  # it sets up its handlers after the fork
    process.send_signal(signal.SIGTERM)
    assert select.select([process.stdout], [], [], 300)[0] and process.stdout.readline() == 'told\n'
    process.kill()
    process.communicate(timeout=300)
    until(lambda: has_ended(child))


def until(condition):
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def catches(pid, number):
    (mask,) = re.findall(r'SigCgt:\s*(\w+)', Path(f'/proc/{pid}/status').read_text())
    return (int(mask, 16) >> (number - 1)) & 1


def has_ended(pid):
    try:
        return Path(f'/proc/{pid}/stat').read_text().split()[2] == 'Z'
    except OSError:  # it is reaped
        return True


@pytest.fixture(scope='module')
def finished(environment, tmp_path_factory):
    """An uninterrupted run, where standard output is ASCII and no folder for compiled programs is given."""
    folder = tmp_path_factory.mktemp('finished') / 'run'
    given = {name: value for name, value in environment.items() if 'JAX_COMPILATION' not in name}
    given |= {'PYTHONIOENCODING': 'ascii', 'XDG_CACHE_HOME': str(folder.parent / 'cache')}
    return folder, processes.ran([*SHORT, f'--workdir={folder}'], given)


@pytest.mark.slow
def test_a_run_ends_with_exit_code_0_and_its_result_and_keeps_what_it_compiled(finished):
    folder, process = finished
    assert process.returncode == 0 and 'Traceback' not in process.stderr, process.stderr
    result = json.loads((folder / 'result.json').read_text())
    assert (result['status'], result['config']['ratio']) == ('finished', 8)
    assert '?=0.3' in process.stdout and f'written to {folder}' in process.stdout
    losses = [r['loss'] for r in metrics.read(folder / 'metrics.jsonl') if 'loss' in r]
    assert losses[-1] < 0.8 * losses[0] and result['metrics']['test_accuracy_x'] > 0.3
    compiled = folder.parent / 'cache' / 'def_jax' / 'compiled'  # native code: not beside the checkpoints
    assert list(compiled.iterdir()) and compiled.stat().st_mode & 0o77 == 0
    assert not (folder / 'compilation_cache').exists()


@pytest.mark.slow
def test_a_run_that_is_killed_and_stopped_ends_as_one_that_is_not(finished, environment, tmp_path):
    """The short form of benchmarks/reliability/kills.py; each start is a process: determinism as well."""
    folder, since = tmp_path / 'run', time.time()
    process = processes.start(folder, SHORT, environment)
    assert processes.wait_for(process, lambda: processes.checkpoint_steps(folder))
    assert processes.wait_for(process, lambda: processes.is_writing(folder, since))
    assert processes.kill(process)
    assert not (folder / 'result.json').exists()

    before = processes.log_size(folder)
    process = processes.start(folder, SHORT, environment)
    assert processes.wait_for(process, lambda: processes.log_size(folder) != before)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=900) == 4
    assert 'train.py: stopped by SIGTERM after step' in (tmp_path / 'run.log').read_text()

    assert processes.start(folder, SHORT, environment).wait(timeout=900) == 0
    assert processes.differences(folder, finished[0]) == []
    assert len(processes.final_state(folder)) > 10
