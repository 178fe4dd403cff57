"""Tables and pictures of finished runs.

    python -m def_jax.experiments.report --workdir=runs/table1_digits --output=results/table1_digits

For the folder of a sweep: README.md with the table beside the paper's, table.csv, curves.png and, where rows
are numbers, rows.png; with
--config=configs/tables/figure1.py another table, filled from the same runs. For another folder, README.md
with a row for every setting. Everything comes from the result.json of each run, which an --output other than
the workdir gets a copy of, so that the same command works there.
"""

import itertools
import json
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import app, flags
from ml_collections import config_flags

from def_jax.experiments import run_list, tables
from def_jax.launch import command_line
from def_jax.training import plots, results
from def_jax.training.checkpointing.workdir import write_json
from def_jax.training.console import point_name

__all__ = ['read_results', 'report', 'settings_table']

_HEADINGS = (
    'run',
    'seeds',
    'point',
    'test accuracy, %',
    'training loss',
    'true ratio',
    'visits per block',
    'MB sent',
)


def read_results(folder: Path) -> dict[str, dict[str, Any]]:
    """The content of every result.json in the folders in `folder`, by their names.

    Raises:
        ValueError: if there is none, or one is not whole.
    """
    found = results.read_all(folder)
    for path in sorted(folder.glob('*/result.json')):
        if path.parent.name not in found:
            raise ValueError(
                f'{path} is not a whole result. Delete it and start its run, or the sweep, again: a finished '
                'run only writes it anew.'
            )
    if not found:
        raise ValueError(
            f'{folder} holds no finished run. Train into it first: train.py --workdir={folder}/NAME, or '
            f'python -m def_jax.experiments.sweep --workdir={folder}'
        )
    return found


def report(workdir: Path, output: Path, spec: Mapping[str, Any] | None = None) -> None:
    """Writes README.md, and for a sweep table.csv and curves.png.

    Args:
        workdir: the folder of a sweep, or one with folders of runs.
        output: the folder to write to; made if need be. Gets copies of what was read.
        spec: the table; by default that of the folder's sweep.json. A figure is drawn from the runs of the
            table that it belongs to.

    Raises:
        ValueError: if there is no finished run, or a file cannot be read.
    """
    found = read_results(workdir)
    spec = spec or _read_spec(workdir / 'sweep.json')
    table = None
    if spec:
        table = tables.entries(spec, found)
        needed = run_list.all_runs(spec, found)
        found = {name: result for name, result in found.items() if name in needed}
    output.mkdir(parents=True, exist_ok=True)
    if output.resolve() != workdir.resolve():
        _copy(workdir, output, found, spec)
    command = f'python -m def_jax.experiments.report --workdir={shlex.quote(str(output))}'
    if spec and table:
        drawn = plots.plot_rows(output / 'rows.png', spec['title'], spec['rows'], table)
        body = _sweep_page(spec, table, found, with_rows=drawn)
        (output / 'table.csv').write_text(tables.comma_separated(table))
        plots.plot_sweep(output / 'curves.png', spec['title'], spec['rows'], table)
    else:
        body = f'# Runs in {output.name}\n\n{settings_table(list(found.values()))}\n'
        if measured := tables.diagnostics(found):
            body += f'\n## Diagnostics\n\nMeans over the run, see def_jax.diagnostics.\n\n{measured}\n'
    page = (
        f'{body}\n## Machine and commit\n\n{_environment(list(found.values()))}\n\nWritten by `{command}`.\n'
    )
    (output / 'README.md').write_text(page)


