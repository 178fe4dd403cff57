"""Programs as a user runs them: a line for every refusal, how processes end, a run, a kill, a resumption."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from faults import processes

from def_jax.trainer import metrics

ROOT = Path(__file__).resolve().parents[3]
DIGITS = '--config=configs/digits.py'
SHORT = [
    *processes.SMALL,
    *('--config.num_workers=2', '--config.train_examples=256', '--config.batch_size=64', '--config.ratio=8'),
    *('--config.num_epochs=10', '--config.eval_every_epochs=1', '--config.log_every_steps=3'),
]


# --- Programs as processes of their own that share their imports: forks of one Python. ---

# What every program imports before JAX starts any device; their own modules are run as `__main__`.
FORKING = """
import json, os, sys, traceback
os.environ['TF_CPP_MIN_LOG_LEVEL'] = '2'
from def_jax.trainer import loop
from def_jax.trainer.launch import command_line
for line in sys.stdin:
    code, files = json.loads(line)
    if child := os.fork():
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        continue
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, file in enumerate(files, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
    ended = 1
    try:
        exec(code, {'__name__': '__main__'})
    except SystemExit as end:
        ended = end.code
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(ended)
"""


@pytest.fixture(scope='session')
def forked(environment, tmp_path_factory):
    """A function that runs a script in a process of its own; its code, and what it printed."""
    # A fork of many threads is what JAX warns of; before it starts a device there is one.
    command = [sys.executable, '-W', 'ignore::RuntimeWarning', '-c', FORKING]
    pipes = {'stdin': subprocess.PIPE, 'stdout': subprocess.PIPE, 'text': True}
    with subprocess.Popen(command, cwd=ROOT, env=environment, **pipes) as python:

        def run(code: str) -> subprocess.CompletedProcess:
            files = [tmp_path_factory.mktemp('printed') / name for name in ('out', 'err')]
            python.stdin.write(json.dumps([code, [*map(str, files)]]) + '\n')
            python.stdin.flush()
            ended = int(python.stdout.readline())
            return subprocess.CompletedProcess(code, ended, *(file.read_text() for file in files))

        yield run
        python.stdin.close()


@pytest.fixture(scope='session')
def program(forked):
    """A function that runs `python -m MODULE FLAGS`."""

    def run(module: str, *flags: str) -> subprocess.CompletedProcess:
        code = f'import runpy, sys; sys.argv = {[module, *map(str, flags)]}; '
        return forked(f'{code}runpy.run_module({module!r}, run_name="__main__")')

    return run


def assert_refused(process, name, words):
    """Exit code 2 and one line on standard error, with these words."""
    assert process.returncode == 2, process.stderr
    assert process.stderr.startswith(f'{name}: ') and process.stderr.count('\n') == 1, process.stderr
    assert all(word in process.stderr for word in words.split(' … ')), process.stderr


# --- Refusals: what is wrong with a configuration, test_config_errors.py and test_rules.py say. ---

TRAIN, EXPERIMENTS, NEW = 'def_jax.train', 'experiments', '--workdir=NEW'


@pytest.mark.parametrize(
    ('module', 'flags', 'words'),
    [
        (TRAIN, [DIGITS], '--workdir'),
        (
            TRAIN,
            [DIGITS, NEW, '--config.fake_devices=False'],
            '16 devices are needed … has 1 (cpu) … --config.fake_devices=True',
        ),
        (EXPERIMENTS, ['run', 'few_bits', '--only=nothing'], 'is in no name of … digits, width 64'),
    ],
    ids=lambda value: ' '.join(value) if isinstance(value, list) else '',
)
def test_what_cannot_be_run_is_refused_in_one_line(program, tmp_path, module, flags, words):
    flags = [flag.replace('NEW', str(tmp_path / 'NEW')) for flag in flags]
    name = 'train.py' if module == TRAIN else module
    assert_refused(program(module, *flags), name, words)
    assert os.listdir(tmp_path) == []


def test_an_address_that_is_taken_is_refused(program, tmp_path):
    with socket.socket(socket.AF_INET6) as taken:
        taken.bind(('::', 0))
        taken.listen()
        place = [f'--coordinator_address=localhost:{taken.getsockname()[1]}', '--num_processes=2']
        process = program(TRAIN, *SHORT, *place, '--process_id=0', f'--workdir={tmp_path / "run"}')
    assert process.returncode == 2
    last = process.stderr.splitlines()[-1]
    assert last.startswith('train.py: cannot join the processes at localhost:')
    assert not (tmp_path / 'run').exists()


def test_compiled_programs_are_not_kept_where_the_users_cache_cannot_be_written_to(forked, tmp_path):
    (tmp_path / 'def_jax').touch()
    code = f"""
import os
from absl import flags
from def_jax.trainer.launch import command_line
import jax
flags.FLAGS(['train.py'])
os.environ.pop('JAX_COMPILATION_CACHE_DIR')
jax.config.update('jax_compilation_cache_dir', None)
os.environ['XDG_CACHE_HOME'] = {str(tmp_path)!r}
command_line.set_environment(fake_devices=False)
print(jax.config.jax_compilation_cache_dir)
"""
    process = forked(code)
    assert process.stdout.strip() == 'None', process.stderr


# --- A process and the parent that watches it ---


def script(body):
    """A program of a function that is watched by its parent."""
    start = 'import os, signal, sys, time\nfrom def_jax.trainer.launch import supervision\ndef run():\n'
    return f"{start}{textwrap.indent(body, '    ')}\nsys.exit(supervision.supervised('program', run))"


@pytest.mark.parametrize(
    ('body', 'code', 'words'),
    [
        ('return 3', 3, ''),
        ('raise SystemExit(5)', 5, ''),
        ('raise KeyError(1)', 1, 'KeyError: 1'),
        ('os.abort()', 6, 'program: aborted by JAX'),
        ('os.kill(os.getpid(), signal.SIGKILL)', 137, 'program: killed by SIGKILL'),
    ],
)
def test_how_watched_processes_end(forked, body, code, words):
    process = forked(script(body))
    assert process.returncode == code and words in process.stderr
    assert bool(process.stderr) == bool(words)


def test_signals_are_passed_on_and_a_killed_parent_takes_its_child_along():
    body = (
        'signal.signal(signal.SIGTERM, lambda *_: print("told", flush=True))\n'
        'print(os.getpid(), flush=True)\nfor _ in range(36_000): time.sleep(0.1)\nreturn 0'
    )
    command = [sys.executable, '-c', script(body)]
    process = subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE)
    child = int(process.stdout.readline())
    assert child != process.pid
    until(lambda: catches(process.pid, signal.SIGTERM))  # it sets up its handlers after the fork
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == 'told\n'
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


# --- Runs ---


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
