"""Dense AdamW and DEF at the bytes of 64, by the size of the network: the map's transformers.

    XLA_FLAGS=--xla_cpu_multi_thread_eigen=false python -m benchmarks.adamw.sizes

1,200 steps, 8 workers of 4 sequences. Rates lie a factor of 1.4 apart. Each has the lowest validation loss on
seed 0, and none is at an edge; three fresh seeds are tested.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app

from benchmarks import grid, records
from benchmarks.adamw import network
from benchmarks.adamw.settings import Setting, at_output, run
from paper.statistics import mean_std, seed_difference

__all__ = ['rows']

RUNS = Path('results/benchmarks/adamw.jsonl')
DENSE = 'dense AdamW'
ALIAS = {'b1': 0.0, 'b2': 0.995, 'detach': 0.2, 'outer_lr': 0.3, 'outer_mu': 0.8}  # as def_adamw
METHODS: dict[str, dict[str, Any]] = {
    DENSE: {'method': 'dense', 'b1': 0.9},
    'DEF, ours, int8, 64': ALIAS | {'ratio': 16.0, 'bits': 8},
    'DEF (paper) around AdamW, 64': {'b1': 0.9, 'detach': 0.3, 'ratio': 64.0, 'rounds': False},
    'DEF, ours, 64': ALIAS | {'ratio': 64.0},
}
RATES = grid.Grid(0.016, 2**0.5)
SIZES = {'33k': 0, '115k': 0, '358k': -1, '1m': -3}  # with the k of the rate in the middle
SEEDS = (1, 2, 3)
Get = Callable[[records.Record], records.Record]


def _setting(size: str, method: str, k: int, seed: int) -> records.Record:
    """A run; seed 0 chooses, the others are tested."""
    rate = float(f'{RATES.rate(k):.3g}')
    note = f'{size}, {method}, {rate}, seed {seed}'
    return {'note': note, 'model': size, 'lr': rate, 'seed': seed, 'test': seed > 0} | METHODS[method]


def _cell(size: str, method: str, get: Get) -> tuple[grid.Tried, dict[int, records.Record]]:
    """Validation losses by k, and the final runs by seed; `get` trains or finds a run."""

    def losses(ks: Sequence[int]) -> np.ndarray:
        return np.array([[_loss(get(_setting(size, method, k, 0)), 'val')] for k in ks])

    tried = grid.tune(losses, SIZES[size])
    return tried, {seed: get(_setting(size, method, grid.chosen(tried), seed)) for seed in SEEDS}


def _loss(record: records.Record, part: str) -> float:
    """At the output, on a part of the text; infinite for a run that was stopped as hopeless."""
    return at_output(record[part]) if record['curve'][-1][0] == record['steps'] else np.inf


def rows(found: Iterable[records.Record]) -> Iterator[dict[str, str]]:
    """For each size and method whose runs are there: rates, losses in nats a byte, and what it is behind."""
    runs = {Setting.of(run): run for run in found}
    for size in SIZES:
        fresh: dict[str, dict[int, float]] = {}
        for method in METHODS:
            try:
                tried, final = _cell(size, method, lambda line: runs[Setting.of(line)])
            except KeyError:
                continue
            fresh[method] = {seed: _loss(run, 'test_loss') for seed, run in final.items()}
            behind = seed_difference(fresh[method], fresh.get(DENSE, {}))
            rates = [f'{RATES.rate(k):.3g}: {loss[0]:.3f}' for k, loss in sorted(tried.items())]
            best = sorted(tried).index(grid.chosen(tried))
            rates[best] = f'**{rates[best]}**'
            yield {
                'parameters': f'{network.parameters(network.SIZES[size]):,}',
                'method': method,
                'validation loss by rate': ', '.join(rates),
                'test loss': mean_std(list(fresh[method].values()), 3),
                'training loss': mean_std([run['train'][-1] for run in final.values()], 3),
                'behind': behind.text(3) if behind and method != DENSE else '',
            }


def main(_) -> None:
    runs = records.Records(RUNS, Setting.of)

    def trained(line: records.Record) -> records.Record:
        jax.clear_caches()
        return runs.get(line) or runs.add(run(Setting(**line)))

    for size, method in itertools.product(SIZES, METHODS):
        _cell(size, method, trained)


if __name__ == '__main__':
    app.run(main)
