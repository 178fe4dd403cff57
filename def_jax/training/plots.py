"""Pictures of one run: curves.png, its course, and diagnostics.png, what the theory speaks of."""

from pathlib import Path
from typing import Any

import matplotlib.figure

from def_jax.training.console import point_name

__all__ = ['plot_curves', 'plot_diagnostics']


def plot_curves(path: Path, records: list[dict[str, Any]], title: str, answers: dict[str, str]) -> None:
    """Draws training loss, and test accuracy against epochs and against megabytes sent.

    Args:
        path: the PNG to write.
        records: the records of a `MetricLog`.
        title: line above the picture.
        answers: title of the method whose answer a point is, by point.
    """
    figure = matplotlib.figure.Figure(figsize=(12, 3.6), layout='constrained')
    loss, epochs, megabytes = figure.subplots(1, 3)
    training = [r for r in records if 'loss' in r]
    tests = [r for r in records if 'test_accuracy_x' in r]
    loss.plot([r['epoch'] for r in training], [r['loss'] for r in training], color='black', linewidth=0.8)
    loss.set(xlabel='epoch', ylabel='training loss at the detached point', yscale='log')
    points = [p for p in ('x', 'y', 'own') if tests and f'test_accuracy_{p}' in tests[0]]
    for axes, key, label in (
        (epochs, 'epoch', 'epoch'),
        (megabytes, 'megabytes_sent', 'MB sent by a worker'),
    ):
        for point in points:
            accuracy = [100 * r[f'test_accuracy_{point}'] for r in tests]
            axes.plot([r[key] for r in tests], accuracy, marker='.', label=point_name(point, answers))
        axes.set(xlabel=label, ylabel='test accuracy, %')
        if points:
            axes.legend(loc='lower right')
    for axes in (loss, epochs, megabytes):
        axes.grid(alpha=0.3)
    _save(figure, path, title)


def plot_diagnostics(path: Path, records: list[dict[str, Any]], title: str) -> None:
    """Draws σ² and M², and for error feedback the errors' norms, Eq. 9's distance and the best λ.

    Args:
        path: the PNG to write.
        records: the records of a `MetricLog`.
        title: line above the picture.
    """
    measured = [record for record in records if 'variance' in record]
    panels = {
        'gradient': {'variance': 'σ²', 'second_moment': 'M²'},
        'error': {'error': 'mean ‖e_k‖²', 'mean_error': '‖e_t‖²'},
        'distance to y (Eq. 9)': {'distance_ef': 'EF, from x', 'distance': 'from the detached point'},
        'best λ': {'detach_optimum': 'λ*(t)', 'detach_optimum_own': 'mean λ*(k, t)'},
    }
    panels = {name: lines for name, lines in panels.items() if measured and set(lines) <= set(measured[-1])}
    figure = matplotlib.figure.Figure(figsize=(4 * len(panels), 3.6), layout='constrained')
    for axes, (name, lines) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        for key, label in lines.items():
            axes.plot([r['step'] for r in measured], [r[key] for r in measured], marker='.', label=label)
        axes.set(xlabel='step', ylabel=name, yscale='linear' if name == 'best λ' else 'log')
        axes.legend()
        axes.grid(alpha=0.3)
    _save(figure, path, title)


def _save(figure: matplotlib.figure.Figure, path: Path, title: str) -> None:
    figure.suptitle(title)
    partial = path.with_name('partial-' + path.name)
    figure.savefig(partial, dpi=120)
    partial.replace(path)
