"""The runs that a table needs, their names, and the learning rate and other settings chosen for each cell.

A table is data: the configuration from a file in configs/tables, or the sweep.json written by a sweep.
"""

import copy
import itertools
import math
import statistics
from collections.abc import Mapping
from typing import Any

import ml_collections

from def_jax.baselines.methods import METHODS, trajectory
from def_jax.checks import look_up
from def_jax.trainer.configuration import arguments
from def_jax.trainer.measure import Measure
from paper.finished_runs import Results, figure

__all__ = [
    'Run',
    'all_runs',
    'candidates',
    'cell_choice',
    'cell_point',
    'check_table',
    'final_runs',
    'missing_runs',
    'run_name',
    'shard',
    'tuning_runs',
]

Run = dict[str, Any]  # overrides of the base configuration

_TABLE = ('title', 'rows', 'base', 'cells', 'learning_rates', 'seeds', 'tuning_seeds')
_BASE = ('model', 'dataset', 'num_workers', 'batch_size', 'num_epochs', 'learning_rate')
_HINT = (
    'Use a file like configs/tables/table1.py or the sweep.json of a sweep; for a single configuration, '
    'use train.py.'
)
_CELL = ('row', 'column', 'paper', 'settings')


def check_table(table: Any, source: str) -> None:
    """Raises ValueError unless `table` has the form of a table.

    Args:
        table: the contents of a file in configs/tables or of a sweep.json.
        source: the origin that errors name.
    """
    try:
        _check_keys(table, _TABLE, source)
        _check_keys(table['base'], _BASE, f'base in {source}')
        [
            *table['seeds'],
            *table['learning_rates'],
            *table['tuning_seeds'],
        ]  # a TypeError where one is no list
        for cell in table['cells']:
            _check_keys(cell, _CELL, f'a cell in {source}')
            _check_keys(cell['settings'], ('method',), f'settings of a cell in {source}')
            look_up('method', cell['settings']['method'], METHODS)
            hash((cell['row'], cell['column']))  # a TypeError where one is a list
            cell_point(cell).removesuffix('')  # an AttributeError where it is not text
    except (AttributeError, TypeError) as error:  # not a mapping or list where one is required
        raise ValueError(f'{source} is not a table ({error}). {_HINT}') from error


def _check_keys(content: Any, keys: tuple[str, ...], source: str) -> None:
    there = set(content.keys())
    if missing := [key for key in keys if key not in there]:
        raise ValueError(f'{source} is not a table: it has no {", ".join(missing)}. {_HINT}')


def run_name(run: Run) -> str:
    """The name of a run's folder; after the colon of the base configuration's file, it selects the same run.

    >>> run_name({'method': 'def', 'ratio': 64, 'learning_rate': 0.1, 'seed': 0})
    'method=def,ratio=64,learning_rate=0.1,seed=0'
    """
    return ','.join(f'{key}={value}' for key, value in run.items())


def candidates(spec: Mapping[str, Any], cell: Mapping[str, Any]) -> list[tuple[Run, list[Run]]]:
    """What is tried for a cell: settings, and a run of them for each of the tuning seeds.

    The settings are the table's learning rates, and what the cell's `tuned` adds or replaces: every
    combination. The table's `tuning` holds what these runs do differently, e.g. evaluate on validation data.
    """
    tuning = dict(sorted(spec.get('tuning', {}).items()))
    grid = {'learning_rate': spec['learning_rates'], **cell.get('tuned', {})}
    tried = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    seeds = spec['tuning_seeds']
    return [(settings, [_run(cell, settings, seed) | tuning for seed in seeds]) for settings in tried]


def tuning_runs(spec: Mapping[str, Any], cell: Mapping[str, Any]) -> list[Run]:
    """The runs of all candidates of a cell."""
    return [run for _, runs in candidates(spec, cell) for run in runs]


