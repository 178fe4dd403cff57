"""What a configuration names, made: the library gets the keys that are its arguments, and checks them."""

import dataclasses
import functools
import inspect
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax

from def_jax import def_adamw
from def_jax.baselines.methods import METHODS, OPTIONS, Method
from def_jax.compressors import Compressor
from def_jax.trainer.configuration.defaults import KEYS
from def_jax.trainer.configuration.factories import find
from def_jax.trainer.configuration.optimizers import sgd
from def_jax.trainer.data.dataset import Dataset
from def_jax.trainer.errors import one_line
from def_jax.trainer.state import PerWorker
from def_jax.trainer.tasks.base import Task
from def_jax.types import AxisName

__all__ = [
    *('complete', 'find_method', 'make_compressor', 'make_dataset', 'make_optimizer', 'make_schedule'),
    'make_task',
]

_BLOCKS = ('order', 'allocation')


def make_dataset(config: Mapping[str, Any]) -> Dataset:
    """Opens the data set, with as many examples as the configuration says."""
    dataset = find('dataset', config).make(Dataset, data_dir=config['data_dir'] or None)
    names = ('train_examples', 'validation_examples', 'test_examples', 'evaluate_train_examples')
    dataset = dataset.limited(**{name: config[name] for name in names})
    dataset.evaluated(config['evaluate_on'])  # that there is one
    return dataset


def make_task(config: Mapping[str, Any], dataset: Dataset) -> Task:
    """Builds the model, which gets `dtype` and the data set's `model_options`, and the task."""
    dtype = jnp.dtype(config['compute_dtype'])
    model = find('model', config).make(object, **{**dataset.model_options, 'dtype': dtype})
    return find('task', config).make(Task, model=model, dataset=dataset)


def make_schedule(config: Mapping[str, Any], num_steps: int) -> optax.Schedule:
    """The learning rate as a function of the step, for a run of `num_steps`."""
    factory = find('schedule', config)
    given = {name: config[name] for name in ('learning_rate', 'learning_rate_drops')}
    schedule = factory.make(object, num_steps=num_steps, **given)
    try:
        rate = jax.eval_shape(lambda step: jnp.asarray(schedule(step)), jax.ShapeDtypeStruct((), jnp.int32))
    except Exception as error:  # it may be anyone's code
        raise ValueError(f'{factory} returned no schedule: for a step, it raises {error!r}.') from error
    if rate.shape or not jnp.issubdtype(rate.dtype, jnp.floating):
        raise ValueError(f'{factory} must map a step to a number, but maps it to {rate.str_short()}.')
    return schedule


def make_compressor(config: Mapping[str, Any]) -> Compressor:
    """The blocks, of the configured method."""
    sent = {name: value for name, value in _given(config).items() if name in ('ratio', 'bits', *_BLOCKS)}
    return find_method(config).compressor(**sent)


def make_optimizer(
    config: Mapping[str, Any], learning_rate: optax.ScalarOrSchedule, axis_name: AxisName
) -> optax.GradientTransformation:
    """The configured optimizer and the communication of the configured method.

    The L2 penalty of `sgd` has its gradient at the detached point, Algorithm 1, line 6.
    """
    method, factory, given = find_method(config), find('optimizer', config), _given(config)
    passed: dict[str, Any] = {'learning_rate': learning_rate, 'weight_decay': config['weight_decay']}
    if config['outer']:
        given['outer'] = find('outer', config).make(optax.GradientTransformation)
    if taken := _preset(config):
        what = f'method={config["method"]!r} with optimizer={config["optimizer"]!r}'
        for name in [name for name in given if name not in (*taken, 'ratio')]:
            if given.pop(name) != KEYS[name].default:
                raise ValueError(f'{name}={config[name]!r} has no effect on {what}; leave it out.')
        dataclasses.replace(factory, function=def_adamw).check_options()
        passed |= {'compression': given.pop('ratio'), 'axis_name': axis_name, 'seed': config['seed'], **given}
        return def_adamw(**passed, **factory.options)
    momentum, local = config['momentum'], optax.identity()
    if factory.function is sgd:
        local = optax.add_decayed_weights(config['weight_decay'])
    if without := factory.function is sgd and method.without_momentum:
        momentum = 0
    shared = factory.make(optax.GradientTransformation, **passed, momentum=momentum)
    if without:
        shared = optax.chain(shared, optax.scale(1 / (1 - config['momentum'])))
    options = {name: value for name, value in {**method.defaults, **given}.items() if name not in _BLOCKS}
    compressor = make_compressor(config)
    try:
        return method.optimizer(local, shared, axis_name, compressor, seed=config['seed'], **options)
    except (TypeError, AttributeError) as error:  # the library tries the outer optimizer
        outer = f'outer={config["outer"]!r} with {dict(config["outer_options"])}'
        raise ValueError(f'{outer} cannot make an update: {one_line(error, place=True)}') from error


def find_method(config: Mapping[str, Any]) -> Method:
    """The method: one of `METHODS`, or the factory of a transformation that averages over `axis_name`."""
    if config['method'] in METHODS:
        return METHODS[config['method']]
    factory = find('method', config)

    @functools.wraps(factory.function)
    def link(**given: Any) -> optax.GradientTransformation:
        made = factory.make(optax.GradientTransformation, **given)

        def update(updates, state, params=None):
            updates, inner = made.update(updates, state.state, params)
            return updates, PerWorker(inner)

        return optax.GradientTransformation(lambda params: PerWorker(made.init(params)), update)

    free = inspect.signature(factory.function).parameters.keys() - factory.options.keys()
    takes = tuple(name for name in OPTIONS if name in free)
    return Method(factory.name.rpartition(':')[2], 'x', kind='baseline', link=link, takes=takes)


def complete(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The configuration with the method's own values in place of None, as a run records it."""
    config, method = ml_collections.ConfigDict(config), find_method(config)
    preset = {name: each.default for name, each in _preset(config).items()}
    for name in [name for name, key in KEYS.items() if not key.check and config[name] is None]:
        config[name] = {**OPTIONS, **method.sends, **method.options, **preset}[name]
    return config.lock()


def _preset(config: Mapping[str, Any]) -> Mapping[str, inspect.Parameter]:
    """The arguments of `def_adamw`, if the configuration means it; else nothing."""
    meant = config['optimizer'] == 'adamw' and find_method(config).in_bytes
    return inspect.signature(def_adamw).parameters if meant else {}


def _given(config: Mapping[str, Any]) -> dict[str, Any]:
    """The library's arguments, but for those that the method chooses."""
    keys = {name: key for name, key in KEYS.items() if not key.check}
    return {name: config[name] for name, key in keys.items() if (config[name], key.default) != (None, None)}
