"""A soak of elastic training: eight processes, one of which dies or freezes every 20 seconds.

    python tests/faults/elastic.py --minutes=20 --output=results/reliability

Five seeds are trained undisturbed, then seed after seed under faults until the time is over: with those who
live, and for `--restart-minutes` by restarts of all from checkpoints. elastic.json holds every fault, what
it cost, and the losses.
"""

import argparse
import contextlib
import itertools
import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from def_jax.tools.launch import Launcher  # noqa: E402

THAW_SECONDS = 15  # more than the heartbeat's 10
COORDINATOR_FAULTS = (15, 40)  # the numbers of those that strike process 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--minutes', type=float, default=20)
    parser.add_argument('--restart-minutes', type=float, default=10)
    parser.add_argument('--every', type=float, default=20, help='seconds between faults')
    parser.add_argument('--steps', type=int, default=1000, help='of each seed')
    parser.add_argument('--seeds', type=int, default=5, help='undisturbed ones')
    parser.add_argument('--processes', type=int, default=8)
    parser.add_argument('--output', type=Path, required=True)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    report = {
        'every': arguments.every,
        'steps': arguments.steps,
        'processes': arguments.processes,
        'runs': [],
    }
    with tempfile.TemporaryDirectory() as folder:
        save_digits(Path(folder) / 'digits.npz')

        def one(kind: str, seed: int, faults: 'Faults | None') -> None:
            run = Path(folder) / f'{kind}-{seed}'
            least = arguments.processes if kind == 'restart' else 1
            report['runs'].append(
                {'kind': kind, 'seed': seed}
                | soaked(run, seed, arguments.steps, arguments.processes, least, faults)
            )
            (arguments.output / 'elastic.json').write_text(json.dumps(report) + '\n')
            print(json.dumps({k: v for k, v in report['runs'][-1].items() if k != 'faults'}), flush=True)

        for seed in range(arguments.seeds):
            one('undisturbed', seed, None)
        for kind, minutes in (('elastic', arguments.minutes), ('restart', arguments.restart_minutes)):
            faults, seed, end = (
                Faults(arguments.every, arguments.processes),
                0,
                time.monotonic() + 60 * minutes,
            )
            while time.monotonic() < end:
                one(kind, seed, faults)
                seed += 1
    return 0


def save_digits(path: Path) -> None:
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    np.savez(
        path, images=(data.data[order] / 16).astype(np.float32), labels=data.target[order].astype(np.int32)
    )


class Faults:
    """Kills or freezes a process every so many seconds."""

    def __init__(self, every: float, count: int):
        self._every, self._count, self._chance, self.number = every, count, random.Random(0), 0
        self.done: list[dict] = []
        self._next, self._thaw = 0.0, []

    def start(self) -> None:
        self.done, self._next = [], time.monotonic() + self._every

    def strike(self, launcher: Launcher) -> None:
        """Does what is due; called ten times a second."""
        for until, pid in list(self._thaw):
            if time.monotonic() > until:
                self._thaw.remove((until, pid))
                send(pid, signal.SIGCONT)
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + self._every
        index = 0 if self.number in COORDINATOR_FAULTS else self._chance.randrange(1, self._count)
        pid = launcher.pid(index)
        if pid is None:
            return
        how = 'SIGSTOP' if self.number % 3 == 2 and index else 'SIGKILL'
        send(pid, signal.Signals[how])
        if how == 'SIGSTOP':
            self._thaw.append((time.monotonic() + THAW_SECONDS, pid))
        self.done.append({'time': time.time(), 'process': index, 'how': how, 'number': self.number})
        self.number += 1


def send(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def soaked(run: Path, seed: int, steps: int, count: int, least: int, faults: Faults | None) -> dict:
    """Trains a seed, under faults or not; what happened."""
    run.mkdir()
    worker = [sys.executable, str(ROOT / 'tests' / 'faults' / 'elastic_worker.py')]
    command = [*worker, str(run), str(seed), str(steps), str(least)]
    os.environ['PYTHONPATH'] = str(ROOT)
    launcher = Launcher(command, count, restarts=50, pause=0.5, log=str(run / 'log'))
    began = time.time()
    if faults:
        faults.start()
    code = launcher.run((lambda: faults.strike(launcher)) if faults else lambda: None)
    seconds = time.time() - began
    lines = [read(run / f'steps-{process}.jsonl') for process in range(count)]
    done = faults.done if faults else []
    return {
        'code': code,
        'seconds': seconds,
        'loss': {
            p: json.loads((run / f'end-{p}').read_text()) for p in range(count) if (run / f'end-{p}').exists()
        },
        'steps recorded': sum('step' in line for line in lines[0]),
        'last step': max(line['step'] for line in lines[0] if 'step' in line),
        'differences between survivors': differences(lines),
        'notes': [line['note'] for line in lines[0] if 'note' in line],
        'seconds between steps': gaps(lines[0]),
        'y moved': [[line['step'], line['workers'], line['moved']] for line in changes(lines[0])],
        'faults': [fault | cost(fault['time'], lines[0], count) for fault in done],
    }


def read(path: Path) -> list[dict]:
    found = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue  # cut by a kill
    return found


def differences(lines: list[list[dict]]) -> int:
    """How many steps have parameters with other bits in one process than in another."""
    bits: dict[tuple, set] = {}
    for one in lines:
        for line in one:
            if 'step' in line:
                bits.setdefault((line['life'], line['step']), set()).add(line['bits'])
    return sum(len(found) > 1 for found in bits.values())


def gaps(lines: list[dict]) -> dict:
    """Seconds from one step to the next in process 0: the median, and what took more than a second."""
    times = np.array([line['time'] for line in lines if 'step' in line])
    waited = np.diff(times)
    return {
        'median': float(np.median(waited)),
        'longer than 1 s, sum': float(waited[waited > 1].sum()),
        'the others, sum': float(waited[waited <= 1].sum()),
        'the others, number': int((waited <= 1).sum()),
    }


def changes(lines: list[dict]) -> list[dict]:
    """The steps before which workers died or joined."""
    steps = [line for line in lines if 'moved' in line]
    before = {id(line): last for last, line in itertools.pairwise(steps)}
    return [line for line in steps if id(line) in before and before[id(line)]['workers'] != line['workers']]


def cost(when: float, lines: list[dict], count: int) -> dict:
    """What a fault cost: steps repeated, and seconds without a step when it struck and when it was mended."""
    steps = [line for line in lines if 'step' in line]
    before = [line for line in steps if line['time'] <= when]
    after = [line for line in steps if line['time'] > when]
    if not before or not after:
        return {}
    first = next((line for line in after if line['workers'] < before[-1]['workers']), after[0])
    back = next((line for line in after if line['workers'] == count and line['time'] > first['time']), None)
    place = steps.index(first)
    found = {
        'seconds until the others went on': first['time'] - steps[place - 1]['time'],
        'steps repeated': max(0, before[-1]['step'] + 1 - min(line['step'] for line in after)),
        'y moved': first.get('moved'),
    }
    if back:
        found['seconds of the return'] = back['time'] - steps[steps.index(back) - 1]['time']
        found['y moved by the return'] = back.get('moved')
    return found


if __name__ == '__main__':
    sys.exit(main())
