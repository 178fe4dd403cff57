"""Results of many runs: a folder of run folders, or a runs.jsonl with one run per line.

A sweep trains each run in a separate folder. A report condenses them to runs.jsonl, which holds the name of
each run and the contents of its result.json.
"""

import json
from pathlib import Path
from typing import Any

from def_jax.trainer import results
from def_jax.trainer.measure import Measure

__all__ = ['Results', 'figure', 'read', 'read_folders', 'write']

Results = dict[str, dict[str, Any]]  # contents of result.json, by run name


def read(folder: Path) -> Results:
    """Reads the results in a folder, from its run folders or, if there are none, from its runs.jsonl.

    Raises:
        ValueError: if there are no results, or one is incomplete.
    """
    file = folder / 'runs.jsonl'
    folders = sorted(path.parent for path in folder.glob('*/result.json'))
    found = read_folders(folder) if folders or not file.exists() else _read_file(file)
    for run in folders:
        if run.name not in found:
            raise ValueError(
                f'{run / "result.json"} is incomplete. Delete it and restart its run or the sweep: '
                'a finished run only rewrites its result.'
            )
    if not found:
        raise ValueError(
            f'{folder} contains no finished run. Train one first: train.py --workdir={folder}/NAME '
            f'or python -m paper.sweep --workdir={folder}'
        )
    return found


def read_folders(folder: Path) -> Results:
    """The complete results in the run folders of `folder`; unfinished runs are skipped."""
    runs = (path.parent for path in sorted(folder.glob('*/result.json')))
    return {run.name: result for run in runs if (result := results.read(run))}


def write(folder: Path, found: Results) -> None:
    """Writes runs.jsonl."""
    lines = [json.dumps({'run': name} | result) + '\n' for name, result in found.items()]
    (folder / 'runs.jsonl').write_text(''.join(lines), encoding='utf-8')


def figure(result: dict[str, Any], point: str) -> float:
    """The final headline metric at a point, in the unit of tables: accuracies are in %."""
    measure = Measure.of(result)
    try:
        return measure.shown(result['metrics'][measure.key(point)])
    except KeyError:
        raise ValueError(
            f'{result["title"]!r} was not evaluated at {point!r}, which a table cell needs. Points '
            "ending in '_running' require config.recalibrate_batches; 'own' requires method psync or saef."
        ) from None


def _read_file(file: Path) -> Results:
    found = {}
    for number, line in enumerate(_lines(file), start=1):
        try:
            result = json.loads(line)
            found[result.pop('run')] = result
            whole = results.is_whole(result)
        except (ValueError, LookupError, AttributeError, TypeError, RecursionError):
            whole = False
        if not whole:
            raise ValueError(
                f'{file}, line {number}, is not a complete result. Restore the file, or rerun the report on '
                'the run folders.'
            )
    return found


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding='utf-8').splitlines()
    except (OSError, ValueError) as error:
        raise ValueError(f'{file} cannot be read ({error}). Restore it.') from error
