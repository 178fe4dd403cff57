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

from benchmarks.map import perceptron, plan

Key = tuple[Any, ...]  # see `key`
Records = dict[Key, dict[str, Any]]
_LIMIT = 12  # times a grid may grow
_LIKELY = 0.05  # share of the bootstrap's draws


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
            record |= {'rate': float(f'{rate(k):.4g}')} | train(rate(k), seed, tuning)
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


def rate(k: int) -> float:
    return plan.BASE * plan.FACTOR**k


def tune(losses: Callable[[int], np.ndarray], first: int) -> dict[int, np.ndarray]:
    """Losses by k, one per tuning seed: around `first`, and on until the best has two neighbours."""
    tried = {k: losses(k) for k in range(first - 1, first + 2)}
    for _ in range(_LIMIT):
        best = chosen(tried)
        if min(tried) < best < max(tried):
            return tried
        beyond = best - 1 if best == min(tried) else best + 1
        tried[beyond] = losses(beyond)
    raise ValueError(f'no best rate within {sorted(map(rate, tried))}')


def chosen(tried: dict[int, np.ndarray]) -> int:
    """The k with the lowest mean loss."""
    return min(tried, key=lambda k: tried[k].mean())


def shares(tried: dict[int, np.ndarray], draws: int = 2000) -> dict[int, float]:
    """How often each k would be chosen by as many tuning seeds, drawn again from these: a bootstrap."""
    rates, losses = list(tried), np.stack(list(tried.values()))
    drawn = np.random.default_rng(0).integers(0, losses.shape[1], (draws, losses.shape[1]))
    best = losses[:, drawn].mean(-1).argmin(0)
    return {k: float(np.mean(best == i)) for i, k in enumerate(rates)}


def run_cell(cell: plan.Cell, runs: Runs) -> Iterable[str]:
    """Tunes for each point and trains the fresh seeds at what was chosen; says what it found."""
    train = perceptron.train(cell.contender, cell.width)
    get = functools.partial(runs.get, cell, train)
    first = round(np.log(cell.contender.rate / plan.BASE) / np.log(plan.FACTOR))

    def losses(point: str, k: int) -> np.ndarray:
        found = [get(k, seed, tuning=True)['loss'][point] for seed in plan.TUNING_SEEDS]
        return np.nan_to_num(np.array(found, float), nan=np.inf, posinf=np.inf)

    for point in cell.points:
        tried = tune(functools.partial(losses, point), first)
        likely = [k for k, share in shares(tried).items() if share >= _LIKELY] if cell.likely else []
        for k in dict.fromkeys([chosen(tried), *likely]):
            records = [get(k, seed, tuning=False) for seed in plan.SEEDS]
            means = [
                np.mean(np.array([r[name][point] for r in records], float))
                for name in ('error', 'train_error')
            ]
            yield f'{point} at {rate(k):.3g}: error {means[0]:.2f}, in training {means[1]:.2f}'


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
