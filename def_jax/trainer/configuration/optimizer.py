"""Builds the optimizer of a configuration, passing keys to the library's arguments by name."""

import inspect
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from def_jax import get_method, random_block
from def_jax.trainer.configuration.defaults import KEYS
from def_jax.trainer.configuration.factories import Factory, find, said
from def_jax.trainer.configuration.optimizers import OPTIMIZERS, sgd
from def_jax.trainer.configuration.schedules import SCHEDULES
from def_jax.types import AxisName

__all__ = ['find_optimizer', 'find_outer', 'find_schedule', 'make_optimizer', 'make_schedule']


def find_optimizer(config: Mapping[str, Any]) -> Factory:
    """The factory of the optimizer; ValueError if there is none or a key has no effect on it."""
    keys = {'momentum': KEYS['momentum'].default}
    if config['optimizer'] != 'sgd':
        keys['weight_decay'] = 0
    return find('optimizer', config, OPTIMIZERS, required=['learning_rate'], keys=keys)


def find_outer(config: Mapping[str, Any]) -> Factory | None:
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


def find_schedule(config: Mapping[str, Any]) -> Factory:
    """The factory of the schedule; ValueError if there is none or a key has no effect on it."""
    required, name = ['learning_rate', 'num_steps'], 'learning_rate_drops'
    keys = {name: KEYS[name].default}
    return find('schedule', config, SCHEDULES, required=required, keys=keys)


def make_schedule(config: Mapping[str, Any], num_steps: int) -> optax.Schedule:
    """The learning rate as a function of the step, for a run of `num_steps`.

    Raises:
        ValueError: if the factory fails, or returns no schedule.
    """
    factory = find_schedule(config)
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
    if outer := find_outer(config):
        options['outer'] = outer.make(optax.GradientTransformation, required={})
    factory = find_optimizer(config)
    local = optax.add_decayed_weights(config['weight_decay']) if factory.function is sgd else optax.identity()
    shared = factory.make(
        optax.GradientTransformation,
        required={'learning_rate': learning_rate},
        weight_decay=config['weight_decay'],
        momentum=config['momentum'],
    )
    compressor = method.compressor(**sent)
    try:
        return method.optimizer(local, shared, axis_name, compressor, seed=config['seed'], **options)
    except (TypeError, AttributeError) as error:  # the library tries the outer optimizer
        raise ValueError(
            f'{outer} with {dict(config["outer_options"])} cannot make an update: {said(error)}'
        ) from error
