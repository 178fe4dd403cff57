"""The style of the project's plots: one colour per method, means with a band, text legible in print."""

import contextlib
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.colors
import matplotlib.figure
import matplotlib.ticker
import numpy as np
import PIL.Image

__all__ = [
    'COLORS',
    'DPI',
    'PANEL',
    'STYLE',
    'color_of',
    'draw_band',
    'log_y',
    'panels',
    'plain_log',
    'variant_style',
]

# By a method's title: the palette of Okabe and Ito, and three of Tol's, told apart by the colour-blind. Other
# methods are dark grey.
COLORS = {
    'SGD': '#000000',
    'EF': '#D55E00',
    'SAEF': '#E69F00',
    'PSync': '#009E73',
    'DEF': '#0072B2',
    'DEF-A': '#CC79A7',
    'EF21': '#56B4E9',
    'PowerSGD': '#882255',
    '1-bit Adam': '#332288',
    'DiLoCo': '#999933',
}
_OTHER = '#666666'

PANEL = (2.9, 2.2)  # inches: text is still 5 pt with two panels printed half a page wide
_LABELS = 0.65  # inches of a panel's height for its title, ticks and label
STYLE: dict[Any, Any] = {
    'font.size': 9,
    'axes.titlesize': 9,
    'figure.titlesize': 9,
    'legend.fontsize': 8,
    'legend.frameon': False,
    'legend.handlelength': 1.6,
    'xtick.labelsize': 8,
    'ytick.labelsize': 8,
    'lines.linewidth': 1.3,
    'lines.markersize': 3,
    'axes.spines.top': False,
    'axes.spines.right': False,
    'axes.grid': True,
    'grid.alpha': 0.25,
    'grid.linewidth': 0.5,
}
DPI = 280  # two pixels of the file for one of a common screen, with two panels across a page
_PALETTE = 128  # colours of a PNG
_DASHES = ('-', (0, (4, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)))
_FEW = 15  # lines of at most this many points also get markers


@contextlib.contextmanager
def panels(
    path: Path, rows: int, columns: int, title: str = '', heights: Sequence[float] | None = None
) -> Iterator[np.ndarray]:
    """Yields axes [rows, columns] to draw on; writes the PNG atomically when the block ends.

    Args:
        path: of the PNG.
        rows: number of rows.
        columns: number of columns.
        title: above all panels.
        heights: of each row's axes in inches, without the labels around them; those of `PANEL` by default.
    """
    with matplotlib.rc_context(STYLE):
        heights = [PANEL[1] - _LABELS] * rows if heights is None else heights
        size = (max(1.5, columns) * PANEL[0], sum(heights) + rows * _LABELS)
        figure = matplotlib.figure.Figure(figsize=size, layout='constrained')
        yield figure.subplots(rows, columns, squeeze=False, height_ratios=heights)
        figure.suptitle(title)
        drawn = io.BytesIO()
        figure.savefig(drawn, dpi=DPI)
    partial = path.with_name('partial-' + path.name)
    # A palette reduces the file to a third of its size.
    PIL.Image.open(drawn).convert('RGB').quantize(_PALETTE).save(partial, optimize=True)
    partial.replace(path)


def color_of(title: str) -> str:
    """The colour of what a run of that title answers; dense training is SGD's, whatever the optimizer.

    >>> color_of('dense AdamW') == COLORS['SGD']
    True
    """
    return COLORS['SGD'] if title.startswith('dense ') else COLORS.get(title, _OTHER)


def variant_style(color: str, index: int, count: int) -> dict[str, Any]:
    """The style of one of `count` lines that share a method's colour: increasingly light, varying dashes."""
    red, green, blue = matplotlib.colors.to_rgb(color)
    light = 0.4 * index / max(1, count - 1)
    mixed = tuple(c + light * (1 - c) for c in (red, green, blue))
    return {'color': mixed, 'linestyle': _DASHES[index % len(_DASHES)]}


def draw_band(axes: Any, x: Sequence[float], samples: Sequence[Sequence[float]], **style: Any) -> None:
    """Draws means with a band of one sample standard deviation on either side.

    Args:
        axes: the axes to draw on.
        x: [n].
        samples: for each x, the values to average, one per seed.
        **style: keyword arguments of `plot`.
    """
    means = np.array([np.mean(values) for values in samples])
    spreads = np.array([np.std(values, ddof=1) if len(values) > 1 else 0.0 for values in samples])
    marker = 'o' if len(means) <= _FEW else None
    (line,) = axes.plot(x, means, **{'marker': marker} | style)
    if spreads.any():
        # A logarithmic axis cannot show a lower end below zero; the smallest value replaces it.
        low = np.where(spreads < means, means - spreads, [np.min(values) for values in samples])
        axes.fill_between(x, low, means + spreads, color=line.get_color(), alpha=0.15, linewidth=0)


def log_y(axes: Any) -> None:
    """Makes the y axis logarithmic, with limits that fit the lines; bands may be clipped.

    The axis stays linear if no line has a positive value.
    """
    heights = np.concatenate([np.atleast_1d(line.get_ydata()) for line in axes.lines] or [np.ones(1)])
    heights = heights[heights > 0]
    if not heights.size:
        return
    axes.set_yscale('log', nonpositive='mask')
    low, high = heights.min(), heights.max()
    margin = max(1.1, (high / low) ** 0.08)
    axes.set_ylim(low / margin, high * margin)
    plain_log(axes.yaxis)


def plain_log(axis: Any) -> None:
    """Labels a logarithmic axis with plain numbers: 1, 2, 5, 10, …, or powers of ten over a large range."""
    low, high = axis.get_view_interval()
    if high < 1000 * low:
        few = matplotlib.ticker.MaxNLocator(6, steps=(1, 2, 5, 10))
        axis.set_major_locator(few if high < 5 * low else matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(matplotlib.ticker.FormatStrFormatter('%g'))
    axis.set_minor_locator(matplotlib.ticker.NullLocator())
