"""A soak of elastic training: eight processes, one of which dies or freezes every 18 seconds.

    python -m benchmarks.reliability.elastic --output=results/reliability --parts undisturbed elastic
    python -m benchmarks.reliability.elastic --output=results/reliability --parts restart --minutes=20
    python -m benchmarks.reliability.elastic --output=results/reliability --parts restart --minutes=5 \\
        --every=60
    python -m benchmarks.reliability.elastic --output=results/reliability --parts undisturbed elastic \\
        --checkpoint=10

Parts: `undisturbed` trains five seeds; `elastic` trains seed after seed under faults for so many minutes,
with those who live; `restart` does it without an elastic team, by restarts of all from the last checkpoint.
What a part has measured before, with the same --every and --checkpoint, is replaced in elastic.json;
elastic.md is its page.
"""

import argparse
import contextlib
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

from benchmarks.reliability import elastic_page
from def_jax.tools.launcher import Launcher
from experiments import spec

WORKER = Path(__file__).with_name('elastic_worker.py').resolve()
THAW_SECONDS = 12  # more than the heartbeat's 10
COORDINATOR_FAULTS = (15, 40)  # the numbers of those that strike process 0
PARTS = ('undisturbed', 'elastic', 'restart')


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--parts', nargs='+', choices=PARTS, default=PARTS)
    parser.add_argument('--minutes', type=float, default=20, help='of each part under faults')
    parser.add_argument('--every', type=float, default=18, help='seconds between faults')
    parser.add_argument('--checkpoint', type=int, default=50, help='steps between two checkpoints')
    parser.add_argument('--steps', type=int, default=200, help='of each seed')
    parser.add_argument('--seeds', type=int, default=5, help='undisturbed ones')
    parser.add_argument('--processes', type=int, default=8)
    parser.add_argument('--output', type=Path, required=True)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    for part in arguments.parts:
        every = None if part == 'undisturbed' else arguments.every
        settings = {'part': part, 'every': every, 'steps': arguments.steps, 'processes': arguments.processes}
        settings |= {'checkpoint': arguments.checkpoint}
        settings |= {'origin': spec.origin(allow_dirty=True), 'cores': len(os.sched_getaffinity(0))}
        runs = undisturbed(arguments) if every is None else disturbed(part, arguments)
        record(arguments.output, (settings | run for run in runs))
    return 0


def undisturbed(arguments):
    with workplace() as folder:
        for seed in range(arguments.seeds):
            yield soaked('undisturbed', folder, seed, arguments, None)


def disturbed(part: str, arguments):
    """Seed after seed; none is begun when the time is over, and one that makes no progress is ended then."""
    faults, seed = Faults(arguments.every, arguments.processes, arguments.minutes), 0
    with workplace() as folder:
        while time.monotonic() < faults.end:
            yield soaked(part, folder, seed, arguments, faults)
            seed += 1


def record(output: Path, runs) -> None:
    """Appends runs to elastic.json, in place of the part's earlier ones, and rewrites the page."""
    path, fresh = output / 'elastic.json', []
    known = json.loads(path.read_text())['runs'] if path.exists() else []
    for run in runs:
        fresh.append(run)
        kept = [old for old in known if elastic_page.kind(old) != elastic_page.kind(run)]
        runs = sorted(kept + fresh, key=lambda run: PARTS.index(run['part']))
        path.write_text(json.dumps({'runs': runs}) + '\n')
        (output / 'elastic.md').write_text(elastic_page.page(runs))
        print(json.dumps({k: v for k, v in run.items() if k not in ('faults', 'notes')}), flush=True)


@contextlib.contextmanager
def workplace():
    """A folder with the data."""
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    images, labels = (data.data[order] / 16).astype(np.float32), data.target[order].astype(np.int32)
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder) / 'digits.npz', images=images, labels=labels)
        yield Path(folder)


class Faults:
    """Kills or freezes a process every so many seconds, until the time is over."""

    def __init__(self, every: float, count: int, minutes: float):
        self._every, self._count, self._chance, self.number = every, count, random.Random(0), 0
        self.done: list[dict] = []
        self.end, self._next, self._thaw = time.monotonic() + 60 * minutes, 0.0, []

    def start(self) -> None:
        """Of a run; the first fault is due so long after its first step."""
        self.done, self._next = [], float('inf')

    def strike(self, launcher: Launcher) -> None:
        """Does what is due; called ten times a second once there is a step."""
        for until, pid in list(self._thaw):
            if time.monotonic() > until:
                self._thaw.remove((until, pid))
                send(pid, signal.SIGCONT)
        now, frozen = time.monotonic(), [pid for _, pid in self._thaw]
        self._next = min(self._next, now + self._every)
        first = self.number in COORDINATOR_FAULTS
        alive = [index for index in range(self._count) if launcher.pid(index) not in (None, *frozen)]
        candidates = [index for index in alive if (index == 0) == first]
        if not candidates or not self._next <= now < self.end:
            return
        self._next += self._every
        index = self._chance.choice(candidates)
        pid = launcher.pid(index)
        how = 'SIGSTOP' if self.number % 3 == 2 and index else 'SIGKILL'
        send(pid, signal.Signals[how])
        if how == 'SIGSTOP':
            self._thaw.append((time.monotonic() + THAW_SECONDS, pid))
        self.done.append({'time': time.time(), 'process': index, 'how': how, 'number': self.number})
        self.number += 1


