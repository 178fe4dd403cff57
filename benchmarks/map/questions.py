"""What the map asks besides the width: where λ helps, what each change buys, delay, workers, longer runs."""

import itertools
from pathlib import Path

import numpy as np

from benchmarks.map import plan
from benchmarks.map.cells import SGD, Cells, differences, gap, read
from def_jax.beyond import PAPER_DETACH
from def_jax.tools import markdown
from paper.statistics import mean_std

__all__ = ['sections']


def sections(path: Path) -> dict[str, str]:
    """Tables by the name of their section."""
    cells = read(path)
    return {
        'changes': _changes(cells),
        'overlap': _overlap(cells),
        'outputs': _outputs(path),
        'workers': _workers(path, cells),
        'longer': _longer(path),
    }


def _changes(cells: Cells) -> str:
    """Each change of the paper's setting, minus that setting, by width."""
    settings = [*plan.changes(64), plan.ours(64), plan.ours_int8(64)]
    return _contrasts(cells, [(s.title, (s.title, 64), (plan.paper(64).title, 64)) for s in settings])


def _overlap(cells: Cells) -> str:
    """The same setting with `overlap=True`, minus without."""
    lines = [
        (f'{plain.title}, {ratio}', (later.title, ratio), (plain.title, ratio))
        for ratio in (16, 64)
        for plain, later in plan.in_flight(ratio)
    ]
    return _contrasts(cells, lines)


def _contrasts(cells: Cells, lines: list) -> str:
    """Differences of two methods in points, by width, where both are finished."""
    widths = [w for w, of in cells.items() if any(a in of and b in of for _, a, b in lines)]
    rows = [['', *(f'width {w}' for w in widths)]]
    for name, ours, theirs in lines:
        found = [(cells[w].get(ours), cells[w].get(theirs)) for w in widths]
        texts = ['' if None in pair else gap(*pair).text() for pair in found]
        if any(texts):
            rows.append([name, *texts])
    return markdown.table(rows)


def _outputs(path: Path) -> str:
    """DEF minus SGD by λ, at x, y and the workers' own models, each at its own best rate."""
    by_point = {point: read(path, point=point) for point in ('x', 'y', 'own')}
    rows = [['width', 'ratio', 'λ', *by_point, 'y − x', 'own − y']]
    for width, setting in itertools.product(*plan.PARTS['outputs'][:2]):
        found = [cells[width].get((setting.title, setting.ratio)) for cells in by_point.values()]
        if None in found:
            continue
        x, y, own = found
        gaps = [gap(cell, by_point['y'][width][SGD]).text() for cell in found]
        between = gap(y, x).text(), gap(own, y).text()
        λ = setting.options.get('detach', PAPER_DETACH)
        rows.append([str(width), f'{setting.ratio:g}', str(λ), *gaps, *between])
    return markdown.table(rows)


def _workers(path: Path, cells: Cells) -> str:
    """DEF minus SGD by the number of workers who share a batch of 64 images."""
    counts = sorted({*(other['workers'] for other in plan.PARTS['workers'][-1]), plan.WORKERS})
    of_counts = {count: read(path, workers=count) for count in counts}
    (width,), settings, *_ = plan.PARTS['workers']
    rows = [['workers × images', *(f'{s.title}, 64' for s in settings)]]
    for count, found in of_counts.items():
        of = found.get(width, {})
        keys = [(s.title, 64) for s in settings]
        texts = [gap(of[key], cells[width][SGD]).text() if key in of else '' for key in keys]
        rows.append([f'{count} × {64 // count}', *texts])
    return markdown.table(rows)


def _longer(path: Path) -> str:
    """Each setting minus SGD by the number of steps; of the longest runs also rates and training errors."""
    cells = [cell for part in plan.PARTS if part.startswith('longer') for cell in plan.cells(part)]
    counts = sorted({plan.STEPS, *(cell.steps for cell in cells)})
    *shorter, longest = (read(path, steps=count)[cells[0].width] for count in counts)
    columns = [f'{count:,} steps' for count in counts] + ['with the choice of the rate', 'on held-out images']
    rows = [['', *columns, 'rate', 'share of the choice', 'training error, %']]
    for key in dict.fromkeys((cell.contender.title, cell.bytes_of) for cell in cells):
        if key not in longest:
            continue
        cell, sgd = longest[key], longest[SGD]
        gaps = [gap(of[key], of[SGD]).text() if key in of and key != SGD else '' for of in shorter]
        error = mean_std(np.abs(cell.of('train_error')), 3)  # zero to rounding has a sign
        rate = f'{plan.RATES.rate(cell.k):.3g}'
        rows.append([cell.name, *gaps, *differences(cell, sgd), rate, cell.share, error])
    return markdown.table(rows)
