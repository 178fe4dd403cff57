"""Writes the page of finished runs: tables, plots, machine and commit.

    python -m paper.report --workdir=runs/table1_digits --output=results/table1_digits

The page of a sweep compares the table with the paper's, and comes with table.csv, curves.png and, for numeric
rows, rows.png. --config=configs/tables/figure1.py selects another table, filled from the same runs. The page
of any other folder of runs has one row per setting, and curves.png. Runs that measured diagnostics also get
diagnostics.png. An --output other than the workdir also receives the runs, as runs.jsonl, and the sweep.json
of a sweep, so the same command works on it.
"""

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags

from def_jax.trainer.checkpointing.workdir import write_json
from def_jax.trainer.launch import command_line
from paper import cells as cells_lib
from paper import finished_runs, needed_runs, plots, tables
from paper.cells import Cell
from paper.finished_runs import Results
from paper.statistics import PAIRED

__all__ = ['report']


def report(workdir: Path, output: Path, table: Mapping[str, Any] | None = None) -> None:
    """Writes README.md and its plots, and table.csv for a sweep.

    Args:
        workdir: the folder of a sweep, a folder of run folders, or the output of an earlier report.
        output: the folder to write to, created if needed. Also receives the runs if it is not the workdir.
        table: the table; defaults to the workdir's sweep.json. A figure uses the runs of the table that it
            belongs to.

    Raises:
        ValueError: if there is no finished run, or a file cannot be read.
    """
    found = finished_runs.read(workdir)
    table = table or _read_table(workdir / 'sweep.json')
    if table:
        cells = cells_lib.of_table(table, found)
        needed = needed_runs.all_runs(table, found)
        found = {name: result for name, result in found.items() if name in needed}
    else:
        cells = cells_lib.of_settings(found)
    output.mkdir(parents=True, exist_ok=True)
    if output.resolve() != workdir.resolve():
        finished_runs.write(output, found)
        if table:
            write_json(output / 'sweep.json', table)
    parts = _table_parts(table, cells, found, output) if table else _settings_parts(cells, output)
    if plots.plot_diagnostics(output / 'diagnostics.png', cells):
        parts += [
            '## Diagnostics',
            'Means over the run, see def_jax.diagnostics. The estimate of M² can be negative, which leaves '
            'gaps in its line.',
            tables.diagnostics(found),
            '![Variance, residuals, distance to y and the best λ along the runs](diagnostics.png)',
        ]
    parts += _samples_parts(found)
    parts += ['## Machine and commit', _environment(found)]
    parts += [f'Written by `python -m paper.report --workdir={shlex.quote(str(output))}`.']
    (output / 'README.md').write_text('\n\n'.join(parts) + '\n', encoding='utf-8')


def _read_table(path: Path) -> dict[str, Any] | None:
    """The table of a sweep; None if the folder does not belong to a sweep."""
    if not path.exists():
        return None
    try:
        table = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(
            f'{path} cannot be read ({error}). Restart the sweep: it rewrites the file and keeps the '
            'finished runs.'
        ) from error
    needed_runs.check_table(table, str(path))
    return table


def _table_parts(table: Mapping[str, Any], cells: list[Cell], found: Results, output: Path) -> list[str]:
    base, rows = table['base'], table['rows']
    seeds = ', '.join(map(str, table['seeds']))
    figures, drawn = _sentence(tables.heading(cells)).replace(', %', ' in %'), _drawn(cells)
    (output / 'table.csv').write_text(tables.comma_separated(cells), encoding='utf-8')
    with_curves = plots.plot_curves(output / 'curves.png', rows, cells)
    with_rows = plots.plot_rows(output / 'rows.png', rows, cells)
    evaluated = any(cell.point_loss for cell in cells)
    parts = [
        f'# {table["title"]}',
        f'{base["model"]} on {base["dataset"]}, {base["num_workers"]} workers, global batch '
        f'{base["batch_size"]}, {_length(base)}, unless a row says otherwise. {figures}, mean ± sample '
        f'standard deviation over seeds {seeds}; the best compressed method of a row is bold. A run diverges '
        'if its loss becomes NaN or infinite, or stays within 5 % of that of guessing.',
        tables.compared(rows, cells),
        *([f'![{drawn} by {rows}](rows.png)'] if with_rows else []),
        *([f'![{drawn} and training loss of every row](curves.png)'] if with_curves else []),
        *(['Lines are means over seeds, bands one standard deviation.'] if with_rows or with_curves else []),
        *_differences_parts(rows, cells),
        '## What was sent',
        'Visits per block are steps / true ratio; the true ratio is below the nominal one because a small '
        'tensor sends at least one element. MB are what one worker passes to the all-reduce. The training '
        "loss is the last epoch's, at the method's detached points"
        + ("; that at the cell's point is evaluated on training examples." if evaluated else '.'),
        tables.traffic(rows, cells),
    ]
    if tried := tables.tuned(table, found):
        parts += [
            '## Learning rates',
            f"{_sentence(tables.tuned_on(table, found))} at the cell's point {_seeds(table['tuning_seeds'])} "
            'no average above; the best, in bold, is used.',
            tried,
        ]
    return parts