def settings_table(found: list[dict[str, Any]]) -> str:
    """In Markdown, a row for every point of every setting.

    Args:
        found: contents of result.json. Runs that differ in nothing but the seed share a row.

    Returns:
        The table; accuracies are mean ± sample standard deviation over seeds.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for result in sorted(found, key=lambda r: tuple(r['config'][k] for k in ('method', 'ratio', 'seed'))):
        setting = {key: value for key, value in result['config'].items() if key not in ('seed', 'data_dir')}
        groups.setdefault(json.dumps(setting, sort_keys=True), []).append(result)
    lines = [[*_HEADINGS]]
    for runs in groups.values():
        first = runs[0]
        seeds = ', '.join(str(run['config']['seed']) for run in runs)
        for point in first['points']:
            lines.append([first['title'], seeds, point_name(point, first['answers']), *_figures(runs, point)])
    return tables.markdown(lines)


def _figures(runs: list[dict[str, Any]], point: str) -> list[str]:
    communication = runs[0]['communication']
    diverged = [run for run in runs if run['status'] == 'diverged']
    if diverged:
        accuracy = f'diverged in {len(diverged)} of {len(runs)}'
    else:
        accuracy = tables.mean_std([100 * run['metrics'][f'test_accuracy_{point}'] for run in runs], 2)
    losses = [run['metrics']['train_loss'] for run in runs if run['metrics']['train_loss'] is not None]
    return [
        accuracy,
        tables.mean_std(losses, 4) if losses else '',
        f'{communication["true_ratio"]:.1f}',
        f'{communication["visits_per_block"]:.1f}',
        f'{communication["megabytes_sent"]:.1f}',
    ]


def _read_spec(path: Path) -> dict[str, Any] | None:
    """The table of a sweep; None where the folder is not one."""
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(
            f'{path} cannot be read ({error}). Start the sweep again: it writes the file anew and keeps the '
            'finished runs.'
        ) from error


def _sweep_page(
    spec: Mapping[str, Any], table: list[tables.Entry], found: Mapping[str, Any], *, with_rows: bool
) -> str:
    base, tuned = spec['base'], bool(spec['learning_rates'])
    seeds = ', '.join(map(str, spec['seeds']))
    parts = [
        f'# {spec["title"]}',
        f'{base["model"]} on {base["dataset"]}, {base["num_workers"]} workers, batch {base["batch_size"]} in '
        f'all, {base["num_epochs"]} epochs, where a row does not say otherwise. Test accuracy in %, mean ± '
        f'sample standard deviation over seeds {seeds}; the best compressed method of a row is bold. A run '
        'diverges where its loss becomes NaN or infinite, or stays within 5 % of that of guessing.',
        tables.compared(spec['rows'], table),
        *([f'![Accuracy by {spec["rows"]}](rows.png)'] if with_rows else []),
        '![Accuracy and loss of every row](curves.png)',
        '## What was sent',
        'Visits per block are steps / true ratio; the true ratio is below the nominal one where small '
        'tensors send their one element. MB are what one worker hands to the all-reduce. The training loss '
        "is that of the last epoch, at the method's detached points.",
        tables.traffic(spec['rows'], table),
    ]
    if tuned:
        parts += [
            '## Learning rates',
            f"Test accuracy at the cell's point on seed {spec['tuning_seed']}, which is in no average above; "
            'the best is bold and used.',
            tables.learning_rates(spec, found),
        ]
    return '\n\n'.join(parts) + '\n'


def _copy(workdir: Path, output: Path, found: Mapping[str, Any], spec: Mapping[str, Any] | None) -> None:
    if spec:
        write_json(output / 'sweep.json', spec)
    files = ('result.json',) if spec else ('result.json', 'curves.png', 'diagnostics.png')
    for name, file in itertools.product(found, files):
        (output / name).mkdir(exist_ok=True)
        if (workdir / name / file).exists():
            shutil.copyfile(workdir / name / file, output / name / file)


def _environment(found: list[dict[str, Any]]) -> str:
    """Where the runs ran, a line for each kind of environment and the number of its runs."""
    lines: dict[str, int] = {}
    for result in found:
        env = result['environment']
        packages = ', '.join(f'{name} {env["packages"][name]}' for name in ('jax', 'flax', 'optax'))
        machine = f'{env["num_devices"]} × {env["device"]}, Python {env["python"]}'
        line = f'{machine}, {packages}, commit {env["commit"]}'
        lines[line] = lines.get(line, 0) + 1
    return '\n'.join(f'- {count} runs: {line}' for line, count in lines.items())


def main(argv: list[str]) -> int:
    del argv
    workdir = Path(flags.FLAGS.workdir)
    output = Path(flags.FLAGS.output or workdir)
    spec = json.loads(flags.FLAGS.config.to_json()) if flags.FLAGS.config else None
    try:
        report(workdir, output, spec)
    except ValueError as error:
        return command_line.refuse('report', error)
    print(f'written to {output}: README.md')
    return 0


if __name__ == '__main__':
    config_flag = config_flags.DEFINE_config_file('config', None, "A table; by default the folder's own.")
    flags.DEFINE_string('workdir', None, 'Folder of a sweep, or one with folders of runs.')
    flags.DEFINE_string('output', None, 'Folder for the tables and pictures; by default the workdir.')
    flags.mark_flag_as_required('workdir')
    app.run(main, flags_parser=command_line.config_flags_parser('report', config_flag))
