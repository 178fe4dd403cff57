"""Time to the first step of a new run and of a resumed run.

    python -m benchmarks.startup --output=results/benchmarks/startup.md

Starts `train.py` in a fresh process and an empty folder, stops it with SIGTERM after its first step, and
starts it again in the same folder.
"""

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from absl import app, flags

from benchmarks import timing
from benchmarks.runs import SMALL_CIFAR10, make_config
from def_jax.trainer import metrics

_OUTPUT = flags.DEFINE_string('output', None, 'Markdown file for the table; only printed if not given.')
_STARTS = flags.DEFINE_integer('starts', 3, 'How often a run is started and resumed.', lower_bound=1)
_DATA = flags.DEFINE_list('data', ['digits', 'cifar10'], 'Which data sets.')


def main(_) -> None:
    with tempfile.TemporaryDirectory(prefix='def_jax-startup-') as folder:
        rows = [row for name in _DATA.value for row in _starts(name, Path(folder))]
    columns = ['data', 'start', 'seconds to the first step', 'relative to a new run', 'programs compiled']
    note = (
        f'From the start of the process until the record of its first step is on disk; median of '
        f'{_STARTS.value}. A resumed run also restores its checkpoint. The count of programs is the number '
        'added to the compilation cache in the run folder, which holds those that take 0.1 s or more to '
        'compile.'
    )
    sections = [f'## Time to the first step\n\n{note}\n', timing.table(columns, rows)]
    timing.write_page(_OUTPUT.value, 'python -m benchmarks.startup', sections)


def _starts(name: str, folder: Path) -> Iterator[list[Any]]:
    """Rows of the time to the first step."""
    figures: dict[str, list[tuple[float, int]]] = {'new': [], 'resumed': []}
    for repeat in range(_STARTS.value):
        run = folder / f'start-{name}-{repeat}'
        for kind in figures:
            figures[kind].append(_time_to_first_step(name, run))
    medians = {kind: statistics.median(seconds for seconds, _ in found) for kind, found in figures.items()}
    for kind, found in figures.items():
        programs = sorted({programs for _, programs in found})
        share = f'{medians[kind] / medians["new"]:.2f}'
        yield [name, kind, f'{medians[kind]:.1f}', share, ' or '.join(map(str, programs))]


def _time_to_first_step(name: str, run: Path) -> tuple[float, int]:
    """Seconds, and the number of programs added to the cache; stops the run after a few steps."""
    config = make_config(name, log_every_steps=1)
    given = [f'--config.{key}={config[key]}' for key in (*SMALL_CIFAR10, 'num_epochs', 'log_every_steps')]
    command = [sys.executable, 'train.py', f'--config=configs/{name}.py', f'--workdir={run}', *given]
    environment = {k: v for k, v in os.environ.items() if not k.startswith('JAX_')}
    done, cached = _steps_done(run), _cached(run)
    start = time.perf_counter()
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        while (now := _steps_done(run)) <= done and process.poll() is None:
            time.sleep(0.02)
        seconds = time.perf_counter() - start
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate()
    if now <= done:
        raise RuntimeError(f'{command} ended before its first step: {errors.decode()}')
    return seconds, len(_cached(run) - cached)


def _steps_done(run: Path) -> int:
    return max((r['step'] for r in metrics.read(run / 'metrics.jsonl') if 'loss' in r), default=0)


def _cached(run: Path) -> set[str]:
    return {path.name for path in (run / 'compilation_cache').glob('*-cache')}


if __name__ == '__main__':
    app.run(main)
