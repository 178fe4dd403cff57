"""The finished cells of the map: a method at a width, tuned, and its runs with fresh seeds."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks import grid, records
from benchmarks.map import plan
from benchmarks.map.plan import Key
from paper.statistics import Difference, seed_difference

__all__ = ['DRAWS', 'Cell', 'Cells', 'differences', 'gap', 'read']

DRAWS = 4000  # of a bootstrap


class Cell(NamedTuple):
    """A method at a width, by k: losses and errors on held-out images, and its runs with fresh seeds."""

    key: Key
    tried: grid.Tried
    held_out: grid.Tried
    runs: dict[int, list[records.Record]]
    point: str  # at which it is evaluated

    @property
    def name(self) -> str:
        title, bytes_of = self.key.title, self.key.bytes_of
        return title if bytes_of == 1 else f'{title}, {bytes_of:g}'

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
        return self.key.steps / self.key.bytes_of * (4 if 'int8' in self.key.title else 1)

    def of(self, name: str, k: int | None = None) -> np.ndarray:
        """A metric of the fresh seeds."""
        return np.array([run[name][self.point] for run in self.runs[self.k if k is None else k]], float)

    def over_rates(self, name: str) -> np.ndarray:
        """The same, over the rates that have runs, by how often other tuning seeds would choose each."""
        shares = grid.shares(self.tried)
        weights = [shares.get(k, 0) for k in self.runs]
        return np.average([self.of(name, k) for k in self.runs], axis=0, weights=weights)


Cells = dict[Key, Cell]


def read(path: Path, point: str = 'y') -> Cells:
    """The finished cells, each with its own rate for the point."""
    tuned: dict[Key, dict[int, dict[int, records.Record]]] = {}
    runs: dict[Key, dict[int, dict[int, records.Record]]] = {}
    for record in records.read(path):
        of_key = (tuned if record['tuning'] else runs).setdefault(Key.of_record(record), {})
        of_key.setdefault(record['k'], {})[record['seed']] = record
    found: Cells = {}
    for key, of_key in tuned.items():
        of_key = {k: of for k, of in of_key.items() if of.keys() >= set(plan.TUNING_SEEDS)}
        at = 'x' if key.title.startswith('SGD') else point
        tried, held_out = (
            {
                k: np.nan_to_num(np.array([of[s][name][at] for s in sorted(of)], float), nan=np.inf)
                for k, of in of_key.items()
            }
            for name in (key.criterion, 'error')
        )
        of_key = runs.get(key, {})
        fresh = {k: [of[s] for s in plan.SEEDS] for k, of in of_key.items() if of.keys() >= set(plan.SEEDS)}
        cell = Cell(key, tried, held_out, fresh, at)
        if tried and grid.inside(tried) and cell.k in fresh:
            found[key] = cell
    return found


def gap(cell: Cell, other: Cell, name: str = 'error') -> Difference:
    """The difference in accuracy to another cell, such as SGD's, in points, paired by seed."""
    found = seed_difference(-cell.of(name), -other.of(name))
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
