"""Runs of the trainer itself, one after another: for several devices or machines, and for long runs."""

import hashlib
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import rich.console

from def_jax.trainer import loop
from def_jax.trainer.metrics import read
from experiments import methods
from experiments.lanes import course_of, finite
from experiments.spec import Record, Spec, of_code

__all__ = ['FOLDER', 'run']


FOLDER = Path('runs/experiments')


def run(specs: Sequence[Spec], origin: Mapping[str, Any]) -> Iterator[Record]:
    """Trains runs and yields their records.

    The trainer's files lie in `FOLDER`, a folder a run, until the next record is asked for: a run that was
    interrupted goes on where it stopped, unless code was committed since.

    Args:
        specs: the runs.
        origin: for their records.
    """
    for spec in specs:
        name = hashlib.sha256(f'{spec.key} {of_code()}'.encode()).hexdigest()[:16]
        if str(origin.get('commit')).endswith('-dirty'):  # perhaps begun with other code
            shutil.rmtree(FOLDER / name, ignore_errors=True)
        yield _record(spec, origin, str(FOLDER / name))
        shutil.rmtree(FOLDER / name)


def _record(spec: Spec, origin: Mapping[str, Any], folder: str) -> Record:
    config, begin = methods.configured(spec), time.monotonic()
    with config.unlocked():
        config.log_every_steps = 1
    try:
        metrics = loop.train_and_evaluate(config, folder, rich.console.Console(quiet=True))['metrics']
    except loop.DivergedError:
        metrics = {}
    logged = read(Path(folder, 'metrics.jsonl'))
    losses = [record['loss'] for record in logged if 'loss' in record]
    found = {name: finite(value) for name, value in metrics.items() if _is_at_a_point(name)}
    for record in logged:  # evaluations along the run
        along = {name: value for name, value in record.items() if name.startswith(spec.evaluate_on)}
        if record['step'] < metrics.get('steps', 0):
            found |= {
                f'{name}@{record["step"]}': finite(value)
                for name, value in along.items()
                if '_accuracy_' in name
            }
    return Record(spec, found, course_of(losses), round(time.monotonic() - begin, 2), 'trainer', origin)


def _is_at_a_point(name: str) -> bool:
    """Whether a metric was evaluated after the run, e.g. test_accuracy_y or test_loss_x_running."""
    return name.removesuffix('_running').rpartition('_')[2] in ('x', 'y', 'own')
