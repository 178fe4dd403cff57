"""`--evaluate_only`: a run's newest checkpoint on any split."""

import os
from pathlib import Path
from typing import Any

import ml_collections
import rich.console

from def_jax.trainer import console as console_lib
from def_jax.trainer.checkpointing import workdir
from def_jax.trainer.checkpointing.checkpoints import Checkpoints
from def_jax.trainer.evaluation import evaluate
from def_jax.trainer.experiment import build
from def_jax.trainer.launch import processes
from def_jax.trainer.tasks.base import Measure

__all__ = ['evaluate_only']


def evaluate_only(
    config: ml_collections.ConfigDict,
    folder: str | os.PathLike,
    split: str,
    console: rich.console.Console | None = None,
) -> dict[str, Any]:
    """Evaluates the newest checkpoint of a run at each of its points; writes nothing.

    Args:
        config: the run's configuration; workers, devices and what is evaluated may differ from the run's.
        folder: the run's folder.
        split: 'train', 'validation' or 'test'.
        console: where to show the metrics; by default the standard output of process 0.

    Returns:
        The record: the step, and for each metric and point e.g. `test_accuracy_y`.

    Raises:
        ValueError: if the folder holds no such run or no checkpoint, or there is no such split.
    """
    with processes.naming_the_lost():
        if not (Path(folder).expanduser() / 'config.json').exists():
            raise ValueError(f'workdir={str(folder)!r} holds no run. Give the folder of one.')
        config = config.copy_and_resolve_references()
        config.elastic = False
        if split != 'train':
            config.evaluate_on = split
        experiment = build(config)
        run = workdir.claim(folder, experiment.config, exists=True)
        with Checkpoints(run, experiment) as checkpoints:
            state = checkpoints.restore(experiment.steps.init())
        step = int(state.step)
        if not step:
            raise ValueError(f'the run in {run} has no checkpoint yet, so there is nothing to evaluate.')
        dataset = experiment.dataset
        whole = dataset.train if split == 'train' else dataset.evaluated(split)
        record = evaluate(experiment, state, step, {split: whole})
        console = console or rich.console.Console(quiet=not processes.is_first())
        measure = Measure(split, experiment.task.headline)
        title = f'{experiment.title} after {step:,} steps, {len(whole):,} {split} examples'
        for line in checkpoints.notes:
            console_lib.say(console, line)
        points, answers = experiment.method.points, dict[str, str](experiment.answers)  # type: ignore[arg-type]
        console.print(console_lib.table_of_points(title, record, points, answers, measure))
        return record
