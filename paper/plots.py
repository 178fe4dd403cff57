"""Plots of a table: curves.png, learning curves by row; rows.png, the metric against rows; diagnostics.png,
quantities from the convergence analysis."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from def_jax.tools import pictures
from def_jax.trainer.measure import Measure
from def_jax.trainer.plots import draw_diagnostics, draw_loss, draw_measure, loss_axis, measure_axis
from paper.cells import Cell

__all__ = ['plot_curves', 'plot_diagnostics', 'plot_rows']


def plot_curves(path: Path, rows: str, cells: list[Cell]) -> bool:
    """Plots the headline metric and training loss over the course of the runs, for each row of a table.

    Lines are means over seeds, with a band of one standard deviation. A row with a single cell, the
    uncompressed baseline, is drawn in every panel row. Runs on several real devices also get a panel against
    seconds.

    Args:
        path: the PNG to write.
        rows: what distinguishes the rows; empty if their names are self-explanatory.
        cells: the table's cells.

    Returns:
        Whether a plot was written; runs with a single record have no curve.
    """
    if all(len(result['curve']) < 2 for cell in cells for result in cell.results):
        return False
    by_row: dict[str, list[Cell]] = {}
    for cell in cells:
        by_row.setdefault(cell.row, []).append(cell)
    alone = [row[0] for row in by_row.values() if len(row) == 1]
    several = {row: cells for row, cells in by_row.items() if len(cells) > 1}
    drawn = {row: cells for row, cells in several.items() if any(c.figures for c in cells)} or {'': []}
    styles = _styles(cells)
    network = all(map(_has_network, cells))
    measure = _measure(cells)
    with pictures.panels(path, len(drawn), 3 if network else 2) as grid:
        for axes, (row, in_row) in zip(grid, drawn.items(), strict=True):
            shown = [cell for cell in alone + in_row if cell.figures and _same_length(cell)]
            names = _names(shown)
            for cell in shown:
                seeds = _same_length(cell)
                tests = [_with(records, cell.measure.key('x')) for records in seeds]
                losses = [_with(records, 'train_loss') for records in seeds]
                style = styles[cell.column] if cell.column in names else pictures.BACKGROUND
                draw_measure(axes[0], tests, cell.measure, cell.point, **style)
                draw_loss(axes[1], losses, **style, label=names.get(cell.column))
                if network:
                    draw_measure(axes[2], tests, cell.measure, cell.point, 'seconds', **style)
            measure_axis(axes[0], measure)
            loss_axis(axes[1])
            if network:
                measure_axis(axes[2], measure, 'seconds')
            axes[0].set_title(f'{rows} {row}', loc='left')
            pictures.direct_labels(axes[1])
    return True


def plot_rows(path: Path, rows: str, cells: list[Cell]) -> bool:
    """Plots the headline metric of every column against the rows and, for ratios, against the megabytes sent.

    Non-numeric rows are placed to the right of numeric ones. A column with a single cell is drawn as a
    horizontal line. Cells in which a seed diverged are omitted.

    Args:
        path: the PNG to write.
        rows: what distinguishes the rows.
        cells: the table's cells.

    Returns:
        Whether a plot was written; it needs three numeric rows in columns of several cells.
    """
    columns: dict[str, list[Cell]] = {}
    for cell in cells:
        columns.setdefault(cell.column, []).append(cell)
    across = [cell.row for column in columns.values() if len(column) > 1 for cell in column]
    names = [row for row in dict.fromkeys(cell.row for cell in cells) if row in across]
    if len(list(filter(_is_number, names))) < 3:
        return False
    positions = _positions(names)
    panels: dict[str, Callable[[Cell], float]] = {}
    if rows == 'ratio':
        panels['MB sent by a worker'] = lambda cell: cell.results[0]['communication']['megabytes_sent']
    panels[rows] = lambda cell: positions[cell.row]
    styles, measure, labels = _styles(cells), _measure(cells), _names(cells)
    with pictures.panels(path, 1, len(panels)) as (grid,):
        for axes, (label, place) in zip(grid, panels.items(), strict=True):
            for column, of_column in columns.items():
                style = styles[column] if column in labels else pictures.BACKGROUND
                _draw_column(axes, of_column, place, style | {'label': labels.get(column)})
            measure_axis(axes, measure, label)
            if rows == 'ratio':
                axes.set_xscale('log')
                pictures.plain_log(axes.xaxis)
        grid[-1].set_xticks(list(positions.values()), [name.replace(', ', '\n') for name in positions])
        pictures.direct_labels(grid[-1])
    return True


def plot_diagnostics(path: Path, cells: list[Cell]) -> bool:
    """Plots the diagnostics of every setting; returns whether any were measured."""
    settings = {}
    for cell in cells:
        if cell.results and all(result.get('diagnostics') for result in cell.results):
            title, answers = cell.results[0]['title'].split(':')[0], cell.results[0]['answers']
            settings[title] = cell._replace(column=title, method=answers.get('y', answers['x']))
    styles = _styles(list(settings.values()))
    lines = [
        ([result['diagnostics'] for result in cell.results], styles[title] | {'label': title})
        for title, cell in settings.items()
    ]
    if lines:
        draw_diagnostics(path, '', lines)
    return bool(lines)


def _styles(cells: Sequence[Cell]) -> dict[str, dict[str, Any]]:
    """The style of each column: its method's colour, lighter and dashed if several columns share it."""
    methods = {cell.column: cell.method for cell in cells}
    styles = {}
    for method in dict.fromkeys(methods.values()):
        columns = [column for column, other in methods.items() if other == method]
        color = pictures.color_of(method)
        for index, column in enumerate(columns):
            styles[column] = pictures.variant_style(color, index, len(columns))
    return styles


