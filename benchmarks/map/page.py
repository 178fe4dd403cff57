"""The page and the picture of the map, from its runs."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.colors
import numpy as np

from benchmarks import grid, pages, records
from benchmarks.league.perceptron import STEPS
from benchmarks.map import plan
from def_jax.tools import markdown, pictures
from paper.statistics import Difference, mean_std, seed_difference

__all__ = ['Cell', 'law', 'read', 'tables', 'write']

SGD = 'SGD', 1
MARKERS = {'DEF (paper)': 'o', 'λ = 1': 'v', 'DEF, ours': 's', 'DEF, ours, int8': '*'}
METHODS = [(title, ratio) for ratio in (16, 64, 256) for title in MARKERS]
DRAWS = 4000  # of a bootstrap


class Cell(NamedTuple):
    """A method at a width, with its losses on held-out images and its runs with fresh seeds, by k."""

    width: int
    title: str
    bytes_of: float
    tried: dict[int, np.ndarray]
    runs: dict[int, list[dict[str, Any]]]

    @property
    def k(self) -> int:
        return grid.chosen(self.tried)

    @property
    def visits(self) -> float:
        """How often a block is sent in a run; in int8, blocks are four times as large."""
        return STEPS / self.bytes_of * (4 if 'int8' in self.title else 1)

    def of(self, name: str, k: int | None = None) -> np.ndarray:
        """A metric of the fresh seeds at the method's answer: y, and SGD's x."""
        point = 'x' if self.title == SGD[0] else 'y'
        return np.array([run[name][point] for run in self.runs[self.k if k is None else k]], float)


def read(path: Path) -> dict[int, dict[tuple[str, float], Cell]]:
    """The finished cells, by width and method, where SGD's is finished."""
    tried: dict[tuple, dict[int, dict[int, float]]] = {}
    runs: dict[tuple, dict[int, dict[int, Any]]] = {}
    for record in records.read(path):
        if 'workers' in record:  # than the league's, a question of its own
            continue
        key, k, seed = (record['width'], record['title'], record['bytes_of']), record['k'], record['seed']
        if record['tuning']:
            point = 'y' if 'y' in record['loss'] else 'x'
            loss = record['loss'][point]
            tried.setdefault(key, {}).setdefault(k, {})[seed] = np.inf if loss is None else loss
        else:
            runs.setdefault(key, {}).setdefault(k, {})[seed] = record
    found: dict[int, dict[tuple[str, float], Cell]] = {}
    for key, losses in tried.items():
        whole = {
            k: np.array([of[s] for s in sorted(of)]) for k, of in losses.items() if _whole(of, tuning=True)
        }
        fresh = {
            k: [of[s] for s in plan.SEEDS] for k, of in runs.get(key, {}).items() if _whole(of, tuning=False)
        }
        cell = Cell(*key, whole, fresh)
        if len(whole) == len(losses) and min(whole) < cell.k < max(whole) and cell.k in fresh:
            found.setdefault(cell.width, {})[cell.title, cell.bytes_of] = cell
    return {w: found[w] for w in sorted(found) if SGD in found[w] and len(found[w]) > 1}


def _whole(by_seed: dict[int, Any], *, tuning: bool) -> bool:
    return set(by_seed) >= set(plan.TUNING_SEEDS if tuning else plan.SEEDS)


def gap(cell: Cell, sgd: Cell) -> Difference:
    """The difference in test accuracy to SGD, in points, paired by seed."""
    found = seed_difference(-cell.of('error'), -sgd.of('error'))
    assert found is not None, 'every cell has the seeds of the plan'
    return found


def with_choice(cell: Cell, sgd: Cell) -> str:
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


class Law(NamedTuple):
    """The test gap as a multiple of the training gap."""

    slope: float
    low: float
    high: float
    correlation: float
    count: int