def send(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def soaked(part: str, folder: Path, seed: int, arguments, faults: Faults | None) -> dict:
    """Trains a seed, under faults or not; what happened.

    When the time is over faults end, and so does the run if it has not finished a minute later.
    """
    run, count = folder / f'{part}-{seed}', arguments.processes
    run.mkdir()
    command = [sys.executable, str(WORKER), str(run), f'seed={seed}', f'steps={arguments.steps}']
    command += [f'checkpoint={arguments.checkpoint}'] + ['kind=restart'] * (part == 'restart')
    os.environ['PYTHONPATH'] = str(WORKER.parents[2])
    unplanned: list[str] = []

    def say(line: str) -> None:
        """Keeps what process 0 said before it died of something else than a fault of ours."""
        if part != 'restart' and line.startswith('process 0 died') and 'SIGKILL' not in line:
            unplanned.append(f'{line}: {(run / "log-0.log").read_text()[-3000:]}')

    launcher = Launcher(
        command, count, restarts=1000, pause=0.1, together=part == 'restart', log=str(run / 'log'), say=say
    )
    began, first = time.time(), run / '0.jsonl'

    def meanwhile():
        if faults and time.monotonic() > faults.end + 60:
            launcher.stop(signal.SIGKILL)
        elif faults and first.exists() and first.stat().st_size:
            faults.strike(launcher)

    if faults:
        faults.start()
    code = launcher.run(meanwhile)
    seconds = time.time() - began
    lines = [read(run / f'{process}.jsonl') for process in range(count)]
    steps = [line for line in lines[0] if 'step' in line]
    return {
        'seed': seed,
        'code': code,
        'seconds': seconds,
        'last step': steps[-1]['step'] if steps else 0,  # not the largest: it may have been given up
        'steps made': len(steps),
        'losses': sorted({line['test_loss'] for one in lines for line in one if 'test_loss' in line}),
        'differences between survivors': differences(lines),
        'deaths of process 0 besides': unplanned,
        'notes': [line['note'] for line in lines[0] if 'note' in line],
        'faults': costs(faults.done if faults else [], began, steps),
    } | pauses(began, steps)


def read(path: Path) -> list[dict]:
    found = []
    for line in path.read_text().splitlines() if path.exists() else []:
        with contextlib.suppress(ValueError):  # cut by a kill
            found.append(json.loads(line))
    return found


def differences(lines: list[list[dict]]) -> int:
    """How many steps have parameters with other bits in one process than in another."""
    bits: dict[tuple, set] = {}
    for one in lines:
        for line in one:
            if 'step' in line:
                bits.setdefault((line['life'], line['step']), set()).add(line['bits'])
    return sum(len(found) > 1 for found in bits.values())


def pauses(began: float, steps: list[dict]) -> dict:
    """Seconds from one step of process 0 to the next, those of more than a second apart from the others."""
    waited = np.diff([line['time'] for line in steps])
    return {
        'seconds to the first step': steps[0]['time'] - began if steps else None,
        'seconds in pauses': float(waited[waited > 1].sum()),
        'longest pause': float(waited.max(initial=0)),
        'seconds outside': float(waited[waited <= 1].sum()),
        'steps outside': int((waited <= 1).sum()),
    }


def costs(faults: list[dict], began: float, steps: list[dict]) -> list[dict]:
    """The faults, and what each cost: seconds of pauses of more than a second, steps repeated, ‖y − y'‖.

    A pause is the cost of the faults that struck in it or in the step before it, in equal parts, or else of
    the last one before.
    """
    found = [
        fault | {'time': fault['time'] - began, 'seconds': 0.0, 'steps repeated': 0, 'y moved': 0.0}
        for fault in faults
    ]
    for earlier, before, after in zip([*steps[:1], *steps], steps, steps[1:], strict=False):
        seconds, lost = after['time'] - before['time'], max(0, before['step'] + 1 - after['step'])
        if seconds <= 1 and not lost and before['workers'] == after['workers']:
            continue
        since, until = earlier['time'] - began, after['time'] - began
        struck = [fault for fault in found if since < fault['time'] <= until]
        struck = struck or [fault for fault in found if fault['time'] <= since][-1:]
        for fault in struck:
            fault['seconds'] += seconds / len(struck)
            fault['steps repeated'] += lost / len(struck)
            fault['y moved'] += after.get('moved', 0.0) / len(struck)
    return found


if __name__ == '__main__':
    sys.exit(main())
