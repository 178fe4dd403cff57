"""Plots over seeds: learning curves, and quantities from the convergence analysis."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from def_jax.tools import pictures
from def_jax.trainer.console import point_name
from def_jax.trainer.measure import Measure

__all__ = [
    'draw_diagnostics',
    'draw_loss',
    'draw_measure',
    'loss_axis',
    'measure_axis',
    'plot_curves',
    'plot_diagnostics',
]

Records = Sequence[Mapping[str, Any]]

# One panel each: the label of the y axis, and the keys drawn as a solid and a dashed line.
_DIAGNOSTICS = {
    'σ² (solid)\nM² (dashed)': ('variance', 'second_moment'),
    'mean ‖e_k‖² (solid)\n‖e_t‖² (dashed)': ('error', 'mean_error'),
    'distance to y (Eq. 9) from\nz_k (solid), x (dashed)': ('distance', 'distance_ef'),
    'λ*(t) (solid)\nmean λ*(k, t) (dashed)': ('detach_optimum', 'detach_optimum_own'),
}


def plot_curves(
    path: Path, records: list[dict[str, Any]], title: str, answers: dict[str, str], measure: Measure
) -> None:
    """Plots the headline metric and the training loss of a run; `answers` has the title for each point."""
    with pictures.panels(path, 1, 2, title) as ((error, loss),):
        draw_loss(loss, [[record for record in records if 'loss' in record]], 'loss', color='black')
        loss_axis(loss)
        tests = [record for record in records if measure.key('x') in record]
        for point in ('x', 'y', 'own'):
            if tests and measure.key(point) in tests[0]:
                color = pictures.color_of(answers.get(point, ''))
                draw_measure(error, [tests], measure, point, color=color, label=point_name(point, answers))
        measure_axis(error, measure)
        if error.lines:
            error.legend()


def draw_measure(
    axes: Any, seeds: Sequence[Records], measure: Measure, point: str, x: str = 'epoch', **style: Any
) -> None:
    """Draws the headline metric at a point, averaged over seeds; `seeds` holds records of evaluations."""
    key = measure.key(point)
    values = [[measure.drawn(measure.shown(record[key])) for record in at] for at in _by_step(seeds)]
    pictures.draw_band(axes, [record[x] for record in seeds[0]], values, **style)


def measure_axis(axes: Any, measure: Measure, x: str = 'epoch') -> None:
    """Labels the axes of `draw_measure`; what falls towards zero has a logarithmic axis."""
    axes.set(xlabel=x, ylabel=measure.axis)
    if measure.logarithmic:
        pictures.log_y(axes)


def draw_loss(axes: Any, seeds: Sequence[Records], key: str = 'train_loss', **style: Any) -> None:
    """Draws the training loss, averaged over seeds."""
    losses = [[record[key] for record in at] for at in _by_step(seeds)]
    pictures.draw_band(axes, [record['epoch'] for record in seeds[0]], losses, **style)


def loss_axis(axes: Any) -> None:
    """Labels the axes of `draw_loss`; the loss axis is logarithmic."""
    axes.set(xlabel='epoch', ylabel='training loss')
    pictures.log_y(axes)


def _by_step(seeds: Sequence[Records]) -> Iterator[tuple[Mapping[str, Any], ...]]:
    """For each step that all seeds have reached, their records."""
    return zip(*seeds, strict=False)


def plot_diagnostics(path: Path, records: list[dict[str, Any]], title: str) -> None:
    """Plots σ² and M²; for error feedback also residual norms, the distance of Eq. 9 and the optimal λ."""
    measured = [record for record in records if 'variance' in record]
    draw_diagnostics(path, title, [([measured], {'color': pictures.COLORS['DEF']})])


def draw_diagnostics(path: Path, title: str, settings: Sequence[tuple[Sequence[Records], dict]]) -> None:
    """Like `plot_diagnostics`, for settings that are each averaged over seeds.

    `settings` has the diagnostics of every seed, at the same steps, and a line style with or without a label.
    """
    known = {name for seeds, _ in settings for name in seeds[0][-1]}
    drawn = {label: pair for label, pair in _DIAGNOSTICS.items() if known >= set(pair)}
    with pictures.panels(path, -(-len(drawn) // 2), 2, title) as grid:
        for axes, (label, pair) in zip(grid.flat, drawn.items(), strict=False):
            for seeds, style in settings:
                for name, dashes in zip(pair, ('-', (0, (2, 1))), strict=True):
                    look = style | {'linestyle': dashes, 'linewidth': 0.9}
                    values = [[record.get(name, math.nan) for record in at] for at in _by_step(seeds)]
                    pictures.draw_band(axes, [record['step'] for record in seeds[0]], values, **look)
            axes.set(xlabel='step', ylabel=label)
            if 'λ' not in label:
                pictures.log_y(axes)
        if any(style.get('label') for _, style in settings):
            handles, labels = grid[0, 0].get_legend_handles_labels()
            grid[0, 0].legend(handles[::2], labels[::2])
        for axes in grid.flat[len(drawn) :]:
            axes.set_visible(False)
