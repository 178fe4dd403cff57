"""Table cells: mean and standard deviation of the headline metric over seeds, and the paper's number."""

import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from def_jax.baselines.methods import METHODS
from def_jax.trainer.console import point_name
from def_jax.trainer.data.catalogue import DATASETS
from def_jax.trainer.measure import Measure
from paper import needed_runs
from paper.finished_runs import Results, figure
from paper.statistics import mean_std

__all__ = ['Cell', 'diverged', 'of_settings', 'of_table']

# A run whose final training loss exceeds this fraction of the loss of guessing learned nothing.
_GUESSING = 0.95


class Cell(NamedTuple):
    """One cell of a table, with the results of its runs."""

    row: str
    column: str
    method: str  # title of the method whose answer is this point, if any; else empty
    point: str  # where the metric is measured
    paper: str
    learning_rate: float | None  # None while it is being chosen
    results: list[dict[str, Any]]  # of the finished seeds
    figures: list[float]  # headline metrics, in the unit of tables, of the seeds that did not diverge
    num_seeds: int  # requested

    @property
    def measure(self) -> Measure:
        """What its figures are; test accuracy while no run is done."""
        return Measure.of(self.results[0] if self.results else {})

    @property
    def diverged(self) -> int:
        return len(self.results) - len(self.figures)

    @property
    def by_seed(self) -> dict[int, float]:
        """The figures by seed."""
        done = [result['config']['seed'] for result in self.results if not diverged(result)]
        return dict(zip(done, self.figures, strict=True))

    def shares_runs(self, other: 'Cell') -> bool:
        """Whether both cells are points of the same runs."""
        return [result['config'] for result in self.results] == [r['config'] for r in other.results]

    def at(self, point: str) -> 'Cell':
        """The same runs at another point that they were evaluated at."""
        done = [result for result in self.results if not diverged(result)]
        return self._replace(point=point, figures=[figure(result, point) for result in done])

    @property
    def train_loss(self) -> list[float]:
        """The last epoch's training loss of each seed that has one."""
        return self._known('train_loss')

    @property
    def point_loss(self) -> list[float]:
        """The loss on training examples at the cell's point, of each seed that evaluated it."""
        return self._known(f'train_loss_{self.point}')

    def _known(self, metric: str) -> list[float]:
        values = [result['metrics'].get(metric) for result in self.results]
        return [value for value in values if value is not None]

    @property
    def averaged(self) -> bool:
        """Whether there is a mean to compare: at least one seed is done, and none diverged."""
        return bool(self.figures) and not self.diverged

    @property
    def mean(self) -> float:
        return float(np.mean(self.figures))

    @property
    def std(self) -> float:
        """The sample standard deviation over seeds; 0 for a single seed."""
        return float(np.std(self.figures, ddof=1)) if len(self.figures) > 1 else 0.0

    @property
    def text(self) -> str:
        """Mean ± sample standard deviation, 'diverges', or '–' if no run is done."""
        if not self.results:
            return '–'
        if self.diverged:
            count = '' if self.diverged == len(self.results) else f' ({self.diverged} of {len(self.results)})'
            return 'diverges' + count
        missing = f' ({len(self.results)} of {self.num_seeds})' if len(self.results) < self.num_seeds else ''
        return mean_std(self.figures, self.measure.digits) + missing


def of_table(table: Mapping[str, Any], found: Results) -> list[Cell]:
    """The cells of a table, in order.

    Args:
        table: see `configs/tables/tables.py`.
        found: the results of finished runs, by name.

    Raises:
        ValueError: if no run of the table is done.
    """
    cells = []
    for cell in table['cells']:
        runs = [needed_runs.run_name(run) for run in needed_runs.final_runs(table, cell, found)]
        done = [found[name] for name in runs if name in found]
        point = needed_runs.cell_point(cell)
        cells.append(
            Cell(
                row=cell['row'],
                column=cell['column'],
                method=_answer(cell['settings'], point),
                point=point,
                paper=cell['paper'],
                learning_rate=(needed_runs.cell_choice(table, cell, found) or {}).get('learning_rate'),
                results=done,
                figures=[figure(result, point) for result in done if not diverged(result)],
                num_seeds=len(table['seeds']),
            )
        )
    if not any(cell.results for cell in cells):
        raise ValueError('no run of the table is done. Run python -m paper.sweep --config=… --workdir=…')
    return cells


def of_settings(found: Results) -> list[Cell]:
    """Cells of runs that belong to no table: one row per setting, one column per point.

    Runs that differ only in the seed share a cell. Only runs with a non-finite loss count as diverged.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for result in sorted(found.values(), key=_place):
        setting = {key: value for key, value in result['config'].items() if key not in ('seed', 'data_dir')}
        groups.setdefault(json.dumps(setting, sort_keys=True), []).append(result)
    return [
        Cell(
            row=runs[0]['title'],
            column=point_name(point, runs[0]['answers']),
            method=runs[0]['answers'].get(point, ''),
            point=point,
            paper='',
            learning_rate=runs[0]['config']['learning_rate'],
            results=runs,
            figures=[figure(run, point) for run in runs if run['status'] == 'finished'],
            num_seeds=len(runs),
        )
        for runs in groups.values()
        for point in runs[0]['points']
    ]


def _place(result: Mapping[str, Any]) -> tuple:
    config = result['config']
    return config['method'], config['ratio'], config['seed']


def diverged(result: Mapping[str, Any]) -> bool:
    """Whether a run's loss became NaN or infinite, or stayed close to that of guessing."""
    if result['status'] != 'finished':
        return True
    if 'guessing_loss' in result:
        guessing = result['guessing_loss']
    else:  # written before there were tasks other than classification
        guessing = math.log(DATASETS[result['config']['dataset']].num_classes)
    return guessing is not None and result['metrics']['train_loss'] > _GUESSING * guessing


def _answer(settings: Mapping[str, Any], point: str) -> str:
    answers = METHODS[settings['method']].answers(settings.get('average_every', 0))
    return answers.get(point.removesuffix('_running'), '')  # type: ignore[call-overload]
