"""The tables of a report, in Markdown and CSV, from cells and finished runs."""

import csv
import io
import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from def_jax.tools import markdown
from def_jax.trainer.measure import Measure
from paper import needed_runs
from paper.cells import Cell, diverged
from paper.finished_runs import Results, figure
from paper.statistics import MARGIN, mean_std, seed_difference

__all__ = [
    'comma_separated',
    'compared',
    'diagnostics',
    'differences',
    'heading',
    'settings',
    'traffic',
    'tuned',
    'tuned_on',
]


def heading(cells: Iterable[Cell]) -> str:
    """What the figures of cells are, e.g. 'test accuracy, %'; several if the runs of the cells differ."""
    return ' or '.join(dict.fromkeys(cell.measure.heading for cell in cells if cell.results))


def compared(rows: str, cells: list[Cell]) -> str:
    """The cells as a table, our numbers above the paper's; the best compressed method is in bold."""
    columns = list(dict.fromkeys(cell.column for cell in cells))
    lines = [[rows, '', *columns]]
    for row in dict.fromkeys(cell.row for cell in cells):
        by_column = {cell.column: cell for cell in cells if cell.row == row}
        compressed = [cell for cell in by_column.values() if cell.averaged and cell.method != 'SGD']
        best = compressed[0].measure.best(cell.mean for cell in compressed) if len(compressed) > 1 else None
        texts = {
            column: f'**{cell.text}**' if cell in compressed and cell.mean == best else cell.text
            for column, cell in by_column.items()
        }
        lines.append([row, 'ours', *(texts.get(column, '') for column in columns)])
        papers = {column: cell.paper for column, cell in by_column.items()}
        if any(papers.values()):
            lines.append(['', 'paper', *(papers.get(column, '') for column in columns)])
    return markdown.table(lines)


