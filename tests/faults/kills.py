"""SIGKILL at random moments, some while a checkpoint is written; the end must be the same, bit for bit.

    python tests/faults/kills.py --kills=25 --output=results/reliability

One run of digits is left alone. Another, with the same flags, is killed and started again with the same
command until it has been killed so often; then it may finish. Every fifth kill is SIGTERM, which writes a
checkpoint first. At the end every array of the last checkpoints is compared, and every record of the metrics.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.faults import processes

FLAGS = [
    *('--config=configs/digits.py', '--config.num_workers=8', '--config.batch_size=128'),
    *('--config.num_epochs=600', '--config.eval_every_epochs=2', '--config.log_every_steps=5'),
]
HOW = ('at any time', 'while training', 'while writing', 'while training', 'SIGTERM')


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--kills', type=int, default=25)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--longest', type=float, default=8, help='seconds of training before a kill, at most')
    parser.add_argument('--output', type=Path, help='folder that gets kills.json')
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = torture(Path(folder), arguments.kills, arguments.seed, arguments.longest)
    print(json.dumps(report, indent=2))
    if arguments.output:
        arguments.output.mkdir(parents=True, exist_ok=True)
        (arguments.output / 'kills.json').write_text(json.dumps(report, indent=2) + '\n')
    return 0 if not report['differences'] else 1


def torture(folder: Path, kills: int, seed: int, longest: float, flags: list[str] | None = None) -> dict:
    """Runs, kills, resumes and compares.

    Args:
        folder: where both runs go.
        kills: how often the second is killed.
        seed: of the moments.
        longest: seconds of training before a kill, at most; from the start three times as many.
        flags: of train.py; by default digits with 8 workers.

    Returns:
        What happened: each kill, and what differs at the end.
    """
    flags, chance, began = flags or FLAGS, random.Random(seed), time.monotonic()
    environment = os.environ | {'JAX_COMPILATION_CACHE_DIR': str(folder / 'compiled'), 'JAX_PLATFORMS': 'cpu'}
    reference, run = folder / 'reference', folder / 'run'
    if processes.start(reference, flags, environment).wait():
        raise RuntimeError(reference.with_name('reference.log').read_text()[-2000:])
    done = []
    while len(done) < kills:
        done.append(interrupted(run, flags, environment, HOW[len(done) % len(HOW)], chance, longest))
        print(done[-1], flush=True)
    if processes.start(run, flags, environment).wait():
        raise RuntimeError(run.with_name('run.log').read_text()[-2000:])
    state = processes.final_state(run)
    return {
        'flags': flags,
        'interruptions': len(done),
        'of which SIGKILL': sum(k['how'] != 'SIGTERM' for k in done),
        'of these while a checkpoint was written': sum(
            k['while a checkpoint was written'] for k in done if k['how'] != 'SIGTERM'
        ),
        'of which SIGTERM': sum(k['how'] == 'SIGTERM' for k in done),
        'arrays compared': len(state),
        'bytes compared': sum(leaf.nbytes for leaf in state.values()),
        'differences': processes.differences(run, reference),
        'left in checkpoints/': sorted(os.listdir(run / 'checkpoints')),
        'minutes': round((time.monotonic() - began) / 60, 1),
        'each': done,
    }


def interrupted(
    run: Path, flags: list[str], environment: dict[str, str], how: str, chance: random.Random, longest: float
) -> dict:
    """Starts the run and ends it, one of the ways in `HOW`; what happened."""
    size, since, started = processes.log_size(run), time.time(), time.monotonic()
    process = processes.start(run, flags, environment)
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
        code = process.wait()
    else:
        code = -signal.SIGKILL if processes.kill(process) else 0
    steps = processes.checkpoint_steps(run)
    return {
        'how': how,
        'seconds after the start': round(after, 2),
        'while a checkpoint was written': writing,
        'exit code': code,
        'newest checkpoint': steps[-1] if steps else None,
    }


if __name__ == '__main__':
    sys.exit(main())
