"""The finished cells of the map: a method at a width, tuned, and its runs with fresh seeds."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import grid, records
from benchmarks.map import plan
from paper.statistics import Difference, seed_difference

__all__ = ['DRAWS', 'SGD', 'Cell', 'Cells', 'differences', 'gap', 'read']

SGD = 'SGD', 1
DRAWS = 4000  # of a bootstrap


class Cell(NamedTuple):
    """A method at a width, by k: losses and errors on held-out images, and its runs with fresh seeds."""

    width: int
    title: str
    bytes_of: float
    tried: dict[int, np.ndarray]
    held_out: dict[int, np.ndarray]
    runs: dict[int, list[dict[str, Any]]]
    point: str  # at which it is evaluated
    steps: int = plan.STEPS

    @property
    def name(self) -> str:
        return self.title if self.bytes_of == SGD[1] else f'{self.title}, {self.bytes_of:g}'

    @property
    def k(self) -> int:
        return grid.chosen(self.tried)

    @property
    def share(self) -> str:
        """How often other tuning seeds would choose the same rate."""
        return f'{100 * grid.shares(self.tried)[self.k]:.0f} %'

    @property
    def visits(self) -> float:
        """How often a block is sent in a run; in int8, blocks are four times as large."""
        return self.steps / self.bytes_of * (4 if 'int8' in self.title else 1)

    def of(self, name: str, k: int | None = None) -> np.ndarray:
        """A metric of the fresh seeds."""
        return np.array([run[name][self.point] for run in self.runs[self.k if k is None else k]], float)


Cells = dict[int, dict[tuple[str, float], Cell]]


def read(path: Path, point: str = 'y', workers: int = plan.WORKERS, steps: int = plan.STEPS) -> Cells:
    """The finished cells, by width and method, each with its own rate for the point."""
    tuned: dict[tuple, dict[int, dict[int, Any]]] = {}
    runs: dict[tuple, dict[int, dict[int, Any]]] = {}
    for record in records.read(path):
        if (record.get('workers', plan.WORKERS), record.get('steps', plan.STEPS)) != (workers, steps):
            continue
        key, k, seed = (record['width'], record['title'], record['bytes_of']), record['k'], record['seed']
        (tuned if record['tuning'] else runs).setdefault(key, {}).setdefault(k, {})[seed] = record
    found: Cells = {}
    for key, of_key in tuned.items():
        at = 'x' if key[1].startswith(SGD[0]) else point
        tried, held_out = (
            {
                k: np.nan_to_num(np.array([of[s][name][at] for s in sorted(of)], float), nan=np.inf)
                for k, of in of_key.items()
                if _whole(of, tuning=True)
            }
            for name in ('loss', 'error')
        )
        fresh = {
            k: [of[s] for s in plan.SEEDS] for k, of in runs.get(key, {}).items() if _whole(of, tuning=False)
        }
        cell = Cell(*key, tried, held_out, fresh, at, steps)
        if len(tried) == len(of_key) and min(tried) < cell.k < max(tried) and cell.k in fresh:
            found.setdefault(cell.width, {})[cell.title, cell.bytes_of] = cell
    return {width: found[width] for width in sorted(found)}


def _whole(by_seed: dict[int, Any], *, tuning: bool) -> bool:
    return set(by_seed) >= set(plan.TUNING_SEEDS if tuning else plan.SEEDS)


def gap(cell: Cell, other: Cell) -> Difference:
    """The difference in test accuracy to another cell, such as SGD's, in points, paired by seed."""
    found = seed_difference(-cell.of('error'), -other.of('error'))
    assert found is not None, 'every cell has the seeds of the plan'
    return found


def differences(cell: Cell, sgd: Cell) -> list[str]:
    """Minus SGD: over fresh seeds, with the choice of both rates, on held-out images; empty for SGD."""
    if cell is sgd:
        return ['', '', '']
    return [gap(cell, sgd).text(), _with_choice(cell, sgd), _held_out_gap(cell, sgd).text()]


def _held_out_gap(cell: Cell, other: Cell) -> Difference:
    """The same on the images that chose the rates, of the tuning seeds.

    Each side is the mean of its rate and the two beside it, so that chance in the choice matters less.
    """
    found = seed_difference(
        *(-np.mean([each.held_out[each.k + i] for i in (-1, 0, 1)], axis=0) for each in (cell, other))
    )
    assert found is not None, 'every cell has the tuning seeds of the plan'
    return found


def _with_choice(cell: Cell, sgd: Cell) -> str:
    """The interval of the same difference over fresh seeds and the choice of both rates, by a bootstrap.

    Empty while a rate that tuning seeds, drawn again, would choose in 5 % of the cases or more has no runs.
    """
    rng = np.random.default_rng(0)
    tuning = rng.integers(0, len(plan.TUNING_SEEDS), (DRAWS, len(plan.TUNING_SEEDS)))
    fresh = rng.integers(0, len(plan.SEEDS), (DRAWS, len(plan.SEEDS)))
    errors, known = [], np.ones(DRAWS, bool)
    for each in (cell, sgd):
        if any(s >= grid.LIKELY and k not in each.runs for k, s in grid.shares(each.tried).items()):
            return ''
        rates = list(each.tried)
        best = np.stack(list(each.tried.values()))[:, tuning].mean(-1).argmin(0)
        of_rate = np.stack(
            [each.of('error', k) if k in each.runs else np.full(len(plan.SEEDS), np.nan) for k in rates]
        )
        errors.append(of_rate[best[:, None], fresh].mean(1))
        known &= ~np.isnan(errors[-1])
    drawn = (errors[1] - errors[0])[known]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return f'[{low:+.2f}, {high:+.2f}]'
