"""What the programs of this folder share: mean ± standard deviation, 95 % intervals, tables, pictures."""

import json
from pathlib import Path

import matplotlib
import matplotlib.figure
import numpy as np
from scipy import stats

from def_jax.tools import markdown, pictures

RESULTS = Path(__file__).resolve().parents[2] / 'results' / 'theory'

# One colour for the same thing in every picture.
X, Y, EF, BOUND = (pictures.COLORS[title] for title in ('DEF-A', 'DEF', 'EF', 'SGD'))
matplotlib.rcParams.update(pictures.STYLE)


def mean_std(values):
    """'mean ± sample standard deviation' of one value per seed."""
    return f'{np.mean(values):.3g} ± {np.std(values, ddof=1):.1g}'


def interval(differences):
    """The mean of paired differences, one per seed, with its 95 % interval."""
    low, high = stats.ttest_1samp(differences, 0).confidence_interval()
    return f'{np.mean(differences):.3g} [{low:.3g}, {high:.3g}]'


def band(axes, x, values, label, **style):
    """Draws the mean over seeds, the last axis of `values`, and one standard deviation around it."""
    values = np.asarray(values)
    mean, std = values.mean(-1), values.std(-1, ddof=1)
    (line,) = axes.plot(x, mean, label=label, **style)
    axes.fill_between(x, mean - std, mean + std, color=line.get_color(), alpha=0.2, linewidth=0)


def panels(count, **kwargs):
    """A figure and its axes, at most two in a row."""
    columns = min(2, count)
    rows = -(-count // columns)
    size = max(1.5, columns) * pictures.PANEL[0], rows * pictures.PANEL[1]
    figure = matplotlib.figure.Figure(figsize=size, layout='constrained')
    axes = figure.subplots(rows, columns, squeeze=False, **kwargs)
    for each in axes.flat[count:]:
        each.set_visible(False)
    return figure, axes.flat[:count]


def publish(name, figure, header, rows, **setting):
    """Prints the table; writes it to results/theory/NAME.json with the setting, and the picture beside it."""
    print(markdown.table([header, *rows]))
    RESULTS.mkdir(parents=True, exist_ok=True)
    figure.savefig(RESULTS / f'{name}.png', dpi=pictures.DPI)
    table = [dict(zip(header, row, strict=True)) for row in rows]
    (RESULTS / f'{name}.json').write_text(
        json.dumps({**setting, 'table': table}, indent=1, ensure_ascii=False) + '\n'
    )
