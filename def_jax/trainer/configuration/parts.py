"""The parts that a configuration names, and what is made of them.

The library gets the keys that are its arguments by name, and checks them.
"""

import inspect
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from def_jax import get_method, hold_skipped, random_block
from def_jax.beyond.integers import check_levels
from def_jax.trainer.configuration.defaults import KEYS
from def_jax.trainer.configuration.factories import Factory, find, said
from def_jax.trainer.configuration.optimizers import OPTIMIZERS, sgd
from def_jax.trainer.configuration.schedules import SCHEDULES
from def_jax.trainer.data.catalogue import FACTORIES
from def_jax.trainer.data.dataset import Dataset
from def_jax.trainer.models import LANGUAGE_MODELS, MODELS
from def_jax.trainer.tasks import TASKS
from def_jax.trainer.tasks.base import Task
from def_jax.types import AxisName

__all__ = ['check_parts', 'make_dataset', 'make_optimizer', 'make_schedule', 'make_task']


def check_parts(config: Mapping[str, Any]) -> None:
    """Raises ValueError unless everything but the optimizer is found and takes what it would get."""
    for named in (_find_task, _find_dataset, _find_model, _find_schedule):
        named(config)


def _find_dataset(config: Mapping[str, Any]) -> Factory:
    """The factory of the data set, which gets `data_dir` if it takes it; ValueError if there is none."""
    return find('dataset', config, FACTORIES)


def make_dataset(config: Mapping[str, Any]) -> Dataset:
    """Opens the data set, with as many examples as the configuration says.

    Raises:
        ValueError: if it cannot be opened, or has too few examples or no split to evaluate on.
        FileNotFoundError: if it is not prepared and cannot be downloaded.
    """
    dataset = (
        _find_dataset(config)
        .make(Dataset, required={}, data_dir=config['data_dir'] or None)
        .limited(
            train_examples=config['train_examples'],
            validation_examples=config['validation_examples'],
            test_examples=config['test_examples'],
        )
    )
    dataset.evaluated(config['evaluate_on'])  # that there is one
    if config['evaluate_train_examples'] > len(dataset.train):
        raise ValueError(
            f'evaluate_train_examples={config["evaluate_train_examples"]} must be at most '
            f'{len(dataset.train)}, the size of the training split.'
        )
    return dataset


def _find_model(config: Mapping[str, Any]) -> Factory:
    """The factory of the model, which gets `dtype` and the data set's `model_options` if it takes them.

    Raises:
        ValueError: if there is none, or it cannot compute in `compute_dtype`.
    """
    factory = find('model', config, {**MODELS, **LANGUAGE_MODELS})
    if config['compute_dtype'] != 'float32' and not factory.takes('dtype'):
        raise ValueError(
            f'compute_dtype={config["compute_dtype"]!r} has no effect on {factory}, which takes no dtype. '
            "Set compute_dtype='float32'."
        )
    return factory


def _find_task(config: Mapping[str, Any]) -> Factory:
    """The factory of the task, which must take `model` and `dataset`; ValueError if there is none."""
    return find('task', config, TASKS, required=['model', 'dataset'])


def make_task(config: Mapping[str, Any], dataset: Dataset) -> Task:
    """Builds the model, and the task of training it on a data set.

    Raises:
        ValueError: if a factory fails, or returns something else.
    """
    offered = {**dataset.model_options, 'dtype': jnp.dtype(config['compute_dtype'])}
    if (num_classes := {**offered, **config['model_options']}.get('num_classes', 1)) < 1:
        raise ValueError(
            f'{num_classes=} of the model must be at least 1: the number of labels in the data set.'
        )
    model = _find_model(config).make(object, required={}, **offered)
    return _find_task(config).make(Task, required={'model': model, 'dataset': dataset})


def _find_schedule(config: Mapping[str, Any]) -> Factory:
    """The factory of the schedule; ValueError if there is none or a key has no effect on it."""
    required, name = ['learning_rate', 'num_steps'], 'learning_rate_drops'
    return find('schedule', config, SCHEDULES, required=required, keys={name: KEYS[name].default})


