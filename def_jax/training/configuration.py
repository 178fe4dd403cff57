"""Checks a configuration before anything is written: every key known, every value possible."""

import sys
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import ml_collections

from def_jax.checks import nearest
from def_jax.compressors.allocations import ALLOCATIONS
from def_jax.compressors.orders import ORDERS
from def_jax.data.catalogue import DATASETS
from def_jax.methods import METHODS
from def_jax.models import MODELS

__all__ = ['FIELDS', 'check_config']


class Field(NamedTuple):
    """What one configuration key may hold."""

    types: tuple[type, ...]
    valid: Callable[[Any], bool]
    allowed: str
    names: tuple[str, ...] = ()  # where it is one of these


def _integer(low: int) -> Field:
    return Field((int,), lambda value: value >= low, f'an integer >= {low}')


def _number(valid: Callable[[float], bool], allowed: str) -> Field:
    return Field((int, float), lambda value: abs(value) <= sys.float_info.max and valid(value), allowed)


def _one_of(names: Iterable[str]) -> Field:
    names = tuple(names)
    return Field((str,), lambda value: value in names, f'one of {", ".join(names)}', names)


FIELDS: dict[str, Field] = {
    'method': _one_of(METHODS),
    'ratio': _number(lambda value: value >= 1, 'a number >= 1'),
    'granularity': _one_of(('tensor', 'model', 'element')),
    'order': _one_of(ORDERS),
    'allocation': _one_of(ALLOCATIONS),
    'detach': _number(lambda value: 0 <= value <= 1, 'a number in [0, 1]'),
    'auto_detach': Field((bool,), lambda value: True, 'True or False'),
    'average_every': _integer(0),
    'wire_dtype': _one_of(('float32', 'bfloat16', 'float16')),
    'skip_nonfinite': Field((bool,), lambda value: True, 'True or False'),
    'num_workers': _integer(1),
    'workers_per_device': _integer(1),
    'fake_devices': Field((bool,), lambda value: True, 'True or False'),
    'dataset': _one_of(DATASETS),
    'data_dir': Field((str,), lambda value: True, 'a path, or empty for the default of TFDS'),
    'train_images': _integer(0),
    'test_images': _integer(0),
    'model': _one_of(MODELS),
    'batch_size': _integer(1),
    'num_epochs': _integer(1),
    'learning_rate': _number(lambda value: value > 0, 'a number > 0'),
    'learning_rate_drops': Field(
        (tuple, list),
        lambda drops: (
            all(isinstance(d, (int, float)) and 0 < d < 1 for d in drops)
            and list(drops) == sorted(set(drops))
        ),
        'increasing shares of the run, each in (0, 1), e.g. (0.5, 0.75)',
    ),
    'momentum': _number(lambda value: 0 <= value < 1, 'a number in [0, 1)'),
    'weight_decay': _number(lambda value: value >= 0, 'a number >= 0'),
    'seed': Field((int,), lambda value: 0 <= value < 2**32, 'an integer in [0, 2**32)'),
    'eval_every_epochs': _integer(1),
    'log_every_steps': _integer(1),
    'recalibrate_batches': _integer(0),
    'diagnostics_every': _integer(0),
    'check_replicas_every': _integer(0),
    'keep_checkpoints': _integer(1),
}


def check_config(config: ml_collections.ConfigDict) -> None:
    """Raises ValueError unless `config` can be run.

    Args:
        config: a complete configuration, as `configs/digits.py` returns.

    Raises:
        ValueError: naming the key, its value, what is allowed and, where a name is close, what was meant.

    >>> from configs import digits
    >>> config = digits.get_config()
    >>> config.batch_size = 100
    >>> check_config(config)
    Traceback (most recent call last):
    ValueError: config.batch_size=100 does not divide by config.num_workers=16; the nearest that does is 96.
    """
    for key in config:
        if key not in FIELDS:
            raise ValueError(f'config.{key} is not a known key.{nearest(key, FIELDS)}')
    for key, field in FIELDS.items():
        if key not in config:
            raise ValueError(f'config.{key} is missing; it must be {field.allowed}.')
        value = config[key]
        well_typed = isinstance(value, field.types) and (bool in field.types or not isinstance(value, bool))
        if not well_typed or not field.valid(value):
            shown = repr(value).replace('\n', ' ').strip()  # a nested configuration fills several lines
            raise ValueError(f'config.{key}={shown} must be {field.allowed}.{nearest(value, field.names)}')
    _check_method(config)
    if config.num_workers % config.workers_per_device:
        raise ValueError(
            f'config.workers_per_device={config.workers_per_device} does not divide config.num_workers='
            f'{config.num_workers}: every device plays the same number of workers.'
        )
    if config.batch_size % config.num_workers:
        multiple = max(1, round(config.batch_size / config.num_workers)) * config.num_workers
        raise ValueError(
            f'config.batch_size={config.batch_size} does not divide by config.num_workers='
            f'{config.num_workers}; the nearest that does is {multiple}.'
        )


def _check_method(config: ml_collections.ConfigDict) -> None:
    """Raises ValueError for an option that the method, or another option, has no use for."""
    method = METHODS[config.method]
    if method.kind != 'error_feedback':
        for key, default in (('wire_dtype', 'float32'), ('skip_nonfinite', False)):
            if config[key] != default:
                raise ValueError(
                    f'config.{key}={config[key]!r} is an option of error feedback, which config.method='
                    f'{config.method!r} does not use. Set --config.{key}={default}.'
                )
    if config.auto_detach and not method.detach_is_free:
        raise ValueError(
            f'config.auto_detach=True chooses λ, but config.method={config.method!r} fixes it or has none. '
            'Set --config.auto_detach=False, or --config.method=def or def_a.'
        )
    if config.auto_detach and config.wire_dtype == 'float16':
        raise ValueError(
            "config.wire_dtype='float16' is too narrow for the squared norm that config.auto_detach=True "
            'sends. Set --config.wire_dtype=bfloat16 or float32.'
        )
    if config.granularity == 'element' and config.order != 'random':
        raise ValueError(
            f"config.order={config.order!r} orders blocks, but config.granularity='element' draws single "
            'elements. Set --config.order=random, or --config.granularity=tensor or model.'
        )
    if config.granularity != 'tensor' and config.allocation != 'proportional':
        raise ValueError(
            f'config.allocation={config.allocation!r} is for a block of every tensor, but config.granularity='
            f'{config.granularity!r}. Set --config.allocation=proportional, or --config.granularity=tensor.'
        )
    if method.single_worker and config.num_workers != 1:
        raise ValueError(
            f'config.method={config.method!r} is defined for one worker, but config.num_workers='
            f'{config.num_workers}. Set --config.num_workers=1, or compare with def_a, its form for several.'
        )
    if config.diagnostics_every and config.num_workers == 1:
        raise ValueError(
            f'config.diagnostics_every={config.diagnostics_every} needs two workers or more: it measures how '
            'they differ. Set --config.diagnostics_every=0 or more --config.num_workers.'
        )
