"""`python -m def_jax.launch`: what dies is started again, within limits."""

import io
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from def_jax.tools.launcher import Launcher, main

# Only in tests does the launcher share a process with devices.
pytestmark = pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')

TOLD = 'import os, sys, time; place = [os.environ[n] for n in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID")]; '


@pytest.fixture
def launched(tmp_path):
    """Runs a program on several processes; its lives are lines of `lives`."""

    def run(program, processes=3, meanwhile=lambda launcher: None, **options):
        said = []
        begin = TOLD + f'open({str(tmp_path / "lives")!r}, "a").write(place[1]); '
        begin += f'life = open({str(tmp_path / "lives")!r}).read().count(place[1]); '
        # Waits until a process has been started so many times.
        begin += f'lives = lambda who: open({str(tmp_path / "lives")!r}).read().count(who); '
        begin += 'until = lambda who, n: [time.sleep(0.05) for _ in iter(lambda: lives(who) < n, False)]; '
        command = [sys.executable, '-c', begin + program]
        launcher = Launcher(command, processes, pause=0.01, say=said.append, **options)
        code = launcher.run(lambda: meanwhile(launcher))
        return code, (tmp_path / 'lives').read_text(), said

    return run


def test_each_process_learns_its_place_and_what_ends_by_itself_is_not_started_again(launched):
    program = 'sys.exit((0, 2, 3, 4, 5)[int(place[1])] if place[0] == "5" else 9)'
    code, lives, said = launched(program, processes=5)
    assert code in (2, 3, 4, 5) and (sorted(lives), said) == (list('01234'), [])


def dies(who, lives, how='sys.exit(1)'):
    """A program that dies in its first lives as one process; the others wait for the last of them."""
    return f'place[1] == "{who}" and life < {lives} and {how}; until("{who}", {lives})'


STOPS, TOO_OFTEN = dies(1, 2, 'os.kill(os.getpid(), 19)'), 'place[1] == "1" and sys.exit(1); until("1", 3)'
IN_CHILD = 'child = os.fork(); child and (os.wait(), sys.exit()); '  # as train.py waits for its own
KILLED = 'process 1 has been stopped for 0.3 s and is killed'


@pytest.mark.parametrize(
    ('program', 'options', 'code', 'who', 'lives', 'words'),
    [
        (dies(0, 2), {}, 0, '0', 2, r'process 0 died \(exit code 1\).*all are started again'),
        (dies(1, 2), {'together': True}, 0, '1', 2, r'process 1 died \(exit code 1\).*all are started again'),
        (TOO_OFTEN, {'restarts': 2}, 1, '1', 3, 'died .* 3 times in a row; it is not started again'),
        ('place[1] == "1" and sys.exit(1); time.sleep(99)', {'restarts': 0, 'together': True}, 1, '1', 1, ''),
        (STOPS, {'frozen': 0.3}, 0, '1', 2, KILLED),
        (IN_CHILD + STOPS, {'frozen': 0.3}, 0, '1', 2, KILLED),
    ],
    ids=['process 0', 'together', 'too often', 'given up together', 'stopped', 'stopped child'],
)
def test_what_dies_or_stays_stopped_is_started_again(launched, program, options, code, who, lives, words):
    ended, told, said = launched(program, **options)
    assert (ended, told.count(who)) == (code, lives)
    assert any(re.search(words, line) for line in said)


def test_pauses_double_up_to_a_limit_and_start_over_after_a_healthy_life(launched, monkeypatch):
    def pauses(lives, **options):
        said = launched(dies(1, lives), **options)[2]
        return [re.search(r'again in (\S+) s', line)[1] for line in said]

    monkeypatch.setattr('def_jax.tools.launcher._LONGEST_PAUSE', 0.04)
    assert pauses(6) == ['0.01', '0.02', '0.04', '0.04', '0.04']
    monkeypatch.setattr('def_jax.tools.launcher._HEALTHY_SECONDS', -1)  # every life is
    assert pauses(9, restarts=1) == ['0.01', '0.01']


def test_others_are_ended_some_time_after_process_0(launched):
    began = time.monotonic()
    code, _, said = launched('time.sleep(600 * int(place[1]))', processes=2, frozen=0.5)
    assert (code, said) == (0, ['process 0 has ended, and 1 has not for 0.5 s and is killed'])
    assert time.monotonic() - began < 300


def test_sigterm_reaches_all_and_nothing_is_started_again(tmp_path):
    program = TOLD + f'open({str(tmp_path)!r} + "/" + place[1], "w"); time.sleep(600)'
    command = [sys.executable, '-m', 'def_jax.launch', '--processes=2', sys.executable, '-c', program]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        while len(os.listdir(tmp_path)) < 2 and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=300) == 128 + signal.SIGTERM


