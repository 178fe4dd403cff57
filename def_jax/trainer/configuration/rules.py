"""Validates a configuration before anything is written: no unknown keys, no invalid values."""

import contextlib
from collections.abc import Iterator

import ml_collections

from def_jax.baselines.methods import METHODS, OPTIONS, Method, nearest
from def_jax.trainer.configuration.defaults import KEYS, LIBRARY
from def_jax.trainer.configuration.parts import complete, find, find_method, make_optimizer
from def_jax.trainer.configuration.schedules import OPTIMIZERS

__all__ = ['check_config', 'checked', 'of_keys']


def check_config(config: ml_collections.ConfigDict) -> None:
    """Raises ValueError unless `config`, complete as from `configs/digits.py`, is valid.

    The message names the key, its value, the allowed values and the closest match of a misspelt name.

    >>> from def_jax.trainer.configuration.defaults import get_defaults
    >>> config = get_defaults()
    >>> config.batch_size = 100
    >>> check_config(config)
    Traceback (most recent call last):
    ValueError: config.batch_size=100 must be a multiple of num_workers=16, e.g. 96.
    """
    with of_keys():
        make_optimizer(checked(config), config.learning_rate, 'workers')


def checked(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The configuration as a run records it, or a ValueError."""
    for name in (*config, *KEYS):
        if name not in KEYS:
            now = ' Write bits: 8 for int8, 16 for bfloat16.' if name == 'wire_dtype' else nearest(name, KEYS)
            raise ValueError(f'{name} is not a known key.{now}')
        if name not in config:
            raise ValueError(f'{name} is missing; its default is {KEYS[name].default!r}.')
        if name not in LIBRARY:
            KEYS[name].check(name, config[name])
    for name, key in KEYS.items():
        if key.table and config[name] and config[name] not in METHODS:
            find(name, config)
    for name, why in (*_unused(config), *_conflicts(config, find_method(config))):
        value = config[name].to_dict() if name.endswith('_options') else config[name]
        raise ValueError(f'{name}={value!r} {why}')
    return complete(config)


@contextlib.contextmanager
def of_keys() -> Iterator[None]:
    """Within the block, an error that begins with the name of an argument begins with that of the key."""
    try:
        yield
    except ValueError as error:
        text = ' '.join(str(error).split())  # a nested configuration spans several lines
        text = text.replace('compression', 'ratio') if text.startswith('compression=') else text
        raise ValueError(f'config.{text}') from error


def _unused(config: ml_collections.ConfigDict) -> Iterator[tuple[str, str]]:
    """Keys that `parts` passes to some factories, and that are set for others."""
    usual = {name: key.default for name, key in KEYS.items()} | {'weight_decay': 0}
    drops = tuple(config.learning_rate_drops) != usual['learning_rate_drops']
    for key, factory, is_set in (
        ('momentum', 'optimizer', config.optimizer != 'sgd' and config.momentum != usual['momentum']),
        ('weight_decay', 'optimizer', config.optimizer not in OPTIMIZERS and config.weight_decay),
        ('learning_rate_drops', 'schedule', config.schedule != 'drops' and drops),
    ):
        if is_set:
            cure = f'Set {key}={usual[key]}, or see --config.{factory}_options'
            yield key, f'has no effect on {factory}={config[factory]!r}. {cure}.'


def _conflicts(config: ml_collections.ConfigDict, method: Method) -> Iterator[tuple[str, str]]:
    """Keys at fault where some contradict each other, and what is wrong with their values."""
    virtual, shards, workers = config.workers_per_device, config.shards_per_worker, config.num_workers
    name, size, own = f'config.method={config.method!r}', config.batch_size, config.batch_size // workers
    for key, fixed in method.sends.items():
        if key != 'ratio' and config[key] not in (None, fixed):
            yield key, f'has no effect: {method.title} fixes {fixed!r}. Leave it out.'
    # The default of λ is what `complete` records for methods without one.
    for key, unset in (('detach', (None, method.detach, OPTIONS['detach'])), ('average_every', (0,))):
        if key not in method.options and config[key] not in unset:
            yield key, f'has no effect on {name}, which fixes it or has none. Leave it out.'
    for key, unused in (('method', config.method in METHODS), ('outer', not config.outer)):
        if unused and config[f'{key}_options']:
            yield f'{key}_options', f'has no effect on {key}={config[key]!r}. Leave it empty.'
    if config.outer and 'outer' not in method.options:
        yield 'outer', f"has no effect on {name}, which fixes it or sends no updates. Set outer=''."
    if size % (places := workers * config.inside):
        near = size - size % places or places
        inside = f' * inside={config.inside}' if config.inside > 1 else ''
        yield 'batch_size', f'must be a multiple of num_workers={workers}{inside}, e.g. {near}.'
    if (part := own // config.inside) % config.accumulate:
        inside = ' / inside' if config.inside > 1 else ''
        yield 'accumulate', f'must divide the {part} examples of a worker, batch_size / num_workers{inside}.'
    if workers % virtual:
        yield 'workers_per_device', f'must divide config.num_workers={workers}.'
    if method.single_worker and workers > 1:
        yield 'method', f'is for one worker, but config.num_workers={workers}. Set it to 1, or use def_a.'
    if config.diagnostics_every and workers == 1:
        yield 'diagnostics_every', 'compares workers, but there is one. Set it to 0.'
    for key, applies in (('shards_per_worker', shards > 1), ('elastic', config.elastic)):
        if applies and virtual > 1:
            yield key, f'needs whole devices, but config.workers_per_device={virtual}. Set it to 1.'
    if config.inside > 1:
        for key in ('shards_per_worker', 'workers_per_device', 'elastic'):
            if config[key] > 1 or config[key] is True:
                yield (
                    key,
                    f'cannot be combined with inside={config.inside}. Leave one of them at its default.',
                )
        if method.kind != 'error_feedback':
            yield 'inside', f'has no effect on {name}. Set it to 1, and num_workers to that of all devices.'
    if shards > 1:
        if method.link is not None and method.kind not in ('dense', 'ef21'):
            yield 'shards_per_worker', f'needs blocks, as def has, but {name} compresses whole tensors.'
        if (part := own // config.accumulate) % shards:
            yield 'shards_per_worker', f'must divide the {part} examples of which a worker takes a gradient.'
    if config.elastic:
        if config.min_workers > workers:
            yield 'min_workers', f'must be at most num_workers={workers}: more never live.'
        if method.kind == 'ef21':  # as `elastic.Team`, before files are written
            yield 'elastic', f'needs workers that can leave, but {name} keeps the share of a dead one.'
        for key in ('diagnostics_every', 'check_replicas_every', 'recalibrate_batches', 'skip_nonfinite'):
            if config[key]:
                yield 'elastic', f'has no {key}, but config.{key}={config[key]}. Set it to 0.'
        if 'own' in method.points:
            yield 'elastic', f'needs one model, but {name} gives each worker its own. Choose e.g. def.'