def _names(cells: Sequence[Cell]) -> dict[str, str]:
    """The labels of the columns that are drawn in colour: the best on average over their rows.

    Those read with BatchNorm's running statistics come after all others.
    """
    ranks: dict[str, tuple[bool, float]] = {}
    for cell in cells:
        if cell.column not in ranks and cell.averaged:
            merits = [c.measure.merit(c.mean) for c in cells if c.column == cell.column and c.averaged]
            ranks[cell.column] = cell.point.endswith('_running'), -sum(merits) / len(merits)
    return {column: column for column in sorted(ranks, key=ranks.__getitem__)[: pictures.MOST_NAMES]}


def _same_length(cell: Cell) -> list[Sequence[Mapping[str, Any]]]:
    """The curves of a cell's runs that are as long as the first."""
    curves = [result['curve'] for result in cell.results if result['curve']]
    return [curve for curve in curves if len(curve) == len(curves[0])]


def _with(records: Sequence[Mapping[str, Any]], key: str) -> Sequence[Mapping[str, Any]]:
    return [record for record in records if key in record]


def _measure(cells: Sequence[Cell]) -> Measure:
    """What the figures of the cells are."""
    return next((cell.measure for cell in cells if cell.results), Measure.of({}))


def _has_network(cell: Cell) -> bool:
    """Whether seconds reflect communication cost; the devices that simulate workers share one memory."""
    return all(
        not result['config']['fake_devices'] and _devices_are_apart(result['environment'])
        for result in cell.results
    )


def _devices_are_apart(environment: Mapping[str, Any]) -> bool:
    on_one_cpu = environment['device'].endswith('(cpu)') and environment.get('num_processes', 1) == 1
    return environment['num_devices'] > 1 and not on_one_cpu


def _is_number(name: str) -> bool:
    return re.fullmatch(r'[\d.]+', name) is not None


def _positions(names: list[str]) -> dict[str, float]:
    """The positions of rows on the x axis: numbers at their value, others after the largest."""
    numbers = {name: float(name) for name in names if _is_number(name)}
    step = max(numbers.values()) / len(numbers)
    others = [name for name in names if name not in numbers]
    return numbers | {name: max(numbers.values()) + step * i for i, name in enumerate(others, start=1)}


def _draw_column(axes: Any, cells: list[Cell], place: Callable[[Cell], float], style: dict[str, Any]) -> None:
    """A line through numeric rows and a point for each other row; a single cell is a horizontal line."""
    shown = [cell for cell in cells if cell.averaged]
    if len(cells) == 1:
        for cell in shown:
            mean = cell.measure.drawn(cell.mean)
            axes.axhline(mean, **style | {'linewidth': 0.9})
            low, high = mean - cell.std, mean + cell.std
            axes.axhspan(low, high, color=style['color'], alpha=0.15, linewidth=0)
        return
    line = [cell for cell in shown if _is_number(cell.row)]
    if line:
        errors = [[cell.measure.drawn(figure) for figure in cell.figures] for cell in line]
        pictures.draw_band(axes, [place(cell) for cell in line], errors, **style)
    for cell in shown:
        if not _is_number(cell.row):
            mean = cell.measure.drawn(cell.mean)
            axes.errorbar(place(cell), mean, cell.std, color=style['color'], marker='D', linewidth=0.8)
