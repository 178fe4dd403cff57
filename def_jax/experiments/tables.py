"""A table of a sweep: each cell's mean and spread over seeds, beside the paper's number."""

import csv
import io
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from def_jax.data.catalogue import DATASETS
from def_jax.experiments import run_list

__all__ = [
    'Entry',
    'comma_separated',
    'compared',
    'diagnostics',
    'diverged',
    'entries',
    'learning_rates',
    'markdown',
    'mean_std',
    'traffic',
]

# A run whose training loss stays above this share of that of guessing, ln(classes), has learned nothing.
_GUESSING = 0.95


class Entry(NamedTuple):
    """What became of one cell."""

    row: str
    column: str
    point: str  # at which the test accuracy is taken
    paper: str
    learning_rate: float | None  # None while it is being chosen
    results: list[dict[str, Any]]  # of the seeds that are done
    accuracies: list[float]  # in %, of those seeds that did not diverge
    num_seeds: int  # asked for

    @property
    def diverged(self) -> int:
        return len(self.results) - len(self.accuracies)

    @property
    def text(self) -> str:
        """Mean ± sample standard deviation, 'diverges', '–' for nothing yet."""
        if not self.results:
            return '–'
        if self.diverged:
            count = '' if self.diverged == len(self.results) else f' ({self.diverged} of {len(self.results)})'
            return 'diverges' + count
        missing = f' ({len(self.results)} of {self.num_seeds})' if len(self.results) < self.num_seeds else ''
        return mean_std(self.accuracies, 2) + missing


def entries(spec: Mapping[str, Any], results: run_list.Results) -> list[Entry]:
    """What became of each cell of a table.

    Args:
        spec: the table, see `configs/tables/tables.py`.
        results: the runs that are done, by name.

    Returns:
        The entries, in the order of the table's cells.

    Raises:
        ValueError: if no run of the table is done.
    """
    found = []
    for cell in spec['cells']:
        runs = [run_list.run_name(run) for run in run_list.final_runs(spec, cell, results)]
        done = [results[name] for name in runs if name in results]
        point = run_list.cell_point(cell)
        found.append(
            Entry(
                row=cell['row'],
                column=cell['column'],
                point=point,
                paper=cell['paper'],
                learning_rate=run_list.cell_rate(spec, cell, results),
                results=done,
                accuracies=[100 * r['metrics'][f'test_accuracy_{point}'] for r in done if not diverged(r)],
                num_seeds=len(spec['seeds']),
            )
        )
    if not any(entry.results for entry in found):
        raise ValueError(
            'no run of the table is done. Run python -m def_jax.experiments.sweep --config=… --workdir=…'
        )
    return found


def diverged(result: Mapping[str, Any]) -> bool:
    """Whether a run's loss became NaN or infinite, or stayed that of guessing."""
    guessing = math.log(DATASETS[result['config']['dataset']].num_classes)
    return result['status'] != 'finished' or result['metrics']['train_loss'] > _GUESSING * guessing


def compared(rows: str, table: list[Entry]) -> str:
    """The table in Markdown, ours above the paper's in each row; the best compressed method is bold."""
    columns = list(dict.fromkeys(entry.column for entry in table))
    lines = [[rows, '', *columns]]
    for row in dict.fromkeys(entry.row for entry in table):
        cells = {entry.column: entry for entry in table if entry.row == row}
        best = max((float(np.mean(e.accuracies)) for e in cells.values() if _averaged(e)), default=None)
        lines.append([row, 'ours', *(_bold(cells.get(column), best, len(cells)) for column in columns)])
        if any(entry.paper for entry in cells.values()):
            papers = [cells[column].paper if column in cells else '' for column in columns]
            lines.append(['', 'paper', *papers])
    return markdown(lines)


