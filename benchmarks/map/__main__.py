"""The runs of the map, one line each, in runs.jsonl; see plan.py for what is compared.

    XLA_FLAGS=--xla_cpu_multi_thread_eigen=false python -m benchmarks.map --output=results/map

Rates lie a factor of 1.4 apart. Each is the one with the lowest loss, at the point that the method outputs,
on held-out fifths of the training images, two seeds each, which are used for nothing else; the grid grows
until the best is not at its edge. Twenty fresh seeds then train on all 1,000 images. (Four seeds on a single
fifth, which came first, left neighbouring rates within their noise.) On CIFAR-10, it is the one with the
lowest error on 5,000 held-out images. Where a cell asks for it, fresh seeds also train at every rate that
tuning seeds drawn again would choose in 5 % of the cases or more. A run whose line is there is not run again,
so that a stopped program goes on where it was.
"""

import functools
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import jax
import numpy as np
from absl import app, flags

from benchmarks import grid
from benchmarks.map import perceptron, plan
from benchmarks.records import Record, Records


def run_cell(cell: plan.Cell, runs: Records) -> Iterable[str]:
    """Tunes for each point and trains the fresh seeds at what was chosen; says what it found."""
    key = cell.key
    train = perceptron.train(cell.contender, key.width, key.workers, key.steps, key.images)
    get = functools.partial(_get, key, train, runs)

    def losses(point, ks):
        tried = [[get(k, seed, tuning=True) for seed in plan.TUNING_SEEDS] for k in ks]
        found = [[run[key.criterion][point] for run in of] for of in tried]
        return [[np.inf if loss is None else loss for loss in of] for of in found]

    for point in cell.points:
        tried = grid.tune(functools.partial(losses, point), plan.RATES.nearest(cell.contender.rate))
        likely = [k for k, share in grid.shares(tried).items() if share >= grid.LIKELY]
        for k in dict.fromkeys([grid.chosen(tried), *(likely if cell.likely else [])]):
            found = [get(k, seed, tuning=False) for seed in plan.SEEDS]
            error, train = (
                np.mean(np.array([run[name][point] for run in found], float))
                for name in ('error', 'train_error')
            )
            yield f'{point} at {plan.RATES.rate(k):.3g}: error {error:.2f}, in training {train:.2f}'


def _get(key: plan.Key, train: Callable, runs: Records, k: int, seed: int, *, tuning: bool) -> Record:
    """A run's record; trains it if it is not there."""
    record = key.settings | {'k': k, 'seed': seed, 'tuning': tuning}
    rate = plan.RATES.rate(k)
    found = runs.get(record)
    return found or runs.add(record | {'rate': float(f'{rate:.4g}')} | train(rate, seed, tuning))


def main(_) -> None:
    runs = Records(Path(flags.FLAGS.output, 'runs.jsonl'), plan.key)
    for part in flags.FLAGS.parts or plan.PARTS:
        for cell in plan.cells(part):
            begin, key = time.process_time(), cell.key
            for line in run_cell(cell, runs):
                seconds = time.process_time() - begin
                name = f'{key.workers} × {key.width}, {key.steps} steps, {key.title} {key.bytes_of:g}'
                print(f'{name} {line}; {seconds:.0f} s', file=sys.stderr, flush=True)
            jax.clear_caches()


if __name__ == '__main__':
    flags.DEFINE_string('output', 'results/map', 'Folder of runs.jsonl.')
    flags.DEFINE_list('parts', [], f'Parts of the plan to run, in order; all of {", ".join(plan.PARTS)}.')
    app.run(main)
