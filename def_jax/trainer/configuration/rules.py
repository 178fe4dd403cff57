"""Validates a configuration before anything is written: no unknown keys, no invalid values.

Only the library validates keys that are its arguments: the optimizer is constructed, and an error about an
argument is reported as one about the key.
"""

import contextlib
from collections.abc import Iterator

import ml_collections

from def_jax.checks import nearest
from def_jax.methods import get_method
from def_jax.trainer.configuration.defaults import KEYS
from def_jax.trainer.configuration.parts import check_parts, make_optimizer

__all__ = ['check_config', 'check_keys', 'check_together', 'of_keys']

_FORMER = {'auto_detach': ' It is a value of another key now: --config.detach=auto.'}


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
    check_keys(config)
    with of_keys():
        make_optimizer(config, config.learning_rate, 'workers')
    check_together(config)


def check_keys(config: ml_collections.ConfigDict) -> None:
    """Raises ValueError unless every key is there, with a possible value, and what it names is found."""
    for name in config:
        if name not in KEYS:
            hint = _FORMER.get(name) or nearest(name, KEYS)
            raise ValueError(f'config.{name} is not a known key.{hint}')
    for name, key in KEYS.items():
        if name not in config:
            raise ValueError(f'config.{name} is missing; it must be {key.allowed}.')
        value = config[name]
        if not key.accepts(value):
            shown = repr(value).replace('\n', ' ').strip()  # a nested configuration spans several lines
            raise ValueError(f'config.{name}={shown} must be {key.allowed}.{nearest(value, key.names)}')
    with of_keys():
        check_parts(config)


def check_together(config: ml_collections.ConfigDict) -> None:
    """Raises ValueError unless the values of the trainer's keys fit each other."""
    _check_batch(config)
    _check_workers(config)
    _check_shards(config)
    _check_elastic(config)


@contextlib.contextmanager
def of_keys() -> Iterator[None]:
    """Within the block, an error that begins with the name of an argument begins with that of the key."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f'config.{error}') from error


def _check_batch(config: ml_collections.ConfigDict) -> None:
    """Raises ValueError unless workers have equal shares of a batch, which divide into `accumulate` parts."""
    size, workers = config.batch_size, config.num_workers
    if size % workers:
        nearest_size = max(1, round(size / workers)) * workers
        raise ValueError(
            f'config.batch_size={size} must be a multiple of num_workers={workers}; the nearest is '
            f'{nearest_size}.'
        )
    if (size // workers) % config.accumulate:
        raise ValueError(
            f'config.accumulate={config.accumulate} must divide the {size // workers} examples of a worker, '
            f'batch_size={size} / num_workers={workers}.'
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


def _check_elastic(config: ml_collections.ConfigDict) -> None:
    """Raises ValueError unless a run whose workers come and go can do what the other keys say."""
    if not config.elastic:
        return
    for key in ('diagnostics_every', 'check_replicas_every', 'recalibrate_batches', 'skip_nonfinite'):
        if config[key]:
            raise ValueError(
                f'config.elastic=True has no {key}, but config.{key}={config[key]}. Set it to 0.'
            )
    if config.workers_per_device > 1:
        raise ValueError(
            'config.elastic=True needs a device for each worker, but config.workers_per_device='
            f'{config.workers_per_device}. Set it to 1.'
        )
    if 'own' in get_method(config.method).points:
        raise ValueError(
            f'config.elastic=True evaluates what workers share, but config.method={config.method!r} gives '
            'each worker a model of its own. Choose another method, e.g. def.'
        )
