"""The map's convolutional network: runs of `configs/tables/map.py:short` and `:images`, beside the page."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from benchmarks import records
from configs.tables.map import STEPS
from paper.statistics import mean_std, seed_difference

__all__ = ['rows']

METHODS = ('SGD', 'DEF (paper), 64', 'DEF, ours, int8, 64')
ALL = 50_000  # images that a run trains on, unless its name says otherwise
LENGTHS = (STEPS // 4, STEPS)  # of :short and :images; a rate is chosen after a quarter of them


class _Cell(NamedTuple):
    """Held-out errors by rate; of the final runs, the rate and the errors by seed."""

    tried: dict[float, float]
    rates: set[float]
    test: dict[int, float]
    train: dict[int, float]


def rows(path: Path) -> Iterator[dict[str, str]]:
    """For each method, its rates on held-out images, errors at its output, and differences from SGD."""
    cells = _cells(path)
    for images, steps, method in sorted(cells, key=lambda key: (*key[:2], METHODS.index(key[2]))):
        cell, sgd = cells[images, steps, method], cells[images, steps, 'SGD']
        tried = {rate: f'{rate:g}: {error:.2f}' for rate, error in sorted(cell.tried.items())}
        yield {
            'images': f'{images:,}',
            'steps': f'{steps:,}',
            'method': method,
            'held-out error by rate, %': ', '.join(
                f'**{text}**' if rate in cell.rates else text for rate, text in tried.items()
            ),
            'test error, %': mean_std(list(cell.test.values()), 2),
            'training error, %': mean_std(list(cell.train.values()), 2),
            'minus SGD, points': '' if cell is sgd else _gap(sgd.test, cell.test),
            'minus SGD, in training': '' if cell is sgd else _gap(sgd.train, cell.train),
        }


def _gap(of_sgd: dict[int, float], errors: dict[int, float]) -> str:
    """The difference in accuracy."""
    difference = seed_difference(of_sgd, errors)
    return difference.text() if difference else ''


def _cells(path: Path) -> dict[tuple[int, int, str], _Cell]:
    """By the numbers of images and of steps, and the method."""
    cells: dict[tuple[int, int, str], _Cell] = {}
    quarters = {steps // 4: steps for steps in LENGTHS}
    for run in records.read(path):
        settings = dict(item.split('=') for item in run['run'].split(','))
        method = METHODS[('wire_dtype' in settings) + (settings['method'] == 'def')]
        tuning, steps = 'evaluate_on' in settings, run['config']['num_steps']
        key = int(settings.get('train_examples', ALL)), quarters[steps] if tuning else steps, method
        cell = cells.setdefault(key, _Cell({}, set(), {}, {}))
        point = 'x' if method == 'SGD' else 'y'
        errors = {
            split: 100 * (1 - run['metrics'][key])
            for split in ('validation', 'test', 'train')
            if (key := f'{split}_accuracy_{point}') in run['metrics']
        }
        rate, seed = float(settings['learning_rate']), int(settings['seed'])
        if tuning:
            cell.tried[rate] = errors['validation']
        else:
            cell.rates.add(rate)
            cell.test[seed], cell.train[seed] = errors['test'], errors['train']
    return cells
