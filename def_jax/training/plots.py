"""curves.png: the course of one run."""

from pathlib import Path
from typing import Any

import matplotlib.figure

from def_jax.training.console import point_name

__all__ = ['plot_curves']


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
        axes.legend(loc='lower right')
    for axes in (loss, epochs, megabytes):
        axes.grid(alpha=0.3)
    figure.suptitle(title)
    partial = path.with_name('partial-' + path.name)
    figure.savefig(partial, dpi=120)
    partial.replace(path)
