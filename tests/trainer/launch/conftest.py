"""Programs as processes of their own that share their imports: forks of one Python."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
# What every program imports before JAX starts any device; their own modules are run as `__main__`.
FORKING = """
import json, os, sys, traceback
os.environ['TF_CPP_MIN_LOG_LEVEL'] = '2'
from def_jax.trainer import loop
from def_jax.trainer.launch import command_line
import paper.needed_runs, paper.finished_runs, paper.tables, paper.plots
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