def cell_choice(spec: Mapping[str, Any], cell: Mapping[str, Any], results: Results) -> Run | None:
    """The learning rate and the tuned settings of a cell, or None while runs that select them are missing.

    Args:
        spec: the table, see `configs/tables/tables.py`.
        cell: one of its cells.
        results: the results of finished runs, by name.

    Returns:
        The candidate with the best headline metric at the cell's point, on average over the tuning seeds;
        ties are broken by the smallest training loss. Those with a run that diverged rank last.
    """
    tried = candidates(spec, cell)
    if not tried:
        return {'learning_rate': cell['settings'].get('learning_rate', spec['base']['learning_rate'])}
    if any(run_name(run) not in results for _, runs in tried for run in runs):
        return None
    point = cell_point(cell)

    def merit(candidate: tuple[Run, list[Run]]) -> tuple[float, float]:
        settings, runs = candidate
        done = [results[run_name(run)] for run in runs]
        if any(result['status'] != 'finished' for result in done):
            return -math.inf, -settings['learning_rate']
        merits = [Measure.of(result).merit(figure(result, point)) for result in done]
        return statistics.mean(merits), -statistics.mean(result['metrics']['train_loss'] for result in done)

    return max(tried, key=merit)[0]


def cell_point(cell: Mapping[str, Any]) -> str:
    """The point where a cell measures the metric: the one it names, or its method's answer."""
    return cell.get('point') or METHODS[cell['settings']['method']].answer


def final_runs(spec: Mapping[str, Any], cell: Mapping[str, Any], results: Results) -> list[Run]:
    """The runs that a cell averages, one per seed; none until its settings are known."""
    choice = cell_choice(spec, cell, results)
    return [] if choice is None else [_run(cell, choice, seed) for seed in spec['seeds']]


def all_runs(spec: Mapping[str, Any], done: Results) -> dict[str, Run]:
    """The runs known to be needed for a table, by name.

    Those that select settings come first; then one seed after another, so that a sweep which is interrupted
    leaves whole tables of fewer seeds.
    """
    cells = spec['cells']
    runs = [run for cell in cells for run in tuning_runs(spec, cell)]
    known = [final for cell in cells if (final := final_runs(spec, cell, done))]
    runs += [run for of_a_seed in zip(*known, strict=True) for run in of_a_seed]
    return {run_name(run): run for run in runs}


def missing_runs(spec: Mapping[str, Any], done: Results) -> dict[str, Run]:
    """The runs that are needed but not done, by name, in the order of `all_runs`."""
    return {name: run for name, run in all_runs(spec, done).items() if name not in done}


def shard(spec: ml_collections.ConfigDict, part: str) -> ml_collections.ConfigDict:
    """A part of a table: some of its cells, with all of their runs.

    Cells that share runs, such as DEF and DEF-A, are in the same part.

    Args:
        spec: the table.
        part: 'I/N' for part I of N, from 1.

    Returns:
        The table with the cells of that part.

    Raises:
        ValueError: if `part` has another form, or the table cannot be divided into so many parts.
    """
    index, _, count = part.partition('/')
    if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise ValueError(f'--shard={part} must be I/N with I from 1 to N, e.g. 2/3.')
    groups: dict[str, list[Any]] = {}
    for cell in spec.cells:
        groups.setdefault(run_name(_settings(cell)), []).append(cell)
    if int(count) > len(groups):
        raise ValueError(f'--shard={part}: this table can be divided into at most {len(groups)} parts.')
    spec = copy.deepcopy(spec).unlock()  # its references keep their types
    spec.cells = tuple(
        cell for group in list(groups.values())[int(index) - 1 :: int(count)] for cell in group
    )
    return arguments.lock(spec)


def _run(cell: Mapping[str, Any], choice: Run, seed: int) -> Run:
    return _settings(cell) | choice | {'seed': seed}


def _settings(cell: Mapping[str, Any]) -> Run:
    """What the runs of a cell change in the base configuration; cells with equal ones share their runs."""
    settings = dict(cell['settings'])
    return settings | {'method': trajectory(settings['method'], settings.get('average_every', 0))}
