"""What the map asks besides the width: where λ helps, what each change buys, delay, workers, longer runs."""

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from benchmarks import pages
from benchmarks.league.contenders import Contender
from benchmarks.map import plan
from benchmarks.map.cells import Cells, differences, gap, read
from benchmarks.map.plan import Key
from def_jax.options import PAPER_DETACH
from paper.statistics import mean_std

__all__ = ['sections']

Row = dict[str, str]


def sections(path: Path) -> dict[str, str]:
    """Tables by the name of their section."""
    by_point = {point: read(path, point) for point in ('x', 'y', 'own')}
    cells = by_point['y']
    changed = [*plan.changes(64), plan.ours(64), plan.ours_int8(64)]
    delayed = [(ratio, *pair) for ratio in (16, 64) for pair in plan.in_flight(ratio)]
    return {
        'changes': _contrasts(cells, {s.title: (s, plan.paper(64)) for s in changed}),
        'overlap': _contrasts(cells, {f'{s.title}, {ratio}': (later, s) for ratio, s, later in delayed}),
        'outputs': pages.table(_outputs(by_point)),
        'workers': pages.table(_workers(cells)),
        'longer': pages.table(_longer(cells)),
        'images': pages.table(_images(cells), sparse=True),
    }


def _gap(cells: Cells, ours: Key, theirs: Key) -> str:
    """The difference of two cells; empty unless both are finished, and for one and the same."""
    return (
        '' if ours == theirs or not {ours, theirs} <= set(cells) else gap(cells[ours], cells[theirs]).text()
    )


def _contrasts(cells: Cells, pairs: Mapping[str, tuple[Contender, Contender]]) -> str:
    """Differences of two settings in points, by width."""
    widths = sorted({key.width for key in cells})
    rows = {
        name: {f'width {w}': _gap(cells, Key.of(ours, w), Key.of(theirs, w)) for w in widths}
        for name, (ours, theirs) in pairs.items()
    }
    found = ({'': name} | gaps for name, gaps in rows.items() if any(gaps.values()))
    return pages.table(found, sparse=True)


def _outputs(by_point: Mapping[str, Cells]) -> Iterator[Row]:
    """DEF minus SGD by λ, at x, y and the workers' own models, each at its own best rate."""
    for width, setting in itertools.product(*plan.PARTS['outputs'][:2]):
        key = Key.of(setting, width)
        if not all(key in cells for cells in by_point.values()):
            continue
        x, y, own = found = [cells[key] for cells in by_point.values()]
        sgd = by_point['y'][key.sgd]
        yield {
            'width': str(width),
            'ratio': f'{setting.ratio:g}',
            'λ': str(setting.options.get('detach', PAPER_DETACH)),
            **{point: gap(cell, sgd).text() for point, cell in zip(by_point, found, strict=True)},
            'y − x': gap(y, x).text(),
            'own − y': gap(own, y).text(),
        }


def _workers(cells: Cells) -> Iterator[Row]:
    """DEF minus SGD by the number of workers who share a batch of 64 images."""
    (width,), settings, *_, others = plan.PARTS['workers']
    for count in sorted({plan.WORKERS, *(other['workers'] for other in others)}):
        keys = {s.title: Key.of(s, width, workers=count) for s in settings}
        gaps = {f'{title}, 64': _gap(cells, key, key.sgd) for title, key in keys.items()}
        yield {'workers × images': f'{count} × {64 // count}'} | gaps


def _longer(cells: Cells) -> Iterator[Row]:
    """Each setting minus SGD by the number of steps; of the longer runs also rates and training errors."""
    planned = (cell for part in plan.PARTS if part.startswith('longer') for cell in plan.cells(part))
    for key in dict.fromkeys(cell.key for cell in planned):
        if key not in cells:
            continue
        cell, usual = cells[key], key._replace(steps=plan.STEPS)
        gap_of_longer, with_choice, held_out = differences(cell, cells[key.sgd])
        yield {
            '': cell.name,
            f'{plan.STEPS:,} steps': _gap(cells, usual, usual.sgd),
            f'{key.steps:,} steps': gap_of_longer,
            'with the choice of the rate': with_choice,
            'on held-out images': held_out,
            'rate': f'{plan.RATES.rate(cell.k):.3g}',
            'share of the choice': cell.share,
            # Zero to rounding has a sign.
            'training error, %': mean_std(np.abs(cell.of('train_error')), 3),
        }


def _images(cells: Cells) -> Iterator[Row]:
    """Methods minus SGD by the number of CIFAR-10 images to train on, in test and in training."""
    for key in sorted((cell.key for cell in plan.cells('images')), key=lambda key: key.images):
        if not {key, key.sgd} <= set(cells):
            continue
        cell, sgd = cells[key], cells[key.sgd]
        minus_sgd, _, held_out = differences(cell, sgd)
        training = '' if cell is sgd else gap(cell, sgd, 'train_error').text()
        yield {
            'images': f'{key.images:,}',
            'method': cell.name,
            'rate': f'{plan.RATES.rate(cell.k):.3g}',
            'share of the choice': cell.share,
            'test error, %': mean_std(cell.of('error'), 2),
            'training error, %': mean_std(np.abs(cell.of('train_error')), 2),
            'minus SGD, points': minus_sgd,
            'minus SGD, in training': training,
            'on held-out images': held_out,
        }
