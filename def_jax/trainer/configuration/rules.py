"""Validates a configuration before anything is written: no unknown keys, no invalid values.

Only the library validates keys that are its arguments: the optimizer is constructed, and an error about an
argument is reported as one about the key.
"""

import contextlib
from collections.abc import Iterator

import ml_collections

from def_jax.baselines.methods import METHODS, Method
from def_jax.checks import nearest
from def_jax.trainer.configuration.defaults import KEYS
from def_jax.trainer.configuration.factories import find
from def_jax.trainer.configuration.keys import hint
from def_jax.trainer.configuration.methods import find_method
from def_jax.trainer.configuration.parts import make_optimizer

__all__ = ['check', 'check_config', 'of_keys']


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
    check(config)
    with of_keys():
        make_optimizer(config, config.learning_rate, 'workers')


def check(config: ml_collections.ConfigDict) -> None:
    """Like `check_config`, but for the arguments of the library, which `make_optimizer` checks."""
    for name in config:
        if name not in KEYS:
            raise ValueError(f'config.{name} is not a known key.{hint(name, KEYS)}')
    for name, key in KEYS.items():
        if name not in config:
            raise ValueError(f'config.{name} is missing; it must be {key.rule.allowed}.')
        if not key.rule.accepts(value := config[name]):
            shown = repr(value).replace('\n', ' ').strip()  # a nested configuration spans several lines
            raise ValueError(
                f'config.{name}={shown} must be {key.rule.allowed}.{nearest(value, key.rule.table)}'
            )
    with of_keys():
        for name in (name for name, key in KEYS.items() if key.rule.is_factory):
            if config[name] and callable(KEYS[name].rule.table.get(config[name], find)):
                find(name, config)
        if conflict := next(_conflicts(config, find_method(config)), None):
            raise ValueError(conflict)


@contextlib.contextmanager
def of_keys() -> Iterator[None]:
    """Within the block, an error that begins with the name of an argument begins with that of the key."""
    try:
        yield
    except ValueError as error:
        text = str(error)
        text = text.replace('compression', 'ratio') if text.startswith('compression=') else text
        raise ValueError(f'config.{text}') from error


def _without_effect(config: ml_collections.ConfigDict, method: Method) -> Iterator[str]:
    """What the other keys make useless."""
    for name, fixed in method.sends.items():
        if name != 'ratio' and config[name] not in (None, fixed):
            yield f'{name}={config[name]!r} has no effect: {method.title} fixes {fixed!r}. Leave it out.'
    for name, unused in (
        ('method', config.method in METHODS),
        ('outer', not config.outer and 'outer' in method.options),
    ):
        if unused and (options := dict(config[f'{name}_options'])):
            yield (
                f'{name}_options={options} has no effect on {name}={config[name]!r}. Set {name}_options={{}}.'
            )
    if config.outer and 'outer' not in method.options:
        yield (
            f'outer={config.outer!r} has no effect on method={config.method!r}, which fixes it or sends no '
            "updates. Set outer=''."
        )
    if config.compute_dtype != 'float32' and not (model := find('model', config)).takes('dtype'):
        yield (
            f'compute_dtype={config.compute_dtype!r} has no effect on {model}, which takes no dtype. Set '
            "compute_dtype='float32'."
        )


def _conflicts(config: ml_collections.ConfigDict, method: Method) -> Iterator[str]:
    """What of the trainer's keys does not fit together."""
    yield from _without_effect(config, method)
    size, workers, shards = config.batch_size, config.num_workers, config.shards_per_worker
    if size % workers:
        near = max(1, round(size / workers)) * workers
        yield f'batch_size={size} must be a multiple of num_workers={workers}; the nearest is {near}.'
    if (size // workers) % config.accumulate:
        yield (
            f'accumulate={config.accumulate} must divide the {size // workers} examples of a worker, '
            f'batch_size={size} / num_workers={workers}.'
        )
    if workers % config.workers_per_device:
        yield (
            f'workers_per_device={config.workers_per_device} does not divide config.num_workers={workers}; '
            'every device must host the same number of workers.'
        )
    if method.single_worker and workers != 1:
        yield (
            f'method={config.method!r} is defined for one worker, but config.num_workers={workers}. Set '
            '--config.num_workers=1, or use def_a, its multi-worker form.'
        )
    if config.diagnostics_every and workers == 1:
        yield (
            f'diagnostics_every={config.diagnostics_every} needs at least two workers, since it measures how '
            'they differ. Set --config.diagnostics_every=0, or increase --config.num_workers.'
        )
    if shards > 1:
        yield from _conflicts_of_shards(config, method)
    if config.elastic:
        yield from _conflicts_of_elastic(config, method)


def _conflicts_of_shards(config: ml_collections.ConfigDict, method: Method) -> Iterator[str]:
    """Why workers cannot be of several devices."""
    given = f'shards_per_worker={config.shards_per_worker}'
    if config.workers_per_device > 1:
        yield (
            f'{given} needs devices of its own for each worker, but config.workers_per_device='
            f'{config.workers_per_device}. Set --config.workers_per_device=1 or --config.shards_per_worker=1.'
        )
    if method.link is not None and method.kind not in ('dense', 'ef21'):
        yield (
            f'{given} divides tensors among devices, but config.method={config.method!r} compresses whole '
            'ones. Set --config.shards_per_worker=1, or choose a method that sends blocks, e.g. def.'
        )
    share = config.batch_size // config.num_workers // config.accumulate
    if share % config.shards_per_worker:
        yield (
            f'{given} must divide the {share} examples of which a worker takes a gradient, batch_size='
            f'{config.batch_size} / num_workers={config.num_workers} / accumulate={config.accumulate}. '
            'Change --config.batch_size or --config.shards_per_worker.'
        )


def _conflicts_of_elastic(config: ml_collections.ConfigDict, method: Method) -> Iterator[str]:
    """What a run whose workers come and go cannot do."""
    for key in ('diagnostics_every', 'check_replicas_every', 'recalibrate_batches', 'skip_nonfinite'):
        if config[key]:
            yield f'elastic=True has no {key}, but config.{key}={config[key]}. Set it to 0.'
    if config.workers_per_device > 1:
        yield (
            'elastic=True needs a device for each worker, but config.workers_per_device='
            f'{config.workers_per_device}. Set it to 1.'
        )
    if 'own' in method.points:
        yield (
            f'elastic=True evaluates what workers share, but config.method={config.method!r} gives each '
            'worker a model of its own. Choose another method, e.g. def.'
        )
