"""SIGTERM and Ctrl-C: the state goes into a checkpoint and the run ends, to be resumed bit for bit."""

import itertools
import os
import runpy
import signal
import subprocess
import sys
import types
from concurrent import futures
from pathlib import Path

import pytest
import training_fixtures as fixtures

from def_jax.trainer import loop, window
from def_jax.trainer.launch import command_line, interruption
from def_jax.trainer.launch.exits import EndedError

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def handlers():
    """Python's own handlers, however the suite was started; they must be back in place after each test."""
    usual = dict.fromkeys((signal.SIGTERM, signal.SIGHUP), signal.SIG_DFL)
    usual |= {signal.SIGINT: signal.default_int_handler}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    after = {number: signal.signal(number, handler) for number, handler in before.items()}
    assert after == usual


@pytest.fixture
def a_second_a_step(monkeypatch):
    """The clock of records goes by the steps."""
    seconds, add = itertools.count(), window.Window.add
    clock = types.SimpleNamespace(now=next(seconds))
    monkeypatch.setattr(window, 'time', types.SimpleNamespace(perf_counter=lambda: clock.now))

    def step(self, measured):
        clock.now = next(seconds)
        add(self, measured)

    monkeypatch.setattr(window.Window, 'add', step)


@pytest.mark.parametrize('program', ['train.py', 'def_jax/train.py'])
def test_ctrl_c_ends_a_program_that_is_still_importing_without_a_traceback(program, monkeypatch):
    found = []
    monkeypatch.setattr(runpy, 'run_module', lambda *_, **__: found.append(signal.getsignal(signal.SIGINT)))
    runpy.run_path(str(ROOT / program), run_name='__main__')
    signal.signal(signal.SIGINT, signal.default_int_handler)
    assert found == [signal.SIG_DFL]


@pytest.mark.usefixtures('a_second_a_step')
def test_a_run_that_is_interrupted_again_and_again_ends_where_an_uninterrupted_one_does(recorded, tmp_path):
    """Records are due every 3 steps and evaluations every 5: after 4 and 8 steps something is pending."""
    for done, number in {4: signal.SIGTERM, 8: signal.SIGINT}.items():
        with fixtures.signalled(number, done), pytest.raises(loop.InterruptedRunError) as error:
            fixtures.train(recorded.config, tmp_path)
        assert f'stopped by {number.name} after step {done}; a checkpoint was saved' in str(error.value)
        assert str(done) in os.listdir(tmp_path / 'checkpoints')
        fixtures.assert_restored(tmp_path, recorded, done)
    with fixtures.signalled(signal.SIGHUP, fixtures.NUM_STEPS):  # too late to stop it
        result = fixtures.train(recorded.config, tmp_path)
    assert result['status'] == 'finished'
    fixtures.assert_restored(tmp_path, recorded, fixtures.NUM_STEPS)
    # Every record is the mean over the same steps, also the one that was pending when the signal came.
    records = [record for record in fixtures.records(tmp_path) if 'pending' not in record]
    assert records == fixtures.records(recorded.folder)
    # Steps of the process before, and the first of this, are in the mean, but took none of the time; a record
    # of these alone has no speed.
    training = [record for record in fixtures.metrics.read(tmp_path / 'metrics.jsonl') if 'loss' in record]
    speeds = {record['step']: record.get('images_per_second') for record in training}
    assert [step for step, speed in speeds.items() if speed is None] == [5, 9]
    assert {*speeds.values()} - {None} == {recorded.config.batch_size}
    assert result['metrics']['train_loss'] == recorded.result['metrics']['train_loss']


def test_a_loss_that_is_not_finite_is_not_saved_on_the_way_out(recorded, tmp_path):
    with (
        fixtures.signalled(signal.SIGTERM, 7),
        fixtures.poisoned_batch(step=6, worker=1),
        pytest.raises(loop.DivergedError),
    ):
        fixtures.train(recorded.config, tmp_path)
    assert os.listdir(tmp_path / 'checkpoints') == ['5']


def test_a_signal_that_is_ignored_stays_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with interruption.watch() as seen:
        signal.raise_signal(signal.SIGINT)
    assert seen.name is None and signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_outside_the_main_thread_signals_are_left_alone():
    def watched():
        with interruption.watch() as seen:
            return seen.name, signal.getsignal(signal.SIGTERM)

    with futures.ThreadPoolExecutor(1) as pool:
        assert pool.submit(watched).result() == (None, signal.SIG_DFL)


# --- In a program ---

PROGRAM = """
import contextlib, hashlib, sys
from def_jax.trainer.launch import interruption
interruption._SAME = float(sys.argv[2])
watch = interruption.watch if sys.argv[1] == 'training' else contextlib.nullcontext
with interruption.ending_at_once('train.py'), watch():
    print('ready', flush=True)
    hashlib.pbkdf2_hmac('sha256', b'', b'', 2**31 - 1)  # as XLA or a download: minutes without Python
"""


@pytest.mark.parametrize(
    ('phase', 'numbers'), [('starting', [signal.SIGHUP]), ('training', [signal.SIGINT, signal.SIGINT])]
)
def test_a_signal_is_answered_at_once_whatever_is_running(phase, numbers):
    command = [sys.executable, '-c', PROGRAM, phase, '0']
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout.readline() == b'ready\n'
        for number in numbers[:-1]:
            process.send_signal(number)
            line = process.stderr.readline().decode()
            said = 'stopping with a checkpoint; send it again to stop now'
            assert line == f'train.py: {number.name}: {said}\n'
        process.send_signal(numbers[-1])
        assert process.wait(timeout=60) == 4
        error = process.stderr.read().decode()
        assert error == f'train.py: stopped by {numbers[-1].name}. Run the same command again to resume.\n'


def test_a_signal_to_all_processes_counts_once_though_the_supervisor_passes_it_on():
    command = [sys.executable, '-c', PROGRAM, 'training', '600']
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout.readline() == b'ready\n'
        for _ in range(2):
            process.send_signal(signal.SIGTERM)
        assert b'stopping with a checkpoint' in process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
        process.kill()


class Ended(EndedError):
    exit_code = 77


def raising(error):
    def run():
        raise error

    return run


@pytest.mark.parametrize(
    ('run', 'code', 'line'),
    [
        (lambda: None, 0, ''),
        (raising(ValueError('a\nb')), 2, 'train.py: a b\n'),
        (raising(OSError(28, 'No space left on device', 'metrics.jsonl')), 2, 'No space left on device'),
        (raising(loop.DivergedError(7, 1, float('nan'))), 3, 'worker 1 is nan at step 7'),
        (raising(loop.InterruptedRunError('SIGTERM', 7)), 4, 'stopped by SIGTERM after step 7'),
        (raising(loop.ReplicasDifferError(7, ['key'], [1])), 5, 'the workers do not agree on key'),
        (raising(Ended('why')), 77, 'train.py: why\n'),
    ],
)
def test_every_ending_has_its_exit_code_and_one_line(capsys, run, code, line):
    assert command_line.exit_code('train.py', run) == code
    error = capsys.readouterr().err
    assert line in error and error.count('\n') == (1 if code else 0)
    with pytest.raises(ZeroDivisionError):  # what nobody has foreseen is not hidden
        command_line.exit_code('train.py', lambda: 1 / 0)
