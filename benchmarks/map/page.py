"""The page and the picture of the map, from its runs."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import matplotlib.colors
import numpy as np
from scipy import stats

from benchmarks import pages
from benchmarks.map import convolutional, plan, questions
from benchmarks.map.cells import DRAWS, Cell, differences, gap, read
from benchmarks.map.plan import Key
from def_jax.tools import pictures
from paper.statistics import mean_std

__all__ = ['law', 'tables', 'widths', 'write']

MARKERS = {'DEF (paper)': 'o', 'λ = 1': 'v', 'DEF, ours': 's', 'DEF, ours, int8': '*'}
Method = tuple[str, float]  # title and ratio
ByWidth = dict[int, dict[Method, Cell]]
SGD: Method = ('SGD', 1)
METHODS: list[Method] = [(title, ratio) for ratio in (16, 64, 256) for title in MARKERS]


def widths(path: Path) -> ByWidth:
    """The finished cells of widths at which SGD is finished, and something to compare with it."""
    found: ByWidth = {}
    for key, cell in sorted(read(path).items(), key=lambda item: item[0].width):
        if key == Key(*key[:3]):  # as usual in all else
            found.setdefault(key.width, {})[key.title, key.bytes_of] = cell
    return {width: of for width, of in found.items() if SGD in of and len(of) > 1}


def _compressed(cells: ByWidth) -> Iterator[tuple[Method, Cell, Cell]]:
    """Method, cell and SGD's of what is drawn and fitted, width by width."""
    for of_width in cells.values():
        yield from ((method, of_width[method], of_width[SGD]) for method in METHODS if method in of_width)


class Law(NamedTuple):
    """The test gap as a multiple of the training gap, and as a power of SGD's training error."""

    slope: float
    low: float
    high: float
    correlation: float
    count: int
    powers: dict[Method, 'Power']


class Power(NamedTuple):
    """A gap as a power of SGD's training error: the exponent with its interval, and the gap by width."""

    exponent: float
    low: float
    high: float
    gaps: dict[int, float]


def law(cells: ByWidth) -> Law:
    """Fitted through the origin over all compressed cells; the interval draws the fresh seeds again."""
    rng, pairs = np.random.default_rng(0), []
    for _, cell, sgd in _compressed(cells):
        pairs.append([sgd.of(name) - cell.of(name) for name in ('error', 'train_error')])
    drawn = rng.integers(0, len(plan.SEEDS), (DRAWS, len(plan.SEEDS)))
    test, train = np.moveaxis(np.array(pairs), 1, 0)  # [cells, seeds]
    slopes = [_slope(test[:, seeds].mean(1), train[:, seeds].mean(1)) for seeds in drawn]
    low, high = np.quantile(slopes, [0.025, 0.975])
    both = test.mean(1), train.mean(1)
    return Law(
        _slope(*both), float(low), float(high), float(np.corrcoef(*both)[0, 1]), len(pairs), _powers(cells)
    )


def _powers(cells: ByWidth) -> dict[Method, Power]:
    """Of methods that are behind at four widths or more: the exponent of their gap, a line in logarithms.

    Gaps and errors are means over the rates, by how often each would be chosen: a single choice moves a gap
    by more than its law. The interval is Student's, from the scatter of the widths about the line.
    """
    found = {}
    for method in METHODS:
        pairs = [(sgd, cell) for each, cell, sgd in _compressed(cells) if each == method]
        gaps = {c.key.width: float(np.mean(c.over_rates('error') - s.over_rates('error'))) for s, c in pairs}
        if len(gaps) < 4 or min(gaps.values()) <= 0:
            continue
        errors = [sgd.over_rates('train_error').mean() for sgd, _ in pairs]
        line = stats.linregress(np.log(errors), np.log(list(gaps.values())))
        half = stats.t.ppf(0.975, len(gaps) - 2) * line.stderr
        found[method] = Power(line.slope, line.slope - half, line.slope + half, gaps)
    return found


def _slope(test: np.ndarray, train: np.ndarray) -> float:
    return float(test @ train / (train @ train))


