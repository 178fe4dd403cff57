"""Builds the optimizer of a configuration, passing keys to the library's arguments by name."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from def_jax import get_method, random_block
from def_jax.compressors import Compressor
from def_jax.mesh.collectives import AxisName
from def_jax.methods import OPTIONS
from def_jax.trainer.configuration.factories import Factory, find
from def_jax.trainer.configuration.schedules import SCHEDULES

__all__ = [
    'LIBRARY_KEYS',
    'OPTIMIZERS',
    'find_optimizer',
    'find_outer',
    'find_schedule',
    'make_compressor',
    'make_optimizer',
    'make_schedule',
]

LIBRARY_KEYS = tuple(name for name in OPTIONS if name != 'outer')


def sgd(
    learning_rate: optax.ScalarOrSchedule, *, momentum: float = 0.9, nesterov: bool = False
) -> optax.GradientTransformation:
    """SGD with momentum, Eq. 11. `make_optimizer` adds the penalty to the gradient, as in the paper."""
    return optax.sgd(learning_rate, momentum=momentum or None, nesterov=nesterov)  # None allocates no buffer


@functools.wraps(optax.contrib.muon)
def muon(learning_rate: optax.ScalarOrSchedule, *, weight_decay: float = 0.0, **options: Any):
    """optax's Muon, with weight decay also for the parameters that it leaves to Adam."""
    options.setdefault('adam_weight_decay', weight_decay)
    return optax.contrib.muon(learning_rate, weight_decay=weight_decay, **options)


OPTIMIZERS: Mapping[str, Callable[..., optax.GradientTransformation]] = {
    'sgd': sgd,
    'adamw': optax.adamw,
    'lion': optax.lion,
    'muon': muon,
}


def find_optimizer(config: Mapping[str, Any]) -> Factory:
    """The factory of the optimizer; ValueError if there is none or a key has no effect on it."""
    keys = {'momentum': 0.9} if config['optimizer'] == 'sgd' else {'momentum': 0.9, 'weight_decay': 0}
    return find('optimizer', config, OPTIMIZERS, required=['learning_rate'], keys=keys)


def find_outer(config: Mapping[str, Any]) -> Factory | None:
    """The factory of the outer optimizer, if there is one; ValueError if it has no effect on the method."""
    if not config['outer']:
        return None
    if not get_method(config['method']).outer_is_free:
        raise ValueError(
            f'outer={config["outer"]!r} has no effect on method={config["method"]!r}, which fixes it or '
            "sends no updates. Set outer=''."
        )
    return find('outer', config, OPTIMIZERS)


def find_schedule(config: Mapping[str, Any]) -> Factory:
    """The factory of the schedule; ValueError if there is none or a key has no effect on it."""
    required, keys = ['learning_rate', 'num_steps'], {'learning_rate_drops': (0.5, 0.75)}
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


def make_compressor(config: Mapping[str, Any]) -> Compressor:
    """The compressor of a configuration.

    Raises:
        ValueError: if the library rejects a key.
    """
    arguments = inspect.signature(random_block).parameters
    return get_method(config['method']).compressor(**{key: config[key] for key in arguments})


def make_optimizer(
    config: Mapping[str, Any], learning_rate: optax.ScalarOrSchedule, axis_name: AxisName, seed: Any
) -> optax.GradientTransformation:
    """The configured optimizer and the communication of the configured method.

    Weight decay is taken where the gradient is, since the train step passes the detached point as `params`:
    for `sgd` it is the gradient of the L2 penalty, Algorithm 1, line 6; all others get `weight_decay` as an
    argument, which in optax means decay by η · weight_decay apart from the gradient.

    Args:
        config: a configuration.
        learning_rate: η.
        axis_name: the axis over workers.
        seed: selects the blocks. A traced seed is not compiled in, so runs that differ only in the seed share
            their compiled programs.

    Returns:
        The optimizer.

    Raises:
        ValueError: if the library or the optimizer rejects a key.
    """
    method = get_method(config['method'])
    blocks = inspect.signature(random_block).parameters.keys() - {'ratio'}
    options = {key: config[key] for key in LIBRARY_KEYS if key not in blocks}
    if config['auto_detach']:
        options['detach'] = 'auto'
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
    return method.optimizer(local, shared, axis_name, make_compressor(config), seed=seed, **options)
