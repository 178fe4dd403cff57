"""Validates a configuration before anything is written: no unknown keys, no invalid values.

Only the library validates keys that are its arguments: the optimizer is constructed, and an error about an
argument is reported as one about the key.
"""

import contextlib
from collections.abc import Iterator

import ml_collections

from def_jax.baselines.methods import METHODS, Method
from def_jax.baselines.names import nearest
from def_jax.trainer.configuration.defaults import FORMER, KEYS
from def_jax.trainer.configuration.parts import complete, find, find_method, make_optimizer

__all__ = ['check_config', 'checked', 'of_keys']


def check_config(config: ml_collections.ConfigDict) -> None:
    """Raises ValueError unless `config`, complete as from `configs/digits.py`, is valid.

    The message names the key, its value, the allowed values and the closest match of a misspelt name.

    >>> from def_jax.trainer.configuration.defaults import get_defaults
    >>> config = get_defaults()
    >>> config.batch_size = 100
    >>> check_config(config)
    Traceback (most recent call last):
    ValueError: config.batch_size=100 must be a multiple of num_workers=16; the nearest is 96.
    """
    with of_keys():
        make_optimizer(checked(config), config.learning_rate, 'workers')


def checked(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """A configuration as a run records it, see `complete`, once its keys fit each other.

    Only `make_optimizer` checks the arguments of the library; call both within `of_keys`.
    """
    for name in config:
        if name not in KEYS:
            raise ValueError(f'{name} is not a known key.{FORMER.get(name) or nearest(name, KEYS)}')
    for name, key in KEYS.items():
        if name not in config:
            raise ValueError(f'{name} is missing; its default is {key.default!r}.')
        if not key.library:
            key.check(name, config[name])
    for name, key in KEYS.items():
        if key.table and config[name] and name != 'method':
            find(name, config)
    for wrong, name, why in _conflicts(config, find_method(config)):
        if wrong:
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


def _conflicts(config: ml_collections.ConfigDict, method: Method) -> Iterator[tuple[object, str, str]]:
    """Whether keys contradict each other, the key at fault, and what is wrong with its value."""
    virtual, shards, workers = config.workers_per_device, config.shards_per_worker, config.num_workers
    name, own = f'method={config.method!r}', config.batch_size // workers
    for key, fixed in method.sends.items():
        wrong = key != 'ratio' and config[key] not in (None, fixed)
        yield wrong, key, f'has no effect: {method.title} fixes {fixed!r}. Leave it out.'
    has_outer = 'outer' in method.options
    for key, unused in (('method', config.method in METHODS), ('outer', not config.outer and has_outer)):
        options, what = f'{key}_options', f'{key}={config[key]!r}'
        yield unused and config[options], options, f'has no effect on {what}. Leave it empty.'
    why = f"has no effect on {name}, which fixes it or sends no updates. Set outer=''."
    yield config.outer and not has_outer, 'outer', why
    untyped = config.compute_dtype != 'float32' and not find('model', config).takes('dtype')
    why = f'has no effect on model={config.model!r}, which takes no dtype. Leave it out.'
    yield untyped, 'compute_dtype', why
    near = max(1, round(config.batch_size / workers)) * workers
    why = f'must be a multiple of num_workers={workers}; the nearest is {near}.'
    yield config.batch_size % workers, 'batch_size', why
    share = f'batch_size={config.batch_size} / num_workers={workers}'
    why = f'must divide the {own} examples of a worker, {share}.'
    yield own % config.accumulate, 'accumulate', why
    yield workers % virtual, 'workers_per_device', f'must divide config.num_workers={workers}.'
    why = f'is for one worker, but config.num_workers={workers}. Set it to 1, or use def_a for several.'
    yield method.single_worker and workers != 1, 'method', why
    why = 'compares workers, but there is one. Set it to 0.'
    yield config.diagnostics_every and workers == 1, 'diagnostics_every', why
    if shards > 1:
        key, part = 'shards_per_worker', own // config.accumulate
        why = f'needs whole devices, but config.workers_per_device={virtual}. Set it to 1.'
        yield virtual > 1, key, why
        whole = method.link is not None and method.kind not in ('dense', 'ef21')
        why = f'needs a method of blocks, e.g. def, but config.{name} compresses whole tensors.'
        yield whole, key, why
        yield part % shards, key, f'needs to divide the {part} examples of which a worker takes a gradient.'
    if config.elastic:
        for key in ('diagnostics_every', 'check_replicas_every', 'recalibrate_batches', 'skip_nonfinite'):
            yield config[key], 'elastic', f'has no {key}, but config.{key}={config[key]}. Set it to 0.'
        why = f'needs a device for each worker, but config.workers_per_device={virtual}. Set it to 1.'
        yield virtual > 1, 'elastic', why
        each = f'but config.{name} gives each worker a model of its own'
        yield 'own' in method.points, 'elastic', f'needs one model, {each}. Choose another method, e.g. def.'
