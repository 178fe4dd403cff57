"""Validates a configuration before anything is written: no unknown keys, no invalid values.

Only the library validates keys that are its arguments: the optimizer is constructed, and an error about an
argument is reported as one about the key.
"""

import sys
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax.numpy as jnp
import ml_collections

from def_jax.beyond.integers import check_levels
from def_jax.checks import nearest
from def_jax.methods import METHODS, get_method
from def_jax.trainer.configuration.optimizer import LIBRARY_KEYS, OPTIMIZERS, find_schedule, make_optimizer
from def_jax.trainer.configuration.parts import find_dataset, find_model, find_task
from def_jax.trainer.configuration.schedules import SCHEDULES
from def_jax.trainer.data.factories import FACTORIES
from def_jax.trainer.data.in_memory import check_batch_size
from def_jax.trainer.models import LANGUAGE_MODELS, MODELS
from def_jax.trainer.tasks import TASKS

__all__ = ['FIELDS', 'check_config']


class Field(NamedTuple):
    """What one configuration key may hold."""

    types: tuple[type, ...]
    valid: Callable[[Any], bool]
    allowed: str
    names: tuple[str, ...] = ()  # the choices, if the values are names


def _integer(low: int) -> Field:
    return Field((int,), lambda value: value >= low, f'an integer >= {low}')


def _number(valid: Callable[[float], bool], allowed: str) -> Field:
    return Field((int, float), lambda value: abs(value) <= sys.float_info.max and valid(value), allowed)


def _one_of(names: Iterable[str]) -> Field:
    names = tuple(names)
    return Field((str,), lambda value: value in names, f'one of {", ".join(names)}', names)


def _factory(names: Iterable[str], empty: bool = False) -> Field:
    """A name, or an import path, which `factories` checks; or empty, where there may be none."""
    names = tuple(names)
    allowed = f'one of {", ".join(names)}, or an import path such as my_package.my_module:factory'
    allowed += ', or empty for none' if empty else ''
    return Field(
        (str,), lambda value: value in names or ':' in value or (empty and not value), allowed, names
    )


_OPTIONS = Field((ml_collections.ConfigDict, dict), lambda value: True, 'a dict of arguments of the factory')
_LIBRARY = Field(
    (object,),
    lambda value: not isinstance(value, ml_collections.ConfigDict),  # which would span several lines
    'a value that the library accepts',
)

FIELDS: dict[str, Field] = {
    'method': _one_of(METHODS),
    **dict.fromkeys(LIBRARY_KEYS, _LIBRARY),
    'outer': _factory(OPTIMIZERS, empty=True),
    'outer_options': _OPTIONS,
    'auto_detach': Field((bool,), lambda value: True, 'True or False'),
    'num_workers': _integer(1),
    'workers_per_device': _integer(1),
    'shards_per_worker': _integer(1),
    'sequential_workers': Field((bool,), lambda value: True, 'True or False'),
    'fake_devices': Field((bool,), lambda value: True, 'True or False'),
    'task': _factory(TASKS),
    'task_options': _OPTIONS,
    'dataset': _factory(FACTORIES),
    'dataset_options': _OPTIONS,
    'data_dir': Field((str,), lambda value: True, "a path, or empty for TFDS's default"),
    'train_examples': _integer(0),
    'validation_examples': _integer(0),
    'test_examples': _integer(0),
    'model': _factory([*MODELS, *LANGUAGE_MODELS]),
    'model_options': _OPTIONS,
    'compute_dtype': _one_of(('float32', 'bfloat16')),
    'batch_size': _integer(1),
    'accumulate': _integer(1),
    'num_epochs': _integer(1),
    'num_steps': _integer(0),
    'learning_rate': _number(lambda value: value > 0, 'a number > 0'),
    'schedule': _factory(SCHEDULES),
    'schedule_options': _OPTIONS,
    'learning_rate_drops': Field(
        (tuple, list),
        lambda drops: (
            all(isinstance(d, (int, float)) and 0 < d < 1 for d in drops)
            and list(drops) == sorted(set(drops))
        ),
        'increasing fractions of the run, each in (0, 1), e.g. (0.5, 0.75)',
    ),
    'optimizer': _factory(OPTIMIZERS),
    'optimizer_options': _OPTIONS,
    'momentum': _number(lambda value: 0 <= value < 1, 'a number in [0, 1)'),
    'weight_decay': _number(lambda value: value >= 0, 'a number >= 0'),
    'seed': Field((int,), lambda value: 0 <= value < 2**32, 'an integer in [0, 2**32)'),
    'eval_every_epochs': _integer(1),
    'eval_every_steps': _integer(0),
    'evaluate_on': _one_of(('test', 'validation')),
    'log_every_steps': _integer(1),
    'evaluate_train_examples': _integer(0),
    'recalibrate_batches': _integer(0),
    'diagnostics_every': _integer(0),
    'check_replicas_every': _integer(0),
    'keep_checkpoints': _integer(1),
}


