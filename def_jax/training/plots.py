"""Pictures: curves.png, the course of a run or of a table's runs; rows.png, a table's accuracies against its
rows; diagnostics.png, what theory is about."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib.figure
import numpy as np

from def_jax.experiments.tables import Entry
from def_jax.training.console import point_name

__all__ = ['plot_curves', 'plot_diagnostics', 'plot_rows', 'plot_sweep']

_LEVELS = ('--', ':', '-.')  # of baselines, which are all black


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


def plot_sweep(path: Path, title: str, rows: str, table: list[Entry]) -> None:
    """Draws, for each row of a table, accuracy against epochs and megabytes sent, and training loss.

    Lines are means over seeds. Rows of a single cell, the uncompressed baseline, are drawn in every row.
    On fake devices seconds say nothing about a network, so megabytes stand for time; runs on real ones get
    a panel with seconds.

    Args:
        path: the PNG to write.
        title: line above the picture.
        rows: what distinguishes the rows.
        table: the table's entries.
    """
    by_row: dict[str, list[Entry]] = {}
    for entry in table:
        by_row.setdefault(entry.row, []).append(entry)
    alone = [entry for entries in by_row.values() if len(entries) == 1 for entry in entries]
    drawn = {row: entries for row, entries in by_row.items() if len(entries) > 1} or {'': []}
    panels = [('epoch', 'epoch'), ('megabytes_sent', 'MB sent by a worker (log)')]
    if not any(r['config']['fake_devices'] for e in table for r in e.results):
        panels.append(('seconds', 'seconds'))
    figure = matplotlib.figure.Figure(figsize=(4 * (len(panels) + 1), 3.2 * len(drawn)), layout='constrained')
    grid = figure.subplots(len(drawn), len(panels) + 1, squeeze=False)
    for axes, (row, entries) in zip(grid, drawn.items(), strict=True):
        for entry in alone + [e for e in entries if e.accuracies]:
            for panel, (key, _) in zip(axes, panels, strict=False):
                _draw(panel, entry, key, 'accuracy')
            _draw(axes[-1], entry, 'epoch', 'train_loss')
        for panel, (key, label) in zip(axes, panels, strict=False):
            panel.set(xlabel=label, ylabel='test accuracy, %', title=f'{rows} {row}')
            panel.set_xscale('log' if key == 'megabytes_sent' else 'linear')
        axes[-1].set(xlabel='epoch', ylabel='training loss', yscale='log', title=f'{rows} {row}')
        if axes[0].lines:
            axes[0].legend(fontsize='small')
        for panel in axes:
            panel.grid(alpha=0.3)
    _save(figure, path, title)


def plot_rows(path: Path, title: str, rows: str, table: list[Entry]) -> bool:
    """Draws the accuracy of every column against the table's rows, and for ratios against megabytes sent.

    Args:
        path: the PNG to write.
        title: line above the picture.
        rows: what distinguishes the rows.
        table: the table's entries.

    Returns:
        Whether there is a picture: a table with fewer than three numbers for rows has none.
    """
    numbers = {entry.row: float(entry.row) for entry in table if re.fullmatch(r'[\d.]+', entry.row)}
    if len(numbers) < 3:
        return False
    columns: dict[str, list[Entry]] = {}
    for entry in table:
        columns.setdefault(entry.column, []).append(entry)
    panels = {rows: lambda entry: numbers[entry.row]}
    if rows == 'ratio':
        panels = {
            'ratio': lambda entry: numbers[entry.row],
            'MB sent by a worker': lambda entry: entry.results[0]['communication']['megabytes_sent'],
        }
    figure = matplotlib.figure.Figure(figsize=(max(8, 2 + 5.5 * len(panels)), 4), layout='constrained')
    for axes, (label, position) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        for column, entries in columns.items():
            _draw_column(axes, column, entries, position if len(entries) > 1 else None, numbers)
        axes.set(xlabel=label, ylabel='test accuracy, %', xscale='log' if rows == 'ratio' else 'linear')
        if label == 'ratio':
            ticks = sorted({position(e) for entries in columns.values() if len(entries) > 1 for e in entries})
            axes.set_xticks(ticks, [f'{tick:g}' for tick in ticks])
            axes.set_xticks([], minor=True)
        axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc='outside right upper', fontsize='small')
    _save(figure, path, title)
    return True


def _draw_column(
    axes: Any, column: str, entries: list[Entry], position: Callable | None, numbers: Mapping[str, float]
) -> None:
    """A line through the rows that are numbers; the others, and a column without a position, are levels."""
    shown = [entry for entry in entries if entry.accuracies]
    line = [entry for entry in shown if position and entry.row in numbers]
    color = 'black'
    if position and line:
        means = [float(np.mean(entry.accuracies)) for entry in line]
        spreads = [float(np.std(e.accuracies, ddof=1)) if len(e.accuracies) > 1 else 0.0 for e in line]
        drawn = axes.errorbar(list(map(position, line)), means, spreads, label=column, marker='.', capsize=2)
        color = drawn[0].get_color()
    for entry in shown:
        if entry not in line:
            label = column if entry.row in numbers else f'{column}, {entry.row}'
            level = float(np.mean(entry.accuracies))
            levels = sum(other.get_color() == 'black' for other in axes.lines)
            style = _LEVELS[levels % len(_LEVELS)] if color == 'black' else '--'
            axes.axhline(level, label=label, color=color, linewidth=0.8, linestyle=style)


def _draw(axes: Any, entry: Entry, x: str, y: str) -> None:
    """One line: the mean over the seeds of an entry that went as far as the first."""
    curves = [r['curve'] for r in entry.results if r['curve']]
    curves = [curve for curve in curves if len(curve) == len(curves[0])]
    if not curves:
        return
    name, scale = y, 1.0
    if y == 'accuracy':
        name, scale = f'test_accuracy_{entry.point}', 100.0
    values = np.mean([[scale * record[name] for record in curve] for curve in curves], axis=0)
    axes.plot([record[x] for record in curves[0]], values, label=entry.column, linewidth=1.2)


def _save(figure: matplotlib.figure.Figure, path: Path, title: str) -> None:
    figure.suptitle(title)
    partial = path.with_name('partial-' + path.name)
    figure.savefig(partial, dpi=120)
    partial.replace(path)
