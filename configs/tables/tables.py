"""The form of a table: a base configuration, and cells that say what each run changes in it.

    python -m def_jax.experiments.sweep  --config=configs/tables/table1.py        --workdir=runs/table1
    python -m def_jax.experiments.sweep  --config=configs/tables/table1.py:digits --workdir=runs/table1_digits
    python -m def_jax.experiments.report --workdir=runs/table1_digits

The name after the colon picks a smaller variant. Keys of the base configuration are set like
--config.base.num_epochs=300, those of the table like --config.seeds='(0,1,2,3,4)'.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import ml_collections
from absl import flags

from configs import digits

COMPRESSED = {'ef': 'EF', 'saef': 'SAEF', 'psync': 'PSync', 'def': 'DEF', 'def_a': 'DEF-A'}
RATES = (0.1, 0.05, 0.01)  # those that the paper names


def digits_base() -> ml_collections.ConfigDict:
    """scikit-learn's digits with all 16 workers on one device, the fastest on few CPU cores."""
    base = digits.get_config()
    base.workers_per_device = base.num_workers
    return base


def cell(row: Any, column: str, paper: str = '', point: str = '', **settings: Any) -> dict[str, Any]:
    """One number of a table.

    Args:
        row: its row's heading.
        column: its column's heading.
        paper: what the paper has there; empty for nothing.
        point: where the test accuracy is taken: 'x', 'y', 'own', or, in runs that recalibrate BatchNorm's
            statistics, one of these followed by '_running' for the running ones. Empty: the method's.
        **settings: what its run changes in the base configuration.

    Returns:
        The cell.
    """
    return {'row': str(row), 'column': column, 'paper': paper, 'point': point, 'settings': settings}


def table(
    title: str,
    base: ml_collections.ConfigDict,
    cells: Iterable[Mapping[str, Any]],
    *,
    rows: str,
    learning_rates: tuple[float, ...] = (),
    seeds: tuple[int, ...] = (0, 1, 2),
    tuning_seed: int = 100,
) -> ml_collections.ConfigDict:
    """The complete, locked description of a table.

    Args:
        title: what the table shows.
        base: the training configuration that the cells change.
        cells: see `cell`.
        rows: what distinguishes the rows, e.g. 'ratio'.
        learning_rates: tried for each cell, which keeps the one with the best test accuracy at its point
            (on equal accuracy, the smallest training loss). Empty: each cell uses its own or the base's.
        seeds: of the runs that are averaged.
        tuning_seed: of the runs that choose the learning rate, none of `seeds`.

    Returns:
        The description.
    """
    return ml_collections.ConfigDict(
        {
            'title': title,
            'rows': rows,
            'base': base,
            'cells': tuple(dict(c) for c in cells),
            'learning_rates': learning_rates,
            'seeds': seeds,
            'tuning_seed': tuning_seed,
        }
    ).lock()


def by_ratio(sgd: str, paper: Mapping[int, Sequence[str]]) -> list[dict[str, Any]]:
    """The cells of a table of methods by ratio, SGD in a row of its own.

    Args:
        sgd: the paper's number for SGD.
        paper: for each ratio the paper's numbers, one for each of `COMPRESSED`.

    Returns:
        The cells.
    """
    cells = [cell(1, 'SGD', sgd, method='sgd', ratio=1)]
    for ratio, numbers in paper.items():
        for (method, title), number in zip(COMPRESSED.items(), numbers, strict=True):
            cells.append(cell(ratio, title, number, method=method, ratio=ratio))
    return cells


def selected(
    spec: ml_collections.ConfigDict, title: str, keep: Callable[[Mapping[str, Any]], bool]
) -> ml_collections.ConfigDict:
    """A table's description with another title and only the cells that `keep` accepts."""
    spec = spec.unlock()
    spec.title, spec.cells = title, tuple(c for c in spec.cells if keep(c))
    return spec.lock()


def variant(arg: str | None, *names: str) -> str:
    """The variant named after the colon, '' for none; a flag error unless it is one of `names`."""
    if arg and arg not in names:
        raise flags.IllegalFlagValueError(f'{arg!r} is not a variant; there are {", ".join(names)}.')
    return arg or ''