def comma_separated(cells: list[Cell]) -> str:
    """The cells as CSV, one per line; accuracies in %, see `heading`."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator='\n')
    writer.writerow(['row', 'column', 'mean', 'std', 'seeds', 'diverged', 'learning_rate', 'paper'])
    for cell in cells:
        mean = f'{cell.mean:.4f}' if cell.figures else ''
        std = f'{np.std(cell.figures, ddof=1):.4f}' if len(cell.figures) > 1 else ''
        seeds = ' '.join(str(result['config']['seed']) for result in cell.results)
        writer.writerow(
            [cell.row, cell.column, mean, std, seeds, cell.diverged, cell.learning_rate, cell.paper]
        )
    return out.getvalue()


def differences(rows: str, cells: list[Cell]) -> str:
    """Each cell against SGD; empty without SGD, or where no cell shares two seeds with it."""
    baselines = [cell for cell in cells if cell.method == 'SGD' and cell.averaged][:1]
    lines = [[rows, 'method', 'difference [95 % interval]', 'seeds', f'within {MARGIN:g} points']]
    for sgd, cell in itertools.product(baselines, cells):
        if not cell.averaged or cell is sgd:
            continue
        found = seed_difference(cell.by_seed, sgd.by_seed, same_runs=cell.shares_runs(sgd))
        if found and found.num_seeds > 1:
            within = ('yes' if found.equivalent() else 'not shown') if cell.measure.metric.percent else ''
            text = found.text(cell.measure.digits)
            lines.append([cell.row, cell.column, text, str(found.num_seeds), within])
    return markdown.table(lines) if len(lines) > 1 else ''


def traffic(rows: str, cells: list[Cell]) -> str:
    """The communication and the training loss of the runs of each cell; the loss at its point, if known."""
    evaluated = any(cell.point_loss for cell in cells)
    losses = ['training loss', 'at its point'] if evaluated else ['training loss']
    lines = [[rows, 'method', 'learning rate', *losses, 'true ratio', 'visits per block', 'MB sent']]
    for cell in cells:
        if cell.results:
            known = [cell.train_loss, cell.point_loss] if evaluated else [cell.train_loss]
            shown = [_losses(seeds, 3) for seeds in known]
            lines.append([cell.row, cell.column, f'{cell.learning_rate:g}', *shown, *_sent(cell, 2)])
    return markdown.table(lines)


def settings(cells: list[Cell]) -> str:
    """One row per point of every setting; metrics are mean ± sample standard deviation over seeds."""
    lines = [
        [
            'run',
            'seeds',
            'point',
            heading(cells),
            'training loss',
            'true ratio',
            'visits per block',
            'MB sent',
        ]
    ]
    for cell in cells:
        seeds = ', '.join(str(result['config']['seed']) for result in cell.results)
        lines.append([cell.row, seeds, cell.column, cell.text, _losses(cell.train_loss, 4), *_sent(cell, 1)])
    return markdown.table(lines)


def tuned(table: Mapping[str, Any], found: Results) -> str:
    """The headline metric of everything tried for a cell, a learning rate a column; the choice is in bold.

    It is the mean over the tuning seeds that are done. The runs of a line are its candidates times the seeds.

    Empty for a table that tunes nothing.
    """
    tried = [needed_runs.candidates(table, cell) for cell in table['cells']]
    rates = sorted({settings['learning_rate'] for of_cell in tried for settings, _ in of_cell}, reverse=True)
    lines = [[table['rows'], 'method', 'runs', *(f'{rate:g}' for rate in rates)]]
    for cell, of_cell in zip(table['cells'], tried, strict=True):
        choice = needed_runs.cell_choice(table, cell, found)
        by_line: dict[str, dict[float, str]] = {}
        count: dict[str, int] = {}
        for settings, runs in of_cell:
            done = [found[name] for name in map(needed_runs.run_name, runs) if name in found]
            text = _tried(done, needed_runs.cell_point(cell))
            others = (f'{key}={value}' for key, value in settings.items() if key != 'learning_rate')
            line = ', '.join([cell['column'], *others])
            shown = f'**{text}**' if settings == choice else text
            by_line.setdefault(line, {})[settings['learning_rate']] = shown
            count[line] = count.get(line, 0) + len(runs)
        lines += [
            [cell['row'], line, str(count[line]), *(texts.get(rate, '') for rate in rates)]
            for line, texts in by_line.items()
        ]
    return markdown.table(lines) if rates else ''


def tuned_on(table: Mapping[str, Any], found: Results) -> str:
    """What the runs that select learning rates are compared by, e.g. 'validation accuracy'."""
    runs = (run for cell in table['cells'] for run in needed_runs.tuning_runs(table, cell))
    done = (found[name] for run in runs if (name := needed_runs.run_name(run)) in found)
    return ' or '.join(dict.fromkeys(Measure.of(result).title for result in done))


def diagnostics(found: Results) -> str:
    """Quantities from the convergence analysis, as means over a run; empty if no run measured them.

    Ratios of two quantities are ratios of their means over the run.
    """
    heading = [
        'run',
        'measured',
        'σ²/M²',
        'mean ‖e_k‖² / ‖e_t‖²',
        'λ*(t)',
        'mean λ*(k, t)',
        'Eq. 9: EF / DEF',
    ]
    lines = [heading, ['the paper', '', '0.3', '', '', '', '1.7']]
    for name, result in found.items():
        records = result.get('diagnostics', [])
        if not records:
            continue
        line = [
            name,
            str(len(records)),
            f'{_mean(records, "variance") / _mean(records, "second_moment"):.2f}',
        ]
        measured = [record for record in records if record.get('error')]  # absent before the first step
        if measured:
            line += [
                f'{_mean(measured, "error") / _mean(measured, "mean_error"):.2f}',
                f'{_mean(measured, "detach_optimum"):.2f}',
                f'{_mean(measured, "detach_optimum_own"):.2f}',
                f'{_mean(measured, "distance_ef") / _mean(measured, "distance"):.2f}',
            ]
        lines.append(line + [''] * (len(heading) - len(line)))
    return markdown.table(lines) if len(lines) > 2 else ''


def _sent(cell: Cell, digits: int) -> list[str]:
    communication = cell.results[0]['communication']
    return [
        f'{communication["true_ratio"]:.1f}',
        f'{communication["visits_per_block"]:.1f}',
        f'{communication["megabytes_sent"]:.{digits}f}',
    ]


def _losses(losses: list[float], digits: int) -> str:
    return mean_std(losses, digits) if losses else ''


def _mean(records: Iterable[Mapping[str, float]], key: str) -> float:
    return float(np.mean([record[key] for record in records if key in record]))


def _tried(done: list[dict[str, Any]], point: str) -> str:
    if not done:
        return '–'
    if any(diverged(result) for result in done):
        return 'diverges'
    return f'{np.mean([figure(result, point) for result in done]):.{Measure.of(done[0]).digits}f}'
