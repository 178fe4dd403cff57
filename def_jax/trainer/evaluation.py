"""The metrics of the task at every point of a method: x, y, and each worker's own model."""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from def_jax.trainer.experiment import Experiment
from def_jax.trainer.launch import processes
from def_jax.trainer.launch.exits import EndedError, ExitCode
from def_jax.trainer.state import TrainState
from def_jax.trainer.tasks.base import Task

__all__ = ['DivergedError', 'check_finite', 'figures_of', 'make_evaluate']


class DivergedError(EndedError):
    """The loss of a worker, or on the split that is evaluated, became NaN or infinite."""

    exit_code = ExitCode.DIVERGED

    def __init__(self, step: int, worker: int | None, loss: float, split: str = 'test'):
        where = f'worker {worker}' if worker is not None else f'the {split} set'
        cure = 'Try a smaller --config.learning_rate or --config.ratio, and def instead of --config.method=ef'
        super().__init__(
            f'the loss of {where} is {loss} at step {step}. {cure}. The last checkpoint is kept.'
        )
        self.step, self.worker = step, worker


def make_evaluate(experiment: Experiment) -> Callable[[TrainState, int], dict[str, Any]]:
    """Returns a function from a state and its step to a record of the metrics on the evaluated splits.

    It has `test_loss_x` and so on for each split, metric and point; for 'own' means over workers, and
    `test_accuracy_own_std` of the headline metric. If BatchNorm's statistics are recalibrated,
    `test_accuracy_x_running` is with the running ones. The function raises DivergedError on a loss that is
    not finite.
    """
    steps, workers = experiment.steps, experiment.workers

    def sums(split: str, point: str, variables: dict) -> dict[str, np.ndarray]:
        """Sums over the split: [] for a shared model, [K] for the workers' own."""
        totals = []
        for batch in experiment.test_batches(split, whole=point == 'own'):
            if point == 'own':
                total = steps.own_test_sums(variables, {name: x[0] for name, x in batch.items()})
                totals.append({name: workers.local(x) for name, x in total.items()})
            else:
                totals.append(jax.device_get(steps.test_sums(variables, workers.place(batch))))
        summed = {name: np.sum([total[name] for total in totals], axis=0) for name in totals[0]}
        if point == 'own':
            summed = {name: processes.gather(x, workers.heads) for name, x in summed.items()}
        return {name: x.reshape(-1) for name, x in summed.items()}

    num_batches = experiment.config.recalibrate_batches
    statistics = {own: steps.batch_statistics(own_params=own) for own in (False, True)} if num_batches else {}

    def recalibrated(state: TrainState, points: dict[str, dict]) -> dict[str, dict]:
        """The points with BatchNorm's statistics of the next batches: running ones are of past points."""
        totals: dict[str, Any] = {}
        for batch in itertools.islice(experiment.train_batches(int(state.step)), num_batches):
            placed = workers.place(batch)
            for point, variables in points.items():
                measured = workers.settled(statistics[point == 'own'](state, variables['params'], placed))
                total = totals.get(point)
                totals[point] = measured if total is None else jax.tree.map(jnp.add, total, measured)
        means = {point: jax.tree.map(lambda s: s / num_batches, total) for point, total in totals.items()}
        return {point: variables | {'batch_stats': means[point]} for point, variables in points.items()}

    def evaluate(state: TrainState, step: int) -> dict[str, Any]:
        record: dict[str, Any] = {'step': step}
        points, own = workers.settled(steps.outputs(state))
        batch_stats = points['x']['batch_stats']
        points |= {point: {'params': params, 'batch_stats': batch_stats} for point, params in own.items()}
        for point, variables in (recalibrated(state, points) if num_batches else points).items():
            for split in experiment.evaluated:
                total = sums(split, point, variables)
                check_finite(step, split, total)
                record |= figures_of(experiment.task, split, point, point, total)
                if num_batches:
                    total = sums(split, point, points[point])
                    record |= figures_of(experiment.task, split, point, f'{point}_running', total)
        return record

    return evaluate


def check_finite(step: int, split: str, total: dict[str, np.ndarray]) -> None:
    """Raises DivergedError unless the loss over a split is finite."""
    if not np.isfinite(total['loss']).all():
        raise DivergedError(step, None, float(total['loss'].sum()), split)


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
