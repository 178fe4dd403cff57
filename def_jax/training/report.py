"""A table of finished runs: mean and spread over seeds of every method and ratio.

    python -m def_jax.training.report --runs=results/digits --output=results/digits/README.md

Reads every result.json below the folder.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags

from def_jax.training.console import point_name

__all__ = ['read_results', 'table']

_RUNS = flags.DEFINE_string('runs', None, 'Folder with the runs.', required=True)
_OUTPUT = flags.DEFINE_string('output', None, 'Markdown file to write; printed if not given.')
_HEADINGS = (
    'run',
    'seeds',
    'point',
    'test accuracy, %',
    'training loss',
    'true ratio',
    'visits per block',
    'MB sent a worker',
)


def read_results(folder: Path) -> list[dict[str, Any]]:
    """The content of every result.json below `folder`, in order of method, ratio and seed.

    Args:
        folder: where to look.

    Returns:
        The results.

    Raises:
        ValueError: if there is none, or one cannot be read.
    """
    results = []
    for path in sorted(folder.rglob('result.json')):
        try:
            results.append(json.loads(path.read_text()))
        except ValueError as error:
            raise ValueError(
                f'{path} is not a whole result ({error}). Delete it and run it again.'
            ) from error
    if not results:
        raise ValueError(
            f'{folder} holds no result.json. Train into it first: train.py --workdir={folder}/NAME'
        )
    return sorted(results, key=lambda r: (r['config']['method'], r['config']['ratio'], r['config']['seed']))


def table(results: list[dict[str, Any]]) -> str:
    """The results as a Markdown table, a row for every point of every setting.

    Args:
        results: contents of result.json. Runs that differ in nothing but the seed share a row.

    Returns:
        The table; accuracies are mean ± sample standard deviation over seeds.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        setting = {key: value for key, value in result['config'].items() if key not in ('seed', 'data_dir')}
        groups.setdefault(json.dumps(setting, sort_keys=True), []).append(result)
    rows = [' | '.join(_HEADINGS), ' | '.join('---' for _ in _HEADINGS)]
    for runs in groups.values():
        first = runs[0]
        for point in first['points']:
            rows.append(
                ' | '.join(
                    [
                        first['title'],
                        _seeds(runs),
                        point_name(point, first['answers']),
                        *_figures(runs, point),
                    ]
                )
            )
    return '\n'.join(f'| {row} |' for row in rows)


def _seeds(runs: list[dict[str, Any]]) -> str:
    return ', '.join(str(run['config']['seed']) for run in runs)


def _figures(runs: list[dict[str, Any]], point: str) -> list[str]:
    communication = runs[0]['communication']
    diverged = [run for run in runs if run['status'] == 'diverged']
    if diverged:
        accuracy = f'diverged in {len(diverged)} of {len(runs)}'
    else:
        accuracy = _mean_std([100 * run['metrics'][f'test_accuracy_{point}'] for run in runs], 2)
    losses = [run['metrics']['train_loss'] for run in runs if run['metrics']['train_loss'] is not None]
    return [
        accuracy,
        _mean_std(losses, 4) if losses else '',
        f'{communication["true_ratio"]:.1f}',
        f'{communication["visits_per_block"]:.1f}',
        f'{communication["megabytes_sent"]:.1f}',
    ]


def _mean_std(values: list[float], digits: int) -> str:
    spread = f' ± {np.std(values, ddof=1):.{digits}f}' if len(values) > 1 else ''
    return f'{np.mean(values):.{digits}f}{spread}'


def _environment(results: list[dict[str, Any]]) -> str:
    """Where the runs ran, in a line; several lines where they differ."""
    lines = []
    for result in results:
        env = result['environment']
        packages = ', '.join(f'{name} {env["packages"][name]}' for name in ('jax', 'flax', 'optax'))
        machine = f'{env["num_devices"]} × {env["device"]}, Python {env["python"]}'
        line = f'{machine}, {packages}, commit {env["commit"]}'
        if line not in lines:
            lines.append(line)
    return '\n'.join(f'- {line}' for line in lines)


def main(argv: list[str]) -> None:
    del argv
    try:
        results = read_results(Path(_RUNS.value))
    except ValueError as error:
        raise SystemExit(f'report: {error}') from error
    text = f'{table(results)}\n\nMachine and commit:\n\n{_environment(results)}\n'
    if not _OUTPUT.value:
        print(text)
        return
    command = f'python -m def_jax.training.report --runs={_RUNS.value} --output={_OUTPUT.value}'
    Path(_OUTPUT.value).write_text(f'Written by `{command}`.\n\n{text}')


if __name__ == '__main__':
    app.run(main)
