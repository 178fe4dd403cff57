"""Runs of several processes and what strikes them: a full disk, deaths, two versions."""

import json
import os
import resource
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from benchmarks.reliability import processes
from def_jax.elastic.network import free_address
from def_jax.tools.launcher import Launcher

pytestmark = [
    pytest.mark.slow,
    # The launcher shares a process with JAX only here.
    pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning'),
]

SPACE = 50_000  # bytes of a file on a disk that is full for a checkpoint, but not for records and logs
STEPS, EVERY = 120, 40  # more than are made before a fault strikes; of an evaluation and a checkpoint
FLAGS = [
    *(*processes.SMALL, '--config.elastic=True'),
    *('--config.workers_per_device=1', '--config.batch_size=96', '--config.ratio=16'),
    *(f'--config.num_steps={STEPS}', f'--config.eval_every_steps={EVERY}', '--config.log_every_steps=10'),
]


@pytest.fixture
def launched(environment, tmp_path, monkeypatch):
    """Runs processes of train.py under the launcher; gives its exit code, what it said and their logs.

    The run waits for all of them, so that it lasts until those that die are back.
    """
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(processes.ROOT)

    def run(folder, meanwhile=lambda launcher: None, **options):
        said = []
        flags = [*FLAGS, '--config.num_workers=2', '--config.min_workers=2']
        command = [sys.executable, 'train.py', *flags, f'--workdir={folder}']
        launcher = Launcher(command, 2, log=str(tmp_path / 'log'), say=said.append, **options)
        code = launcher.run(lambda: meanwhile(launcher))
        logs = [tmp_path / f'log-{process}.log' for process in range(2)]
        texts = [log.read_text() for log in logs]
        for log in logs:
            log.unlink()
        return code, said, texts

    return run


def trainer_of(launcher, index):
    """The process that trains, a child of the launcher's."""
    pid = launcher.pid(index)
    return int(Path(f'/proc/{pid}/task/{pid}/children').read_text().split()[0])


def assert_no_step_is_lost(folder):
    steps = [record['step'] for record in processes.records(folder) if 'loss' in record]
    assert steps == list(range(10, STEPS + 1, 10))


def test_a_full_disk_ends_a_run_in_one_line_and_it_goes_on_with_space(launched, tmp_path):
    """Also where process 0 then dies in a checkpoint: all are started again."""
    folder, full, killers = tmp_path / 'run', [], []

    def fill_the_disk(launcher):  # for the next checkpoint; there is room for records and the log
        if processes.checkpoint_steps(folder) and not full:
            full.append(resource.prlimit(trainer_of(launcher, 0), resource.RLIMIT_FSIZE, (SPACE, SPACE)))

    code, _, texts = launched(folder, fill_the_disk, frozen=10)
    assert code == 2 and full, texts
    assert 'no checkpoint could be written' in texts[0].splitlines()[-1], texts
    assert 'Traceback' not in texts[0]
    *_, kept = processes.checkpoint_steps(folder)
    assert kept < STEPS

    def kill(launcher):  # in a thread, which looks at every moment: a checkpoint is soon written
        since = time.time()
        while not processes.is_writing(folder, since):
            time.sleep(0.001)
        os.kill(launcher.pid(0), signal.SIGKILL)

    def watch(launcher):
        if not killers:
            killers.append(threading.Thread(target=kill, args=[launcher], daemon=True))
            killers[0].start()

    code, said, texts = launched(folder, watch)
    assert code == 0 and f'resuming at step {kept}' in texts[0], texts
    assert any('process 0 died' in line and 'all are started again' in line for line in said)
    assert_no_step_is_lost(folder)
    tests = [(r['step'], r['workers']) for r in processes.records(folder) if 'test_loss_x' in r]
    assert tests == [(step, 2) for step in range(EVERY, STEPS + 1, EVERY)]
    assert json.loads((folder / 'result.json').read_text())['metrics']['test_accuracy_x'] > 0.6
    assert processes.final_state(folder)['step'] == STEPS


def test_processes_that_freeze_are_given_up_killed_and_replaced(launched, tmp_path):
    """Process 1, which joins again; and then process 0, with whose service the others end."""
    folder, log, stopped = tmp_path / 'run', tmp_path / 'log-0.log', []

    def freeze(launcher):
        if processes.log_size(folder) if not stopped else 'process 1 joined' in log.read_text():
            who = (1, 0)[len(stopped)]
            stopped.append(trainer_of(launcher, who))
            os.kill(stopped[-1], signal.SIGSTOP)

    code, said, texts = launched(folder, lambda launcher: len(stopped) < 2 and freeze(launcher), frozen=12)
    assert code == 0, texts
    for who in (0, 1):
        assert f'process {who} has been stopped for 12 s and is killed' in said
        assert not Path(f'/proc/{stopped[1 - who]}').exists()
    assert 'process 1 died, 2 -> ' in texts[0] and any('all are started again' in line for line in said)
    assert_no_step_is_lost(folder)


STARTED = "import jax, runpy; jax.__version__ = '9.8.7'; runpy.run_path('train.py', run_name='__main__')"
SETTINGS = {
    'JAX_ENABLE_X64': '1',
    'JAX_THREEFRY_PARTITIONABLE': '0',
    'JAX_DEFAULT_PRNG_IMPL': 'rbg',
}
OTHERWISE = [  # each would compile its own program of a step that all make
    'JAX 9.8.7',
    *('jax_enable_x64 True', 'jax_threefry_partitionable False', 'jax_default_prng_impl rbg'),
]


@pytest.mark.parametrize('elastic', [False, True])
def test_processes_of_other_versions_or_settings_are_refused_at_once(environment, tmp_path, elastic):
    flags = [*FLAGS, f'--config.elastic={elastic}', '--config.num_workers=2', f'--workdir={tmp_path / "run"}']
    flags += [f'--coordinator_address={free_address()}', '--num_processes=2']
    starts = (['train.py'], environment), (['-c', STARTED], environment | SETTINGS)
    with ThreadPoolExecutor(2) as pool:
        begun = [
            pool.submit(processes.ran, [*flags, f'--process_id={index}'], variables, *program)
            for index, (program, variables) in enumerate(starts)
        ]
    ended = [future.result() for future in begun]
    for done in ended[1:] if elastic else ended:  # of elastic ones, process 0 goes on alone
        assert done.returncode == 2, done
        (line,) = [line for line in done.stderr.splitlines() if line.startswith('train.py: ')]
        assert all(other in line for other in OTHERWISE) and 'numpy' not in line
    assert elastic or not (tmp_path / 'run').exists()