def test_a_signal_reaches_a_process_that_is_being_started(monkeypatch):
    class Popen(subprocess.Popen):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            launcher.stop(signal.SIGKILL)  # as a handler would, before the launcher knows this process

    launcher = Launcher([sys.executable, '-c', 'import time; time.sleep(100)'], 1)
    monkeypatch.setattr(subprocess, 'Popen', Popen)
    assert launcher.run() == 128 + signal.SIGKILL


@pytest.mark.parametrize('who', [0, 1])
def test_a_signal_ends_the_pause_before_a_start(monkeypatch, who):
    said, started = [], []

    class Popen(subprocess.Popen):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            started.append(self)

    def say(line):
        said.append(line)
        if 'died' in line:  # between a death and the start
            launcher.stop(signal.SIGTERM)

    code = f'import os, sys, time; os.environ["JAX_PROCESS_ID"] == "{who}" and sys.exit(1); time.sleep(100)'
    launcher = Launcher([sys.executable, '-c', code], 2, pause=0.0, say=say)
    monkeypatch.setattr(subprocess, 'Popen', Popen)
    assert launcher.run() == 128 + signal.SIGTERM
    assert [line.split()[0] for line in said] == ['process', 'SIGTERM'] and len(started) == 2


def test_a_run_goes_on_where_the_terminal_is_gone(monkeypatch):
    class Gone(io.StringIO):
        def flush(self):
            raise OSError('Broken pipe')

    monkeypatch.setattr(sys, 'stderr', Gone())
    assert Launcher([sys.executable, '-c', 'import sys; sys.exit(1)'], 1, restarts=0).run() == 1


def test_nothing_is_started_again_once_process_0_has_ended(launched):
    def kill_the_other(launcher):
        if launcher.pid(0) is None and launcher.pid(1):
            os.kill(launcher.pid(1), signal.SIGKILL)

    program = 'place[1] == "1" and time.sleep(100); until("1", 1)'
    code, lives, said = launched(program, processes=2, together=True, meanwhile=kill_the_other)
    assert (code, sorted(lives), said) == (0, ['0', '1'], [])


@pytest.mark.parametrize('who', [0, 1])
def test_a_process_that_cannot_be_started_again_for_a_while_harms_no_other(tmp_path, who):
    """Its program has moved; the others train on, and it is back when the program is."""
    program, lives, ends, said = *(tmp_path / name for name in ('program', 'lives', 'ends')), []
    program.write_text(
        f'#!{sys.executable}\nimport os, sys, time\nwho = os.environ["JAX_PROCESS_ID"]\n'
        f'open({str(lives)!r}, "a").write(who)\nlife = open({str(lives)!r}).read().count(who)\n'
        f'while not set("012") <= set(open({str(lives)!r}).read()): time.sleep(0.01)\n'  # all have begun
        f'who == "{who}" and life == 1 and sys.exit(1)\n'
        f'while not os.path.exists({str(ends)!r}): time.sleep(0.01)\n'
    )
    program.chmod(0o755)

    def say(line):  # before the next start
        said.append(line)
        if 'died (exit' in line:
            program.rename(tmp_path / 'moved')
        elif 'as it was started' in line:
            (tmp_path / 'moved').rename(program)

    def meanwhile():
        if lives.read_text().count(str(who)) > 1:
            ends.touch()

    lives.touch()
    launcher = Launcher([str(program)], 3, pause=0.01, say=say)
    assert launcher.run(meanwhile) == 0
    counts = [lives.read_text().count(process) for process in '012']
    assert counts[who] == 2 and min(counts) >= 1 and (who == 0 or counts[2] == 1)
    assert f'process {who} died as it was started ([Errno 2] No such file or directory' in said[1]


def test_what_cannot_be_started_at_all_is_refused(tmp_path, capsys):
    assert main(['--processes=2', '--', 'true']) == 0
    for *flags, named in (['no-such-program'], [f'--log={tmp_path}/missing/log', 'true']):
        assert main(['--processes=2', *flags, named]) == 2
        missing = 'missing/log-0.log' if flags else named
        said = capsys.readouterr().err
        assert re.fullmatch(rf"launch: a process could not be started \(.*{re.escape(missing)}'\)\.\n", said)


def test_all_processes_share_a_secret(tmp_path, monkeypatch):
    def told():
        code = f'import os; open({str(tmp_path / "told")!r}, "a").write(os.environ["DEF_JAX_SECRET"] + "\\n")'
        assert Launcher([sys.executable, '-c', code], 2).run() == 0
        return (tmp_path / 'told').read_text().split()

    first = told()
    assert len(first) == 2 and len(set(first)) == 1 and len(first[0]) == 64
    monkeypatch.setenv('DEF_JAX_SECRET', 'given')
    again = told()[2:]
    assert again == ['given'] * 2


@pytest.mark.parametrize('arguments', [['--processes=0', 'x'], ['--processes=2'], ['x']])
def test_a_wrong_command_line_is_refused(arguments, capsys):
    with pytest.raises(SystemExit, match='2'):
        main(arguments)
    assert '--processes' in capsys.readouterr().err