def law(cells: dict[int, dict[tuple[str, float], Cell]]) -> Law:
    """Fitted through the origin over all compressed cells; the interval draws the fresh seeds again."""
    rng, pairs = np.random.default_rng(0), []
    for of_width in cells.values():
        sgd = of_width[SGD]
        for method in METHODS:
            if cell := of_width.get(method):
                pairs.append([sgd.of(name) - cell.of(name) for name in ('error', 'train_error')])
    drawn = rng.integers(0, len(plan.SEEDS), (DRAWS, len(plan.SEEDS)))
    test, train = np.moveaxis(np.array(pairs), 1, 0)  # [cells, seeds]
    slopes = [_slope(test[:, seeds].mean(1), train[:, seeds].mean(1)) for seeds in drawn]
    low, high = np.quantile(slopes, [0.025, 0.975])
    both = test.mean(1), train.mean(1)
    return Law(_slope(*both), float(low), float(high), float(np.corrcoef(*both)[0, 1]), len(pairs))


def _slope(test: np.ndarray, train: np.ndarray) -> float:
    return float(test @ train / (train @ train))


def tables(cells: dict[int, dict[tuple[str, float], Cell]]) -> str:
    """The differences by width, the law, and every cell with its rates."""
    found = law(cells)
    shown = [m for m in METHODS if any(m in of_width for of_width in cells.values())]
    head = ['width (parameters)', 'SGD, test', 'SGD, in training', *(f'{t}, {r:g}' for t, r in shown)]
    lines = []
    for width, of_width in cells.items():
        sgd = of_width[SGD]
        texts = [gap(of_width[method], sgd).text() if method in of_width else '' for method in shown]
        accuracies = [f'{100 - sgd.of(name).mean():.2f}' for name in ('error', 'train_error')]
        lines.append([f'{width} ({parameters(width):,})', *accuracies, *texts])
    return '\n\n'.join(
        [
            markdown.table([head, *lines]),
            f'Over the {found.count} compressed cells, the gap in test accuracy is {found.slope:.2f} '
            f'[{found.low:.2f}, {found.high:.2f}] times the gap in training accuracy, r = '
            f'{found.correlation:.2f}.',
            '### Every cell',
            markdown.table([_HEAD, *(line for of_width in cells.values() for line in _lines(of_width))]),
        ]
    )


_HEAD = (
    'width',
    'method',
    'visits',
    'held-out loss by rate',
    'share of the choice',
    'test error, %',
    'training error, %',
    'minus SGD, points',
    'with the choice of the rate',
)


def _lines(of_width: dict[tuple[str, float], Cell]) -> Iterator[Sequence[str]]:
    sgd = of_width[SGD]
    for cell in of_width.values():
        losses = {k: cell.tried[k].mean() for k in sorted(cell.tried)}
        texts = [f'{plan.RATES.rate(k):.3g}: {loss:.3f}' for k, loss in losses.items()]
        tried = ', '.join(
            f'**{text}**' if k == cell.k else text for k, text in zip(losses, texts, strict=True)
        )
        name = cell.title if cell is sgd else f'{cell.title}, {cell.bytes_of:g}'
        errors = [mean_std(cell.of(metric), 2) for metric in ('error', 'train_error')]
        differences = ['', ''] if cell is sgd else [gap(cell, sgd).text(), with_choice(cell, sgd)]
        share = f'{100 * grid.shares(cell.tried)[cell.k]:.0f} %'
        visits = '' if cell is sgd else f'{cell.visits:.3g}'
        yield [str(cell.width), name, visits, tried, share, *errors, *differences]


def parameters(width: int) -> int:
    return sum(n * m + m for n, m in ((64, width), (width, width), (width, 10)))


def draw(cells: dict[int, dict[tuple[str, float], Cell]], path: Path) -> None:
    """The gap in test accuracy against SGD's training error, and against the gap in training accuracy."""
    colors, norm = matplotlib.colormaps['viridis_r'], matplotlib.colors.LogNorm(3, 60)
    with pictures.panels(path, 1, 2) as axes:
        by_sgd, by_gap = axes[0]
        for of_width in cells.values():
            sgd = of_width[SGD]
            for method in METHODS:
                if (cell := of_width.get(method)) is None:
                    continue
                low, high = gap(cell, sgd).interval()
                style = {
                    'fmt': MARKERS[cell.title],
                    'color': colors(norm(cell.visits)),
                    'markersize': 5,
                    'lw': 0.8,
                }
                point = (low + high) / 2
                training = sgd.of('train_error').mean()
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
    cells = read(folder / 'runs.jsonl')
    draw(cells, folder / 'map.png')
    pages.write(folder / 'README.md', {'map': tables(cells)})