def tables(cells: ByWidth) -> str:
    """The differences by width, the law, and every cell with its rates."""
    found = law(cells)
    columns = {width: f'{width} ({parameters(width):,})' for width in cells}

    def row(name: str, texts: Mapping[int, str]) -> dict[str, str]:
        return {'width (parameters)': name} | {columns[width]: texts.get(width, '') for width in cells}

    rows = [
        row(name, {width: f'{100 - of[SGD].of(metric).mean():.2f}' for width, of in cells.items()})
        for name, metric in (('SGD, test', 'error'), ('SGD, in training', 'train_error'))
    ]
    for title, ratio in METHODS:
        gaps = {c.key.width: gap(c, sgd).text() for m, c, sgd in _compressed(cells) if m == (title, ratio)}
        rows += [row(f'{title}, {ratio:g}', gaps)] if gaps else []
    return '\n\n'.join(
        [
            pages.table(rows),
            f'Over the {found.count} compressed cells, the gap in test accuracy is {found.slope:.2f} '
            f'[{found.low:.2f}, {found.high:.2f}] times the gap in training accuracy, r = '
            f'{found.correlation:.2f}.',
            "As a power of SGD's training error, both weighted over the rates by their share of the choice:",
            pages.table(_power(*item) for item in found.powers.items()),
            '### Every cell',
            pages.table(_line(cell, of[SGD]) for of in cells.values() for cell in of.values()),
        ]
    )


def _power(method: Method, power: Power) -> dict[str, str]:
    """A line of the table of powers."""
    return {
        'method': f'{method[0]}, {method[1]:g}',
        'exponent': f'{power.exponent:.2f} [{power.low:.2f}, {power.high:.2f}]',
        **{f'gap at {width}': f'{gap:.2f}' for width, gap in power.gaps.items()},
    }


def _line(cell: Cell, sgd: Cell) -> dict[str, str]:
    """A cell with its rates."""
    losses = {k: f'{plan.RATES.rate(k):.3g}: {cell.tried[k].mean():.3f}' for k in sorted(cell.tried)}
    minus_sgd, with_choice, held_out = differences(cell, sgd)
    return {
        'width': str(cell.key.width),
        'method': cell.name,
        'visits': '' if cell is sgd else f'{cell.visits:.3g}',
        'held-out loss by rate': ', '.join(f'**{t}**' if k == cell.k else t for k, t in losses.items()),
        'share of the choice': cell.share,
        'test error, %': mean_std(cell.of('error'), 2),
        'training error, %': mean_std(cell.of('train_error'), 2),
        'minus SGD, points': minus_sgd,
        'with the choice of the rate': with_choice,
        'on held-out images': held_out,
    }


def parameters(width: int) -> int:
    return sum(n * m + m for n, m in ((64, width), (width, width), (width, 10)))


def draw(cells: ByWidth, path: Path) -> None:
    """The gap in test accuracy against SGD's training error, and against the gap in training accuracy."""
    colors, norm = matplotlib.colormaps['viridis_r'], matplotlib.colors.LogNorm(3, 60)
    with pictures.panels(path, 1, 2) as axes:
        by_sgd, by_gap = axes[0]
        for (title, _), cell, sgd in _compressed(cells):
            low, high = gap(cell, sgd).interval()
            style = {'fmt': MARKERS[title], 'color': colors(norm(cell.visits)), 'markersize': 5, 'lw': 0.8}
            point, training = (low + high) / 2, sgd.of('train_error').mean()
            by_sgd.errorbar(training, point, (high - low) / 2, **style)
            by_gap.errorbar(training - cell.of('train_error').mean(), point, (high - low) / 2, **style)
        for panel, label in (
            (by_sgd, "SGD's training error, %"),
            (by_gap, 'DEF − SGD, training, points'),
        ):
            panel.axhline(0, color='black', linewidth=0.8)
            panel.set_xlabel(label)
        by_sgd.set_xscale('log')
        ticks = [t for t in (0.1, 0.2, 0.5, 1, 2, 5, 10) if by_sgd.get_xlim()[0] <= t <= by_sgd.get_xlim()[1]]
        by_sgd.set_xticks(ticks, labels=[f'{t:g}' for t in ticks])
        by_sgd.minorticks_off()
        by_sgd.set_ylabel('DEF − SGD, test, points')
        low, _ = by_gap.get_xlim()
        by_gap.plot([low, 0], [low * law(cells).slope, 0], '--', color='gray', linewidth=0.8, zorder=1)
        for title, marker in MARKERS.items():
            by_gap.plot([], [], marker, color='gray', label=title)
        by_gap.figure.legend(loc='outside lower center', ncol=4, fontsize=7)
        bar = by_gap.figure.colorbar(matplotlib.cm.ScalarMappable(norm, colors), ax=list(axes[0]), pad=0.01)
        bar.set_label('visits of a block')
        bar.set_ticks([3, 12.5, 50], labels=['3', '12.5', '50'])
        bar.minorticks_off()


def write(folder: Path) -> None:
    """Writes the tables of the page, and the picture."""
    path = folder / 'runs.jsonl'
    cells = widths(path)
    draw(cells, folder / 'map.png')
    sections = {'map': tables(cells)} | questions.sections(path)
    images = pages.table(convolutional.rows(folder / 'convolutional.jsonl'))
    pages.write(folder / 'README.md', sections | {'convolutional': images})
