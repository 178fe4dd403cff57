"""The workers of a job: processes in namespaces, all of which die with the program that started them."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.cluster.network import INTERFACE, Network, Unavailable, check_available
from def_jax.tools.launcher import die_with_parent

_ROOT = Path(__file__).resolve().parents[2]


class WorkerFailed(Exception):
    """A worker ended early or took too long; the message contains the end of its output."""


def guarded(program: str, work: Callable[[], None]) -> int:
    """Does work that needs a network, which a signal ends like an exception; returns the exit code."""
    try:
        check_available()
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda number, frame: sys.exit(128 + number))
        work()
    except (Unavailable, WorkerFailed, FileNotFoundError) as error:
        print(f'{program}: {error}', file=sys.stderr)
        return 2
    return 0


def run_workers(
    network: Network, python: str, module: str, job: dict[str, Any], timeout: float
) -> list[dict]:
    """Runs `python -m module` for every worker, in its node's namespace, and returns each worker's report.

    A worker receives one argument, the job as JSON with `worker`, `num_workers`, `address` of worker 0 and
    `output`, the file to which it writes its report as JSON.

    Raises:
        WorkerFailed: if a worker fails, or if not all have ended after `timeout` seconds.
    """
    with tempfile.TemporaryDirectory(prefix='defjax-cluster-') as folder, contextlib.ExitStack() as stack:
        workers = []
        for index in range(network.num_workers):
            spec = job | {
                'worker': index,
                'num_workers': network.num_workers,
                'address': f'{network.address(0)}:29500',
                'output': f'{folder}/{index}.json',
            }
            command = network.command(index, [python, '-m', module, json.dumps(spec)])
            log = stack.enter_context(open(f'{folder}/{index}.log', 'w'))
            workers.append(stack.enter_context(_worker(command, log, _cores(index, network.num_workers))))
        _wait(workers, Path(folder), time.monotonic() + timeout)
        return [json.loads(Path(f'{folder}/{i}.json').read_text()) for i in range(len(workers))]


@contextlib.contextmanager
def _worker(command: Sequence[str], log, cores: set[int]):
    def prepare() -> None:  # in the child, before it runs the command
        die_with_parent()
        os.sched_setaffinity(0, cores)

    environment = os.environ | {
        'JAX_PLATFORMS': 'cpu',
        'OMP_NUM_THREADS': str(len(cores)),
        'GLOO_SOCKET_IFNAME': INTERFACE,
        'TF_CPP_MIN_LOG_LEVEL': '2',
    }
    for name in ('NPROC', 'PJRT_NPROC', 'JAX_NUM_CPU_DEVICES', 'XLA_FLAGS'):
        environment.pop(name, None)
    process = subprocess.Popen(
        command, stdout=log, stderr=log, cwd=_ROOT, env=environment, preexec_fn=prepare
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _cores(index: int, num_workers: int) -> set[int]:
    """The cores of a worker: an equal share of this machine's, or one that it shares with others.

    Workers are pinned to keep their threads from migrating between cores.
    """
    cores = sorted(os.sched_getaffinity(0))
    share = max(1, len(cores) // num_workers)
    return {cores[(index * share + i) % len(cores)] for i in range(share)}


def _wait(workers: Sequence[subprocess.Popen], folder: Path, deadline: float) -> None:
    while (codes := [worker.poll() for worker in workers]) != [0] * len(workers):
        failed = next((i for i, code in enumerate(codes) if code), None)
        if failed is not None:
            time.sleep(1)  # the other workers' output may name the cause
            raise WorkerFailed(f'worker {failed} ended with code {codes[failed]}: {_last_words(folder)}')
        if time.monotonic() > deadline:
            raise WorkerFailed(f'not finished in time: {_last_words(folder)}')
        time.sleep(0.05)


def _last_words(folder: Path) -> str:
    texts = [path.read_text(errors='replace').strip() for path in sorted(folder.glob('*.log'))]
    return '\n--\n'.join(text[-1500:] for text in texts if text) or '(nothing written)'
