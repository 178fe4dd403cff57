"""The map's convolutional network on few images: the runs of `configs/tables/map.py:short` that were made."""

from collections.abc import Iterator
from pathlib import Path

from paper import finished_runs
from paper.statistics import mean_std, seed_difference

__all__ = ['rows']

Numbers = dict[int, float]  # by seed


def rows(folder: Path) -> Iterator[dict[str, str]]:
    """For each method, its rates on held-out images, errors at its output, and differences from SGD."""
    tried: dict[str, dict[float, float]] = {}
    errors: dict[str, tuple[float, Numbers, Numbers]] = {}
    for name, run in finished_runs.read(folder).items():
        settings = dict(item.split('=') for item in name.split(','))
        point = 'y' if settings['method'] == 'def' else 'x'
        method = (
            'SGD'
            if point == 'x'
            else 'DEF, ours, int8, 64'
            if 'wire_dtype' in settings
            else 'DEF (paper), 64'
        )
        rate, metrics = float(settings['learning_rate']), run['metrics']
        if 'evaluate_on' in settings:
            tried.setdefault(method, {})[rate] = _error(metrics, 'validation', point)
            continue
        _, test, train = errors.setdefault(method, (rate, {}, {}))
        for found, split in ((test, 'test'), (train, 'train')):
            found[int(settings['seed'])] = _error(metrics, split, point)
    for method, (rate, test, train) in errors.items():
        gaps = [
            seed_difference(of_sgd, own) for of_sgd, own in zip(errors['SGD'][1:], (test, train), strict=True)
        ]
        texts = [gap.text() if gap and method != 'SGD' else '' for gap in gaps]
        found = {r: f'{r:g}: {error:.2f}' for r, error in sorted(tried[method].items())}
        yield {
            'method': method,
            'held-out error by rate, %': ', '.join(f'**{t}**' if r == rate else t for r, t in found.items()),
            'test error, %': mean_std(list(test.values()), 2),
            'training error, %': mean_std(list(train.values()), 2),
            'minus SGD, points': texts[0],
            'minus SGD, in training': texts[1],
        }


def _error(metrics: dict[str, float], split: str, point: str) -> float:
    return 100 * (1 - metrics[f'{split}_accuracy_{point}'])
