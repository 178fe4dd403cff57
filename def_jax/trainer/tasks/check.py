"""Whether a task does what the trainer relies on, from its shapes alone: nothing is compiled."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from def_jax.traffic.drift import axes_of_results
from def_jax.trainer.errors import explained
from def_jax.trainer.experiment import Experiment
from def_jax.trainer.tasks.base import Task

__all__ = ['check']

_Shapes = Mapping[str, jax.ShapeDtypeStruct]
# What records of training and of diagnostics hold beside the task's metrics.
_RESERVED = {
    *('loss', 'taken', 'step', 'epoch', 'learning_rate', 'megabytes_sent', 'seconds', 'skipped', 'pending'),
    'variance',
}


def check(experiment: Experiment) -> None:
    """Raises ValueError unless the task, the model, the optimizer and the data set fit together."""
    config, workers, task = experiment.config, experiment.workers, experiment.task
    name, model = f'config.task={config.task!r}', f'config.model={config.model!r}'
    with explained(f'{model} cannot be initialised'):
        variables = experiment.abstract_variables
    if not isinstance(variables, Mapping) or variables.keys() != {'params', 'batch_stats'}:
        raise ValueError(f"{name}: init must return a dict of 'params' and 'batch_stats', which may be {{}}.")
    for key in ('params', 'batch_stats'):
        if variables[key] or key == 'params':
            _check_names(name, key, variables[key])
    if config.recalibrate_batches and not jax.tree.leaves(variables['batch_stats']):
        what = f'config.recalibrate_batches={config.recalibrate_batches} needs BatchNorm statistics'
        raise ValueError(f'{what}, and the model has none. Set it to 0.')
    optimizer = f'config.optimizer={config.optimizer!r} with {dict(config.optimizer_options)}'
    with explained(f'{optimizer} cannot make an update'):
        experiment.communication  # noqa: B018
    with explained(f'{optimizer} cannot be used'):
        experiment.is_per_worker  # noqa: B018
    with explained(f'config.method={config.method!r} and {optimizer}'):
        experiment.check_agreement()
    whole, part = (
        jax.tree.map(jnp.shape, x) for x in (variables['params'], workers.part(variables['params']))
    )
    if config.shards_per_worker > 1 and whole == part:
        what = f'config.shards_per_worker={config.shards_per_worker} divides no dimension of any matrix'
        raise ValueError(f'{what} of {model}. Choose a divisor of its width, or 1.')
    batch = _one_worker(next(experiment.train_batches(0)), workers.shape)
    _check_loss(task, name, variables, batch)
    batch = _one_worker(
        next(experiment.test_batches(experiment.evaluated[config.evaluate_on])), workers.shape
    )
    _check_sums(task, name, variables, batch)


def _check_names(name: str, place: str, tree: Any) -> None:
    """Raises ValueError unless a tree can be made from its arrays' names, as `def_jax.trainer.load` does."""
    if isinstance(tree, jax.ShapeDtypeStruct):
        return
    cure = 'make it a dict of arrays or of such dicts, with strings as keys'
    why = 'or the trained model could not be loaded'
    if not isinstance(tree, Mapping) or not tree:
        found = 'None' if tree is None else f'{"a" if tree else "an empty"} {type(tree).__name__}'
        raise ValueError(f'{name}: init returns {found} as {place!r}; {cure}, {why}.')
    for key, value in tree.items():
        if not isinstance(key, str):
            raise ValueError(f'{name}: init returns the key {key!r} in {place!r}; {cure}, {why}.')
        _check_names(name, f'{place}/{key}', value)


def _check_loss(task: Task, name: str, variables: Any, batch: _Shapes) -> None:
    key = jax.eval_shape(lambda: jax.random.key(0))
    with explained(f'{name}: loss fails on a training batch of {_shapes(batch)}'):
        returned = jax.eval_shape(task.loss, variables['params'], variables['batch_stats'], batch, key)
    try:
        loss, (figures, batch_stats) = returned
        scalars = {'loss': loss, **figures}
    except (TypeError, ValueError):
        raise ValueError(f'{name}: loss must return (loss, (metrics, batch_stats)).') from None
    _check_scalars(name, 'loss', scalars)
    if reserved := sorted(figures.keys() & _RESERVED):
        raise ValueError(
            f'{name}: a metric of loss must not be called {reserved[0]!r}, as the records use it.'
        )
    shapes = [jax.tree.map(jnp.shape, stats) for stats in (batch_stats, variables['batch_stats'])]
    if shapes[0] != shapes[1]:
        raise ValueError(f'{name}: loss must return statistics of the shapes that init returns.')


def _check_sums(task: Task, name: str, variables: Any, batch: _Shapes) -> None:
    with explained(f'{name}: test_sums fails on a batch of {_shapes(batch)}'):
        jaxpr, sums = jax.make_jaxpr(task.test_sums, return_shape=True)(variables, batch)
    if not isinstance(sums, dict) or not sums.keys() >= {'loss', 'count'}:
        raise ValueError(f"{name}: test_sums must return a dict with 'loss' and 'count'.")
    _check_scalars(name, 'test_sums', sums)
    ones = {key: np.ones((), np.float32) for key in sums}
    with np.errstate(all='ignore'), explained(f'{name}: metrics fails on sums of one'):
        metrics = task.metrics(ones)
    if (headline := task.headline.name) not in metrics:
        raise ValueError(
            f'{name}: metrics lacks {headline!r}, the headline metric; it has {sorted(metrics)}.'
        )
    from_mask = [frozenset[str]()] * len(jax.tree.leaves(variables))
    from_mask += [frozenset({'mask'} & {part}) for part in sorted(batch)]
    for key, depends in zip(sorted(sums), axes_of_results(jaxpr.jaxpr, from_mask), strict=True):
        if not depends:
            why = "ignores batch['mask'], so padding would count. Multiply what is summed by the mask"
            raise ValueError(f'{name}: the sum {key!r} of test_sums {why}.')


def _check_scalars(name: str, function: str, values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        shape, dtype = getattr(value, 'shape', None), getattr(value, 'dtype', None)
        if shape != () or dtype is None or not jnp.issubdtype(dtype, jnp.floating):
            found = f'{dtype}{list(shape or [])}'
            raise ValueError(f'{name}: {key!r} of {function} must be a float [], but is {found}.')


def _one_worker(batch: dict[str, np.ndarray], workers: tuple[int, ...]) -> _Shapes:
    """The shapes of one worker's part of a batch."""
    return {name: jax.ShapeDtypeStruct(x.shape[len(workers) :], x.dtype) for name, x in batch.items()}


def _shapes(batch: _Shapes) -> str:
    return ', '.join(f'{name} {each.dtype}{list(each.shape)}' for name, each in batch.items())
