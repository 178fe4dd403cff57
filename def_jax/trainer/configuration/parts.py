"""What a configuration names: found, and made.

The library gets the keys that are its arguments by name, and checks them.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from def_jax import def_adamw
from def_jax.compressors import Compressor
from def_jax.trainer.configuration.defaults import KEYS
from def_jax.trainer.configuration.factories import find
from def_jax.trainer.configuration.methods import adamw_preset, find_method
from def_jax.trainer.configuration.optimizers import sgd
from def_jax.trainer.data.dataset import Dataset
from def_jax.trainer.errors import one_line
from def_jax.trainer.tasks.base import Task
from def_jax.types import AxisName

__all__ = ['make_compressor', 'make_dataset', 'make_optimizer', 'make_schedule', 'make_task']

_BLOCKS = ('order', 'allocation')


def make_dataset(config: Mapping[str, Any]) -> Dataset:
    """Opens the data set, with as many examples as the configuration says.

    Raises:
        ValueError: if it cannot be opened, or has too few examples or no split to evaluate on.
        FileNotFoundError: if it is not prepared and cannot be downloaded.
    """
    dataset = (
        find('dataset', config)
        .make(Dataset, data_dir=config['data_dir'] or None)
        .limited(
            **{name: config[name] for name in ('train_examples', 'validation_examples', 'test_examples')}
        )
    )
    dataset.evaluated(config['evaluate_on'])  # that there is one
    if config['evaluate_train_examples'] > len(dataset.train):
        raise ValueError(
            f'evaluate_train_examples={config["evaluate_train_examples"]} must be at most '
            f'{len(dataset.train)}, the size of the training split.'
        )
    return dataset


def make_task(config: Mapping[str, Any], dataset: Dataset) -> Task:
    """Builds the model, which gets `dtype` and the data set's `model_options`, and the task of training it.

    Raises:
        ValueError: if a factory fails, or returns something else.
    """
    offered = {**dataset.model_options, 'dtype': jnp.dtype(config['compute_dtype'])}
    if (num_classes := {**offered, **config['model_options']}.get('num_classes', 1)) < 1:
        raise ValueError(
            f'{num_classes=} of the model must be at least 1: the number of labels in the data set.'
        )
    model = find('model', config).make(object, **offered)
    return find('task', config).make(Task, model=model, dataset=dataset)


def make_schedule(config: Mapping[str, Any], num_steps: int) -> optax.Schedule:
    """The learning rate as a function of the step, for a run of `num_steps`.

    Raises:
        ValueError: if the factory fails, or returns no schedule.
    """
    factory = find('schedule', config)
    given = {name: config[name] for name in ('learning_rate', 'learning_rate_drops')}
    schedule = factory.make(object, num_steps=num_steps, **given)
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
    """The blocks, of the configured method; ValueError if it rejects a key."""
    sent = {name: value for name, value in _given(config).items() if name in ('ratio', 'bits', *_BLOCKS)}
    return find_method(config).compressor(**sent)


def _given(config: Mapping[str, Any]) -> dict[str, Any]:
    """The library's arguments, but for those that the method chooses."""
    names = [name for name, key in KEYS.items() if key.checked_by_library]
    return {
        name: config[name] for name in names if config[name] is not None or KEYS[name].default is not None
    }


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
    method, factory = find_method(config), find('optimizer', config)
    given = _given(config)
    outer = find('outer', config) if config['outer'] else None
    if outer:
        given['outer'] = outer.make(optax.GradientTransformation)
    if adamw_preset(config):
        return _adamw_preset(config, learning_rate, axis_name, given)
    penalty, momentum = config['weight_decay'], config['momentum']
    local = optax.add_decayed_weights(penalty) if factory.function is sgd else optax.identity()
    scale = 1.0
    if method.without_momentum and factory.function is sgd:
        scale, momentum = 1 / (1 - momentum), 0
    shared = factory.make(
        optax.GradientTransformation, learning_rate=learning_rate, weight_decay=penalty, momentum=momentum
    )
    shared = shared if scale == 1 else optax.chain(shared, optax.scale(scale))
    options = {name: value for name, value in {**method.defaults, **given}.items() if name not in _BLOCKS}
    compressor = make_compressor(config)
    try:
        return method.optimizer(local, shared, axis_name, compressor, seed=config['seed'], **options)
    except (TypeError, AttributeError) as error:  # the library tries the outer optimizer
        why = one_line(error, place=True)
        raise ValueError(
            f'{outer} with {dict(config["outer_options"])} cannot make an update: {why}'
        ) from error


def _adamw_preset(
    config: Mapping[str, Any],
    learning_rate: optax.ScalarOrSchedule,
    axis_name: AxisName,
    given: Mapping[str, Any],
) -> optax.GradientTransformation:
    """`def_adamw` with what is given of its arguments; ValueError if anything else is."""
    what = "method='def_q' with optimizer='adamw'"
    taken, options = adamw_preset(config), config['optimizer_options']
    for name in options:
        if name not in taken:
            raise ValueError(
                f'optimizer_options.{name} is not an option of {what}, which takes b2, eps, mask.'
            )
    for name, value in given.items():
        if name not in taken and name != 'ratio' and value != KEYS[name].default:
            raise ValueError(f'{name}={value!r} has no effect on {what}. Set {name}={KEYS[name].default}.')
    arguments = {name: value for name, value in given.items() if name in taken} | dict(options)
    return def_adamw(
        learning_rate,
        config['ratio'],
        axis_name,
        weight_decay=config['weight_decay'],
        seed=config['seed'],
        **arguments,
    )
