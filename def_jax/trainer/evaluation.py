"""The metrics of the task at every point of a method: x, y, and each worker's own model."""

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from def_jax.trainer.data import prefetch
from def_jax.trainer.data.dataset import Split
from def_jax.trainer.experiment import Experiment
from def_jax.trainer.launch.exits import EndedError, ExitCode
from def_jax.trainer.state import TrainState
from def_jax.trainer.tasks.base import Task

__all__ = ['DivergedError', 'evaluate', 'figures_of', 'record_of', 'trained_variables']


class DivergedError(EndedError):
    """The loss of a worker, or on the split that is evaluated, became NaN or infinite."""

    exit_code = ExitCode.DIVERGED

    def __init__(self, step: int, worker: int | None, loss: float, split: str = 'test', skipped: int = 0):
        where = f'worker {worker}' if worker is not None else f'the {split} set'
        what = f'the loss of {where} is {loss} at step {step}'
        if skipped:  # for an update that was not finite, if the loss is
            what = f'{skipped} steps in a row were skipped; at the last, {what}'
        blocks = 'with blocks, also a smaller --config.ratio, and def instead of ef'
        cure = f'Try a smaller --config.learning_rate; {blocks}'
        super().__init__(f'{what}. {cure}. Earlier checkpoints are kept.')
        self.step, self.worker = step, worker


def evaluate(
    experiment: Experiment, state: TrainState, step: int, splits: Mapping[str, Split] | None = None
) -> dict[str, Any]:
    """A record of the metrics on `splits`, by default the run's evaluated ones, at a state after a step.

    It has `test_loss_x` and so on for each split, metric and point; for 'own' means over workers, and
    `test_accuracy_own_std` of the headline metric. If BatchNorm's statistics are recalibrated,
    `test_accuracy_x_running` is with the running ones. Raises DivergedError on a loss that is not finite.
    """
    sums: dict[tuple[str, str, str], list[dict]] = {}
    splits = splits or experiment.evaluated
    for point, variants in _variants(experiment, state):
        for (split, whole), (name, variables) in itertools.product(splits.items(), variants.items()):
            sums.setdefault((split, point, name), []).append(_sums(experiment, whole, variables))
    stacked = {key: jax.tree.map(lambda *each: np.stack(each), *models) for key, models in sums.items()}
    return record_of(experiment.task, step, stacked)


def trained_variables(experiment: Experiment, state: TrainState) -> dict[str, dict]:
    """By point, x and y if the method has it, the variables that `evaluate` judges, as NumPy arrays."""
    fetch, found = experiment.workers.fetch, _variants(experiment, state, own=False)
    return {point: fetch(variants[point]) for point, variants in found}


def _variants(
    experiment: Experiment, state: TrainState, *, own: bool = True
) -> Iterator[tuple[str, dict[str, dict]]]:
    """The models at every point, and by name the variables of each to evaluate: the first is the point's."""
    count = experiment.config.recalibrate_batches
    batches = list(itertools.islice(experiment.train_batches(int(state.step)), count)) if count else []
    for point, running in _models(experiment, state, own):
        if batches:
            recalibrated = _recalibrated(experiment, state, running, batches)
            yield point, {point: recalibrated, f'{point}_running': running}
        else:
            yield point, {point: running}


def _models(experiment: Experiment, state: TrainState, own: bool) -> Iterator[tuple[str, dict]]:
    """The variables at every point; one after the other, those of all workers at 'own'."""
    steps, workers = experiment.steps, experiment.workers
    points = workers.settled(steps.outputs(state))
    yield from points.items()
    if own and 'own' in experiment.method.points:
        for worker in range(experiment.config.num_workers):
            first = worker * experiment.config.inside
            params = workers.settled(steps.own_params(state, np.int32(first)))
            yield 'own', points['x'] | {'params': params}


def _sums(experiment: Experiment, split: Split, variables: dict) -> dict[str, np.ndarray]:
    """Sums over a split, each []."""
    with prefetch.ahead(experiment.test_batches(split), experiment.workers.place) as batches:
        totals = [jax.device_get(experiment.steps.test_sums(variables, batch)) for batch in batches]
    return jax.tree.map(lambda *each: np.sum(each, axis=0), *totals)


def _recalibrated(experiment: Experiment, state: TrainState, variables: dict, batches: list[dict]) -> dict:
    """The variables with BatchNorm's statistics of the next batches: running ones are of past points."""
    steps, workers = experiment.steps, experiment.workers
    measured = [
        workers.settled(steps.batch_statistics(state, variables['params'], workers.place(batch)))
        for batch in batches
    ]
    return variables | {'batch_stats': jax.tree.map(lambda *each: sum(each) / len(batches), *measured)}


def record_of(task: Task, step: int, sums: Mapping[tuple[str, str, str], dict[str, np.ndarray]]) -> dict:
    """A record, from sums by split, point and name, each [models]; DivergedError if a loss is not finite."""
    record: dict[str, Any] = {'step': step}
    for (split, point, name), total in sums.items():
        if not np.isfinite(total['loss']).all():
            raise DivergedError(step, None, float(total['loss'].sum()), split)
        record |= figures_of(task, split, point, name, total)
    return record


def figures_of(
    task: Task, split: str, point: str, name: str, total: dict[str, np.ndarray]
) -> dict[str, float]:
    """The metrics of a record, from the sums over a split."""
    metrics = task.metrics(total)
    figures = {f'{split}_{key}_{name}': np.mean(value) for key, value in metrics.items()}
    if point == 'own':
        headline = task.headline.name
        figures[f'{split}_{headline}_{name}_std'] = np.std(metrics[headline])
    return {key: float(value) for key, value in figures.items()}
