"""SIGKILL at random moments, some while a checkpoint is written; the end must be the same, bit for bit.

    python -m benchmarks.reliability.kills --kills=25 --output=results/reliability
    python -m benchmarks.reliability.kills --kills=20 --processes=2 --output=results/reliability

One run of digits is left alone. Another, with the same flags, is killed and started again with the same
command until it has been killed so often; then it may finish. Every fifth kill is SIGTERM, which writes a
checkpoint first. Of several processes that train together one is killed; the others have to end by
themselves, with exit code 6, or 4 after SIGTERM. At the end every array of the last checkpoints is compared,
and every record of the metrics.
"""

import argparse
import functools
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.reliability import processes

FLAGS = [
    *('--config=configs/digits.py', '--config.num_workers=8', '--config.batch_size=128'),
    *('--config.num_epochs=600', '--config.eval_every_epochs=2', '--config.log_every_steps=5'),
]
# Each of several processes has its own devices, and steps take longer.
FLAGS_OF_SEVERAL = ['--config.workers_per_device=1', '--config.num_workers=4', '--config.num_epochs=150']
# What train.py may end with: killed, or by a process that was; stopped.
EXPECTED = {False: {-signal.SIGKILL, 6}, True: {4}}
HOW = ('at any time', 'while training', 'while writing', 'while training', 'SIGTERM')


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--kills', type=int, default=25)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--longest', type=float, default=8, help='seconds of training before a kill, at most')
    parser.add_argument('--processes', type=int, default=1, help='processes that train together')
    parser.add_argument('--output', type=Path, help='folder that gets kills.json, or kills-2-processes.json')
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = torture(Path(folder), arguments)
    name = 'kills' if arguments.processes == 1 else f'kills-{arguments.processes}-processes'
    processes.save(report, arguments.output, f'{name}.json')
    return 0 if not report['differences'] and not report['other ways to end'] else 1


def torture(folder: Path, arguments: argparse.Namespace) -> dict:
    """Runs, kills, resumes and compares: what happened at each kill, and what differs at the end."""
    chance, began, count = random.Random(arguments.seed), time.monotonic(), arguments.processes
    flags = FLAGS if count == 1 else FLAGS + FLAGS_OF_SEVERAL
    environment = os.environ | {'JAX_COMPILATION_CACHE_DIR': str(folder / 'compiled'), 'JAX_PLATFORMS': 'cpu'}
    reference, run = folder / 'reference', folder / 'run'
    start = functools.partial(processes.start_several, flags=flags, environment=environment, count=count)
    finish(start(reference), reference)
    done = []
    while len(done) < arguments.kills:
        done.append(interrupted(run, start, HOW[len(done) % len(HOW)], chance, arguments.longest))
        print(done[-1], flush=True)
    finish(start(run), run)
    state = processes.final_state(run)
    return {
        'flags': flags,
        'processes': count,
        'interruptions': len(done),
        'of which SIGKILL': sum(k['how'] != 'SIGTERM' for k in done),
        'of these while a checkpoint was written': sum(
            k['while a checkpoint was written'] for k in done if k['how'] != 'SIGTERM'
        ),
        'of which SIGTERM': sum(k['how'] == 'SIGTERM' for k in done),
        'arrays compared': len(state),
        'bytes compared': sum(leaf.nbytes for leaf in state.values()),
        'differences': processes.differences(run, reference),
        'other ways to end': [k for k in done if set(k['exit codes']) - EXPECTED[k['how'] == 'SIGTERM']],
        'longest wait for the others, seconds': max(k['seconds until all had ended'] for k in done),
        'left in checkpoints/': sorted(os.listdir(run / 'checkpoints')),
        'minutes': round((time.monotonic() - began) / 60, 1),
        'each': done,
    }


def interrupted(run: Path, start: Callable, how: str, chance: random.Random, longest: float) -> dict:
    """Starts the run and ends it, one of the ways in `HOW`; what happened."""
    size, since, started = processes.log_size(run), time.time(), time.monotonic()
    group = start(run)
    process = chance.choice(group)
    alive, wait = True, chance.uniform(0, longest)
    if how == 'at any time':
        wait *= 3
    else:
        alive = processes.wait_for(process, lambda: processes.log_size(run) != size)
    until = time.monotonic() + wait
    alive = alive and processes.wait_for(process, lambda: time.monotonic() > until)
    after = time.monotonic() - started
    if alive and how == 'while writing':
        alive = processes.wait_for(process, lambda: processes.is_writing(run, since))
        time.sleep(chance.uniform(0, 0.02))
    if not alive:
        raise RuntimeError('the run ended before it was interrupted so often; give it more epochs')
    writing = processes.is_writing(run, since)
    if how == 'SIGTERM':
        process.send_signal(signal.SIGTERM)
    else:
        process.kill()
    ended = time.monotonic()
    codes = [one.wait(timeout=120) for one in group]
    steps = processes.checkpoint_steps(run)
    return {
        'how': how,
        'seconds after the start': round(after, 2),
        'while a checkpoint was written': writing,
        'exit codes': codes,
        'seconds until all had ended': round(time.monotonic() - ended, 2),
        'newest checkpoint': steps[-1] if steps else None,
    }


def finish(group: list, folder: Path) -> None:
    """Waits for a run's processes; raises what the first has said where one fails."""
    if any([process.wait() for process in group]):
        raise RuntimeError(folder.with_name(f'{folder.name}-0.log').read_text()[-2000:])


if __name__ == '__main__':
    sys.exit(main())