def comma_separated(table: list[Entry]) -> str:
    """The table as CSV, a line for each cell; accuracies in %."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator='\n')
    writer.writerow(['row', 'column', 'mean', 'std', 'seeds', 'diverged', 'learning_rate', 'paper'])
    for entry in table:
        mean = f'{np.mean(entry.accuracies):.4f}' if entry.accuracies else ''
        std = f'{np.std(entry.accuracies, ddof=1):.4f}' if len(entry.accuracies) > 1 else ''
        seeds = ' '.join(str(result['config']['seed']) for result in entry.results)
        writer.writerow(
            [entry.row, entry.column, mean, std, seeds, entry.diverged, entry.learning_rate, entry.paper]
        )
    return out.getvalue()


def traffic(rows: str, table: list[Entry]) -> str:
    """In Markdown, what the runs of each row and column sent, and how low their training loss went."""
    lines = [[rows, 'method', 'learning rate', 'training loss', 'true ratio', 'visits per block', 'MB sent']]
    for entry in table:
        if not entry.results:
            continue
        communication = entry.results[0]['communication']
        losses = [r['metrics']['train_loss'] for r in entry.results if r['metrics']['train_loss'] is not None]
        lines.append(
            [
                entry.row,
                entry.column,
                f'{entry.learning_rate:g}',
                mean_std(losses, 3) if losses else '',
                f'{communication["true_ratio"]:.1f}',
                f'{communication["visits_per_block"]:.1f}',
                f'{communication["megabytes_sent"]:.2f}',
            ]
        )
    return markdown(lines)


def diagnostics(results: run_list.Results) -> str:
    """In Markdown, what the theory speaks of, as means over a run; empty where no run measured it.

    Ratios of two measured figures are ratios of their means over the run.
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
    for name, result in results.items():
        records = result.get('diagnostics', [])
        if not records:
            continue

        def mean(key, records=records):
            return float(np.mean([record[key] for record in records if key in record]))

        line = [name, str(len(records)), f'{mean("variance") / mean("second_moment"):.2f}']
        measured = [record for record in records if record.get('error')]  # none before the first step
        if measured:
            ratio = mean('error', measured) / mean('mean_error', measured)
            optimum, own = mean('detach_optimum', measured), mean('detach_optimum_own', measured)
            distance = mean('distance_ef', measured) / mean('distance', measured)
            line += [f'{ratio:.2f}', f'{optimum:.2f}', f'{own:.2f}', f'{distance:.2f}']
        lines.append(line + [''] * (len(heading) - len(line)))
    return markdown(lines) if len(lines) > 2 else ''


def learning_rates(spec: Mapping[str, Any], results: run_list.Results) -> str:
    """In Markdown, the test accuracy of every learning rate tried for every cell; the choice is bold."""
    lines = [[spec['rows'], 'method', *(f'{rate:g}' for rate in spec['learning_rates'])]]
    for cell in spec['cells']:
        key = f'test_accuracy_{run_list.cell_point(cell)}'
        chosen, texts = run_list.cell_rate(spec, cell, results), []
        for run in run_list.tuning_runs(spec, cell):
            text = _tried(results.get(run_list.run_name(run)), key)
            texts.append(f'**{text}**' if run['learning_rate'] == chosen else text)
        lines.append([cell['row'], cell['column'], *texts])
    return markdown(lines)


def markdown(lines: list[list[str]]) -> str:
    """Rows of cells as a Markdown table; the first row is its head."""
    head, *body = lines
    return '\n'.join(f'| {" | ".join(line)} |' for line in [head, ['---'] * len(head), *body])


def mean_std(values: list[float], digits: int) -> str:
    """Mean ± sample standard deviation; of a single value there is no deviation."""
    spread = f' ± {np.std(values, ddof=1):.{digits}f}' if len(values) > 1 else ''
    return f'{np.mean(values):.{digits}f}{spread}'


def _tried(result: Mapping[str, Any] | None, key: str) -> str:
    if result is None:
        return '–'
    return 'diverges' if diverged(result) else f'{100 * result["metrics"][key]:.2f}'


def _averaged(entry: Entry) -> bool:
    return bool(entry.accuracies) and not entry.diverged


def _bold(entry: Entry | None, best: float | None, competitors: int) -> str:
    if entry is None:
        return ''
    wins = competitors > 1 and _averaged(entry) and float(np.mean(entry.accuracies)) == best
    return f'**{entry.text}**' if wins else entry.text
