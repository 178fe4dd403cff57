"""The pictures of a run: learning curves, and quantities from the convergence analysis."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from def_jax.tools import pictures
from def_jax.trainer.console import point_name
from def_jax.trainer.tasks.base import Measure

__all__ = ['plot_curves', 'plot_diagnostics']

Records = Sequence[Mapping[str, Any]]

# One panel each: the label of the y axis, and the keys drawn as a solid and a dashed line.
_DIAGNOSTICS = {
    'σ² (solid)\nM² (dashed)': ('variance', 'second_moment'),
    'mean ‖e_k‖² (solid)\n‖e_t‖² (dashed)': ('error', 'mean_error'),
    'distance to y (Eq. 9) from\nz_k (solid), x (dashed)': ('distance', 'mean_error'),
    'λ*(t) (solid)\nmean λ*(k, t) (dashed)': ('detach_optimum', 'detach_optimum_own'),
}


def plot_curves(
    path: Path, records: Records, title: str, answers: Mapping[str, str], measure: Measure
) -> None:
    """Plots the headline metric and the training loss of a run; `answers` has the title for each point.

    Shares of which more is better are drawn as errors, and what falls towards zero on a logarithmic axis.
    """
    metric = measure.metric
    as_error = metric.percent and metric.greater_is_better
    scale = 100 if metric.percent else 1
    with pictures.panels(path, 1, 2, title) as ((error, loss),):
        _draw(loss, records, 'loss', 'epoch', color='black')
        loss.set(xlabel='epoch', ylabel='training loss')
        pictures.log_y(loss)
        for point in ('x', 'y', 'own'):
            key = measure.key(point)
            last = {r['step']: r for r in records if key in r}.values()  # of a step that was evaluated again
            drawn = [{**r, key: scale * (1 - r[key] if as_error else r[key])} for r in last]
            if drawn:
                color, label = pictures.color_of(answers.get(point, '')), point_name(point, answers)
                _draw(error, drawn, key, 'epoch', color=color, label=label)
        name = f'{measure.split} error' if as_error else measure.title
        error.set(xlabel='epoch', ylabel=f'{name}, %' if metric.percent else name)
        if as_error or not metric.greater_is_better:
            pictures.log_y(error)
        if error.lines:
            error.legend()


def plot_diagnostics(path: Path, records: Records, title: str) -> None:
    """Plots σ² and M²; for error feedback also residual norms, the distance of Eq. 9 and the optimal λ."""
    records = [record for record in records if 'variance' in record]
    drawn = {label: keys for label, keys in _DIAGNOSTICS.items() if records[-1].keys() >= {*keys}}
    with pictures.panels(path, -(-len(drawn) // 2), 2, title) as grid:
        for axes, (label, keys) in zip(grid.flat, drawn.items(), strict=False):
            for key, dashes in zip(keys, ('-', (0, (2, 1))), strict=True):
                color = pictures.COLORS['DEF']
                _draw(axes, records, key, 'step', color=color, linestyle=dashes, linewidth=0.9)
            axes.set(xlabel='step', ylabel=label)
            if 'λ' not in label:
                pictures.log_y(axes)
        for axes in grid.flat[len(drawn) :]:
            axes.set_visible(False)


def _draw(axes: Any, records: Records, key: str, x: str, **style: Any) -> None:
    found = [record for record in records if key in record]
    values = [[record[key]] for record in found]
    pictures.draw_band(axes, [record[x] for record in found], values, **style)