def make_schedule(config: Mapping[str, Any], num_steps: int) -> optax.Schedule:
    """The learning rate as a function of the step, for a run of `num_steps`.

    Raises:
        ValueError: if the factory fails, or returns no schedule.
    """
    factory = _find_schedule(config)
    required = {'learning_rate': config['learning_rate'], 'num_steps': num_steps}
    schedule = factory.make(object, required=required, learning_rate_drops=config['learning_rate_drops'])
    if not callable(schedule):
        raise ValueError(f'{factory} must return a function of the step, but returned {schedule!r}.')
    try:
        rate = jax.eval_shape(lambda step: jnp.asarray(schedule(step)), jax.ShapeDtypeStruct((), jnp.int32))
    except Exception as error:  # it may be anyone's code
        raise ValueError(f'{factory} returned no schedule: for a step, it raises {error!r}.') from error
    if rate.shape or not jnp.issubdtype(rate.dtype, jnp.floating):
        raise ValueError(
            f'{factory} must map a step to a number, but maps it to {rate.dtype}{list(rate.shape)}.'
        )
    return schedule


def make_optimizer(
    config: Mapping[str, Any], learning_rate: optax.ScalarOrSchedule, axis_name: AxisName
) -> optax.GradientTransformation:
    """The configured optimizer and the communication of the configured method.

    Weight decay is taken where the gradient is, since the train step passes the detached point as `params`:
    for `sgd` it is the gradient of the L2 penalty, Algorithm 1, line 6; all others get `weight_decay` as an
    argument, which in optax means decay by η · weight_decay apart from the gradient.

    Raises:
        ValueError: if the library or the optimizer rejects a key.
    """
    method = get_method(config['method'])
    given = {name: config[name] for name, key in KEYS.items() if key.is_librarys}
    sent = {name: given[name] for name in inspect.signature(random_block).parameters}
    options = {name: given[name] for name in given if name not in sent or name == 'ratio'}
    if outer := _find_outer(config):
        options['outer'] = outer.make(optax.GradientTransformation, required={})
    factory = _find_optimizer(config)
    local = optax.add_decayed_weights(config['weight_decay']) if factory.function is sgd else optax.identity()
    shared = factory.make(
        optax.GradientTransformation,
        required={'learning_rate': learning_rate},
        weight_decay=config['weight_decay'],
        momentum=config['momentum'],
    )
    compressor = method.compressor(**sent)
    try:
        optimizer = method.optimizer(local, shared, axis_name, compressor, seed=config['seed'], **options)
    except (TypeError, AttributeError) as error:  # the library tries the outer optimizer
        raise ValueError(
            f'{outer} with {dict(config["outer_options"])} cannot make an update: {said(error)}'
        ) from error
    if jnp.dtype(config['wire_dtype']) == jnp.int8:
        check_levels(config['num_workers'])  # as the library does once it knows how many there are
    return hold_skipped(optimizer) if config['skip_nonfinite'] else optimizer


def _find_optimizer(config: Mapping[str, Any]) -> Factory:
    """The factory of the optimizer; ValueError if there is none or a key has no effect on it."""
    keys = {'momentum': KEYS['momentum'].default}
    if config['optimizer'] != 'sgd':
        keys['weight_decay'] = 0
    return find('optimizer', config, OPTIMIZERS, required=['learning_rate'], keys=keys)


def _find_outer(config: Mapping[str, Any]) -> Factory | None:
    """The factory of the outer optimizer, if there is one; ValueError if it or its options have no effect."""
    free = 'outer' in get_method(config['method']).options
    if not config['outer']:
        if free and (options := dict(config['outer_options'])):
            raise ValueError(
                f'outer_options={options} has no effect without outer. Set outer, or outer_options={{}}.'
            )
        return None
    if not free:
        raise ValueError(
            f'outer={config["outer"]!r} has no effect on method={config["method"]!r}, which fixes it or '
            "sends no updates. Set outer=''."
        )
    return find('outer', config, OPTIMIZERS)