def check_config(config: ml_collections.ConfigDict) -> None:
    """Raises ValueError unless `config` is valid.

    Args:
        config: a complete configuration, as `configs/digits.py` returns.

    Raises:
        ValueError: with the key, its value, the allowed values and the closest match for a misspelt name.

    >>> from def_jax.trainer.configuration.defaults import get_defaults
    >>> config = get_defaults()
    >>> config.batch_size = 100
    >>> check_config(config)
    Traceback (most recent call last):
    ValueError: config.batch_size=100 must be a multiple of num_workers=16; the nearest is 96.
    """
    for key in config:
        if key not in FIELDS:
            raise ValueError(f'config.{key} is not a known key.{nearest(key, FIELDS)}')
    for key, field in FIELDS.items():
        if key not in config:
            raise ValueError(f'config.{key} is missing; it must be {field.allowed}.')
        value = config[key]
        numeric = bool not in field.types and object not in field.types
        well_typed = isinstance(value, field.types) and not (numeric and isinstance(value, bool))
        if not well_typed or not field.valid(value):
            shown = repr(value).replace('\n', ' ').strip()  # a nested configuration spans several lines
            raise ValueError(f'config.{key}={shown} must be {field.allowed}.{nearest(value, field.names)}')
    try:
        for find in (find_task, find_dataset, find_model, find_schedule):
            find(config)
        make_optimizer(config, config.learning_rate, 'workers', config.seed)
        if jnp.dtype(config.wire_dtype) == jnp.int8:
            check_levels(config.num_workers)
        check_batch_size(config.batch_size, config.num_workers)
        _check_accumulate(config)
    except ValueError as error:
        # In a configuration, the key auto_detach stands for this argument.
        message = str(error).replace("detach='auto'", 'auto_detach=True')
        raise ValueError(f'config.{message}') from error
    _check_workers(config)
    _check_shards(config)


def _check_accumulate(config: ml_collections.ConfigDict) -> None:
    """Raises ValueError unless the share of each worker divides into `accumulate` parts."""
    share = config.batch_size // config.num_workers
    if share % config.accumulate:
        raise ValueError(
            f'accumulate={config.accumulate} must divide the {share} examples of a worker, batch_size='
            f'{config.batch_size} / num_workers={config.num_workers}.'
        )


def _check_workers(config: ml_collections.ConfigDict) -> None:
    """Raises ValueError if the number of workers does not fit the devices or conflicts with another key."""
    if config.num_workers % config.workers_per_device:
        raise ValueError(
            f'config.workers_per_device={config.workers_per_device} does not divide config.num_workers='
            f'{config.num_workers}; every device must host the same number of workers.'
        )
    if get_method(config.method).single_worker and config.num_workers != 1:
        raise ValueError(
            f'config.method={config.method!r} is defined for one worker, but config.num_workers='
            f'{config.num_workers}. Set --config.num_workers=1, or use def_a, its multi-worker form.'
        )
    if config.diagnostics_every and config.num_workers == 1:
        raise ValueError(
            f'config.diagnostics_every={config.diagnostics_every} needs at least two workers, since it '
            'measures how they differ. Set --config.diagnostics_every=0, or increase --config.num_workers.'
        )


def _check_shards(config: ml_collections.ConfigDict) -> None:
    """Raises ValueError unless workers of several devices can run the method and share their examples."""
    shards, method = config.shards_per_worker, get_method(config.method)
    if shards == 1:
        return
    given = f'config.shards_per_worker={shards}'
    if config.workers_per_device > 1:
        raise ValueError(
            f'{given} needs devices of its own for each worker, but config.workers_per_device='
            f'{config.workers_per_device}. Set --config.workers_per_device=1 or --config.shards_per_worker=1.'
        )
    if method.link is not None and method.kind not in ('dense', 'ef21'):
        raise ValueError(
            f'{given} divides tensors among devices, but config.method={config.method!r} compresses whole '
            'ones. Set --config.shards_per_worker=1, or choose a method that sends blocks, e.g. def.'
        )
    if (share := config.batch_size // config.num_workers // config.accumulate) % shards:
        raise ValueError(
            f'{given} must divide the {share} examples of which a worker takes a gradient, batch_size='
            f'{config.batch_size} / num_workers={config.num_workers} / accumulate={config.accumulate}. '
            'Change --config.batch_size or --config.shards_per_worker.'
        )
