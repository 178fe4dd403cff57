"""Test accuracy against seconds on a slow network: DEF, dense training and rivals in the same loop.

    python -m benchmarks.time_to_accuracy --data_dir=DIR --output=results/benchmarks

Four processes, each in its own network namespace (root and iproute2 needed), train the same network on
CIFAR-10, read through TFDS from --data_dir, in the same order of images. The accuracies of a run do not
depend on the bandwidth, so whole runs, one for each --seed and --variant, are made on a network that is not
shaped; on a network of each --bandwidth, --timed_steps of every variant are timed, in turn. Only these need a
machine that does nothing else. A run is a line of time_to_accuracy.jsonl, with its whole curve: the program
makes those that are missing. A learning rate is to be chosen with --validation, which trains without the last
tenth of the training images, tests on it and times nothing. Writes time_to_accuracy.md and .png.
"""

import itertools
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags

from benchmarks import pages, records
from benchmarks.cluster.network import network
from benchmarks.cluster.processes import guarded, run_workers
from benchmarks.time_to_accuracy import page
from def_jax.trainer.data.in_memory import load_dataset
from experiments import spec

# Peak rates, with momentum 0.9. They were chosen by runs of 780 steps with --validation and --seed=100, from
# 0.025, 0.05, 0.1 and, for 'dense', 0.2, where it diverges; PowerSGD's from 0.05 and 0.1. DEF-Q has that of
# 'dense'.
RATES = {
    'dense': 0.1,
    'def64': 0.05,
    'def256': 0.05,
    'def_q64_2': 0.1,
    'def_q256_2': 0.1,
    'jax_powersgd': 0.05,
}

_DATA = flags.DEFINE_string('data_dir', None, "TFDS's folder; by default TFDS_DATA_DIR or TFDS's own.")
_BANDWIDTHS = flags.DEFINE_multi_string(
    'bandwidth', ['1gbit', '100mbit'], "In tc's notation, of each interface; empty to time nothing."
)
_VARIANTS = flags.DEFINE_multi_enum('variant', list(RATES), list(RATES), 'What to train with.')
_SEEDS = flags.DEFINE_multi_integer('seed', [0, 1, 2], 'Order of the images and draws of blocks.')
_STEPS = flags.DEFINE_integer('steps', 1560, 'Steps of a run; 390 are an epoch.', lower_bound=1)
_TIMED = flags.DEFINE_integer('timed_steps', 30, 'Steps at each bandwidth.', lower_bound=10)
_RATE = flags.DEFINE_float('learning_rate', None, "Peak rate of every variant; by default each one's own.")
_VALIDATION = flags.DEFINE_bool('validation', False, 'Test on the last tenth of the training images instead.')
_TIMEOUT = flags.DEFINE_float('timeout', 4 * 3600, 'Seconds after which a run is abandoned.')
_OUTPUT = flags.DEFINE_string('output', 'results/benchmarks', 'Folder of the runs and the page.')

_FIRST = 5  # steps that open connections and are not timed


def main(_) -> int:
    return guarded('time_to_accuracy', _make_all)


def _make_all() -> None:
    """Makes the runs that are missing, and writes the page."""
    folder = Path(_OUTPUT.value)
    path = folder / 'time_to_accuracy.jsonl'
    missing = records.missing(path, _wanted())
    with tempfile.TemporaryDirectory(prefix='def_jax-accuracy-') as images:
        data = _export(Path(images)) if missing else ''
        for settings in missing:
            records.add(path, _run(settings, data))
    page.write(folder)
    origin = {'origin': pages.origin('benchmarks.time_to_accuracy')}
    pages.write(folder / 'time_to_accuracy.md', origin)


def _wanted() -> Iterator[dict[str, Any]]:
    """The settings of every run: whole ones, seed by seed, then those that are timed."""
    bandwidths = [] if _VALIDATION.value else filter(None, _BANDWIDTHS.value)
    whole = itertools.product([''], _SEEDS.value, _VARIANTS.value)
    timed = itertools.product(bandwidths, _SEEDS.value[:1], _VARIANTS.value)
    for bandwidth, seed, variant in itertools.chain(whole, timed):
        yield {
            'variant': variant,
            'seed': seed,
            'bandwidth': bandwidth,  # a whole run has none
            'workers': 4,
            'batch': 32,
            'size': 'full',
            'learning_rate': _RATE.value or RATES[variant],
            'num_steps': _STEPS.value,
            'run_steps': _TIMED.value if bandwidth else _STEPS.value,
            'eval_every': max(1, _STEPS.value // 26),
            'train_images': None,  # all
            'validation': _VALIDATION.value,
        }


def _export(folder: Path) -> str:
    """The images as a file that every worker reads."""
    train, test = load_dataset('cifar10', _DATA.value)
    if _VALIDATION.value:
        cut = len(train) - len(train) // 10
        train, test = train.part(0, cut), train.part(cut, len(train))
    path, parts = folder / 'cifar10.npz', {'train': train.arrays, 'test': test.arrays}
    np.savez(path, **{f'{part}_{name}s': array for part in parts for name, array in parts[part].items()})
    return str(path)


def _run(settings: dict[str, Any], data: str) -> dict[str, Any]:
    """One run.

    Raises:
        WorkerFailed: if it does not end.
    """
    module, job = 'benchmarks.time_to_accuracy.worker', settings | {'data': data}
    with network(settings['workers'], settings['bandwidth'] or None) as cluster:
        reports = run_workers(cluster, sys.executable, module, job, _TIMEOUT.value)
    name = f'{settings["variant"]}, seed {settings["seed"]}, {settings["bandwidth"] or "whole"}'
    print(f'{name}: {reports[0]["curve"][-1]}', file=sys.stderr, flush=True)
    # A step ends when the slowest worker's does; the clocks differ by what a worker waits for its input.
    seconds = np.max([report.pop('seconds') for report in reports], axis=0)
    steady = seconds[_FIRST:]
    machine = {
        'step_seconds': float(steady.mean()),
        'standard_error': float(steady.std(ddof=1) / len(steady) ** 0.5),
        'load': os.getloadavg()[0],
        'commit': spec.commit(allow_dirty=True),
    }
    return {'settings': settings, 'curve': reports[0].pop('curve')} | reports[0] | machine


if __name__ == '__main__':
    app.run(main)
