"""A long run that is killed every few minutes, and what it takes of memory, file handles and disk.

    python -m benchmarks.reliability.soak --minutes=60 --every=4 --output=results/reliability

The run of configs/digits.py (16 workers) has more epochs than it can finish. Every five seconds its resident
memory, open files and disk use are written down; soak.json holds these figures, and README.md what they show.
"""

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil

from benchmarks.reliability import processes

FLAGS = ['--config=configs/digits.py', '--config.num_epochs=1000000', '--config.check_replicas_every=100']
SAMPLE_SECONDS = 5
SETTLED_SECONDS = 90  # until all programs are compiled and have been run
MB = 1e6


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--minutes', type=float, default=60)
    parser.add_argument('--every', type=float, default=4, help='minutes from start to kill')
    parser.add_argument('--output', type=Path, required=True)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        lives = soak(Path(folder), arguments.minutes, arguments.every)
    report = summarise(lives, arguments.minutes, arguments.every)
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / 'soak.json').write_text(json.dumps(report | {'lives': lives}) + '\n')
    print(json.dumps(report, indent=2))
    return 0


def soak(folder: Path, minutes: float, every: float) -> list[dict]:
    """The samples of each life of the run, from a start to a kill."""
    compiled = {'JAX_COMPILATION_CACHE_DIR': str(folder / 'compiled')}
    environment = os.environ | {'JAX_PLATFORMS': 'cpu'} | compiled
    run, end, lives = folder / 'run', time.monotonic() + 60 * minutes, []
    while time.monotonic() < end:
        process, born, samples = processes.start(run, FLAGS, environment), time.monotonic(), []
        while time.monotonic() < min(end, born + 60 * every):
            time.sleep(SAMPLE_SECONDS)
            if process.poll() is not None:
                raise RuntimeError(run.with_name('run.log').read_text()[-2000:])
            samples.append(sample(process.pid, run) | {'seconds': round(time.monotonic() - born, 1)})
        processes.kill(process)
        lives.append({'newest checkpoint': processes.checkpoint_steps(run)[-1], 'samples': samples})
        print(len(lives), lives[-1]['newest checkpoint'], samples[-1], flush=True)
    return lives


def sample(pid: int, run: Path) -> dict:
    process = psutil.Process(pid)
    return {
        'memory_mb': round(process.memory_info().rss / MB, 2),
        'files': process.num_fds(),
        'threads': process.num_threads(),
        'checkpoints': len(processes.checkpoint_steps(run)),
        'checkpoints_mb': size(run / 'checkpoints'),
        'logs_mb': round(size(run / 'tensorboard') + size(run / 'metrics.jsonl'), 4),
        'cache_mb': size(run.with_name('compiled')),
    }


def size(path: Path) -> float:
    """Megabytes in a file or folder, whose files may come and go."""
    if path.is_file():
        return round(path.stat().st_size / MB, 4)
    total = 0
    for folder, _, names in os.walk(path):  # passes over folders that are gone
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += os.stat(os.path.join(folder, name)).st_size
    return round(total / MB, 4)


def summarise(lives: list[dict], minutes: float, every: float) -> dict:
    """The figures of the page: within a life once it has settled, and from the first life to the last."""
    settled = [[s for s in life['samples'] if s['seconds'] > SETTLED_SECONDS] for life in lives]
    settled = [samples for samples in settled if len(samples) > 5]
    slopes = [
        60 * np.polyfit([s['seconds'] for s in samples], [s['memory_mb'] for s in samples], 1)[0]
        for samples in settled
    ]
    every_sample = [s for samples in settled for s in samples]
    files, threads = ([s[name] for s in every_sample] for name in ('files', 'threads'))
    return {
        'minutes': minutes,
        'minutes between kills': every,
        'kills': len(lives),
        'steps': lives[-1]['newest checkpoint'],
        'memory, MB, end of each life': [samples[-1]['memory_mb'] for samples in settled],
        'memory, MB a minute within a life': [round(float(slope), 2) for slope in slopes],
        'file handles, least and most': [min(files), max(files)],
        'threads, least and most': [min(threads), max(threads)],
        'checkpoints, most': max(s['checkpoints'] for s in every_sample),
        'checkpoints, MB, end of each life': [samples[-1]['checkpoints_mb'] for samples in settled],
        'metrics and TensorBoard, MB, end of each life': [samples[-1]['logs_mb'] for samples in settled],
        'compilation cache, MB, end of each life': [samples[-1]['cache_mb'] for samples in settled],
    }


if __name__ == '__main__':
    sys.exit(main())
