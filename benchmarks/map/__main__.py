"""The runs of the map, one line each, in runs.jsonl; see plan.py for what is compared.

    XLA_FLAGS=--xla_cpu_multi_thread_eigen=false python -m benchmarks.map --output=results/map

Rates lie a factor of 1.4 apart. Each is the one with the lowest loss, at the point that the method outputs,
on held-out fifths of the training images, two seeds each, which are used for nothing else; the grid grows
until the best is not at its edge. Twenty fresh seeds then train on all 1,000 images. A run whose line is
there is not run again, so that a stopped program goes on where it was. (Four seeds on a single fifth, which
came first, left neighbouring rates within their noise.) Where a cell asks for it, fresh seeds also train at
every rate that tuning seeds drawn again would choose in 5 % of the cases or more.
"""

import functools
import json
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags

from benchmarks.map import choice, perceptron, plan

Key = tuple[Any, ...]  # see `key`
Records = dict[Key, dict[str, Any]]


class Runs:
    """The lines of runs.jsonl, and how to add one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text(encoding='utf-8').splitlines() if path.exists() else []
        self.known: Records = {key(record): record for record in map(json.loads, lines)}

    def get(self, cell: plan.Cell, train: Callable, k: int, seed: int, *, tuning: bool) -> dict[str, Any]:
        """A run's record; trains it if it is not there."""
        contender = cell.contender
        record = {
            'width': cell.width,
            'title': contender.title,
            'bytes_of': bytes_of(cell),
            'k': k,
            'seed': seed,
            'tuning': tuning,
        }
        if key(record) not in self.known:
            record |= {'rate': float(f'{choice.rate(k):.4g}')} | train(choice.rate(k), seed, tuning)
            self.known[key(record)] = record
            with self.path.open('a', encoding='utf-8') as file:
                file.write(json.dumps(record, ensure_ascii=False) + '\n')
        return self.known[key(record)]


def key(record: dict[str, Any]) -> Key:
    return tuple(record[name] for name in ('width', 'title', 'bytes_of', 'k', 'seed', 'tuning'))


def bytes_of(cell: plan.Cell) -> float:
    """The ratio that sends as many bytes in float32."""
    contender = cell.contender
    return contender.ratio * (4 if 'wire_dtype' in contender.options else 1)


def run_cell(cell: plan.Cell, runs: Runs) -> Iterable[str]:
    """Tunes for each point and trains the fresh seeds at what was chosen; says what it found."""
    train = perceptron.train(cell.contender, cell.width)
    get = functools.partial(runs.get, cell, train)
    first = choice.nearest(cell.contender.rate)

    def losses(point: str, k: int) -> np.ndarray:
        found = [get(k, seed, tuning=True)['loss'][point] for seed in plan.TUNING_SEEDS]
        return np.nan_to_num(np.array(found, float), nan=np.inf, posinf=np.inf)

    for point in cell.points:
        tried = choice.tune(functools.partial(losses, point), first)
        likely = (
            [k for k, share in choice.shares(tried).items() if share >= choice.LIKELY] if cell.likely else []
        )
        for k in dict.fromkeys([choice.chosen(tried), *likely]):
            records = [get(k, seed, tuning=False) for seed in plan.SEEDS]
            means = [
                np.mean(np.array([r[name][point] for r in records], float))
                for name in ('error', 'train_error')
            ]
            yield f'{point} at {choice.rate(k):.3g}: error {means[0]:.2f}, in training {means[1]:.2f}'


def main(_) -> None:
    folder = Path(flags.FLAGS.output)
    folder.mkdir(parents=True, exist_ok=True)
    runs = Runs(folder / 'runs.jsonl')
    for part in flags.FLAGS.parts or plan.PARTS:
        for cell in plan.cells(part):
            begin = time.process_time()
            for line in run_cell(cell, runs):
                seconds = time.process_time() - begin
                name = f'{cell.width} {cell.contender.title} {bytes_of(cell):g}'
                print(f'{name} {line}; {seconds:.0f} s', file=sys.stderr, flush=True)
            jax.clear_caches()


if __name__ == '__main__':
    flags.DEFINE_string('output', 'results/map', 'Folder of runs.jsonl.')
    flags.DEFINE_list('parts', [], f'Parts of the plan to run, in order; all of {", ".join(plan.PARTS)}.')
    app.run(main)