def _differences_parts(rows: str, cells: list[Cell]) -> list[str]:
    if not (differences := tables.differences(rows, cells)):
        return []
    return [
        '## Differences from SGD',
        f'In the unit of the table. Intervals are paired by seed from {PAIRED} seeds up, and where both are '
        "points of the same runs; others are Welch's. 'Yes': two one-sided t tests at 5 % "
        'show that the means differ by less.',
        differences,
    ]


def _settings_parts(cells: list[Cell], output: Path) -> list[str]:
    named = [cell._replace(row=cell.row.split(':')[0], column=cell.method or cell.column) for cell in cells]
    with_curves = plots.plot_curves(output / 'curves.png', '', named)
    return [
        f'# Runs in {output.name}',
        tables.settings(cells),
        *([f'![{_drawn(cells)} and training loss along the runs](curves.png)'] if with_curves else []),
    ]


def _drawn(cells: list[Cell]) -> str:
    """What the plots show of the cells, as a sentence begins."""
    return _sentence(' or '.join(dict.fromkeys(cell.measure.axis for cell in cells))).removesuffix(', %')


def _length(base: Mapping[str, Any]) -> str:
    return f'{base["num_steps"]:,} steps' if base.get('num_steps') else f'{base["num_epochs"]} epochs'


def _seeds(seeds: Sequence[int]) -> str:
    if len(seeds) == 1:
        return f'on seed {seeds[0]}, which enters'
    return f'on average over seeds {", ".join(map(str, seeds))}, which enter'


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _samples_parts(found: Results) -> list[str]:
    """What the models generate at the end of the first run of each title."""
    samples: dict[str, str] = {}
    for result in found.values():
        if result.get('sample'):
            samples.setdefault(result['title'], result['sample'])
    parts = ['## Samples']
    for title, sample in samples.items():
        lines = [f'    {line}'.rstrip() for line in sample.splitlines()]  # a code block, whatever is in it
        parts += [f'{title}:', '\n'.join(lines)]
    return parts if samples else []


def _environment(found: Results) -> str:
    """The environments of the runs, one line each, with the number of runs."""
    lines: dict[str, int] = {}
    for result in found.values():
        env = result['environment']
        packages = ', '.join(f'{name} {env["packages"][name]}' for name in ('jax', 'flax', 'optax'))
        machine = f'{env["num_devices"]} × {env["device"]}, Python {env["python"]}'
        line = f'{machine}, {packages}, commit {env["commit"]}'
        lines[line] = lines.get(line, 0) + 1
    return '\n'.join(f'- {count} run{"s" * (count > 1)}: {line}' for line, count in lines.items())


def main(argv: list[str]) -> int:
    if len(argv) > 1:
        return _refuse(f'unexpected arguments {argv[1:]}; pass folders as --workdir=… and --output=…')
    workdir = Path(flags.FLAGS.workdir)
    output = Path(flags.FLAGS.output or workdir)
    try:
        table = None
        if flags.FLAGS.config:
            needed_runs.check_table(flags.FLAGS.config, '--config')
            table = json.loads(flags.FLAGS.config.to_json())
        report(workdir, output, table)
    except ValueError as error:
        return _refuse(error)
    except OSError as error:
        return _refuse(
            f'--output={output} cannot be written to ({error}). Choose another folder, or free some space.'
        )
    print(f'written to {output}: README.md')
    return 0


def _refuse(reason: object) -> int:
    return command_line.refuse('report', reason)


if __name__ == '__main__':
    config_flag = command_line.define_config('A table; defaults to that of the folder.')
    flags.DEFINE_string('workdir', None, 'Folder of a sweep, or a folder of run folders.')
    flags.DEFINE_string('output', None, 'Folder for the tables and plots; defaults to the workdir.')
    flags.mark_flag_as_required('workdir')
    app.run(main, flags_parser=command_line.config_flags_parser('report', config_flag))
