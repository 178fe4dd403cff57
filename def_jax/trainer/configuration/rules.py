"""Validates a configuration before anything is written: no unknown keys, no invalid values.

Only the library validates keys that are its arguments: the optimizer is constructed, and an error about an
argument is reported as one about the key.
"""

import contextlib
from collections.abc import Iterator

import ml_collections

from def_jax.baselines.methods import METHODS, Method
from def_jax.checks import nearest
from def_jax.trainer.configuration.defaults import FORMER, KEYS
from def_jax.trainer.configuration.factories import find
from def_jax.trainer.configuration.parts import find_method, make_optimizer

__all__ = ['check', 'check_config', 'of_keys']


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
    check(config)
    with of_keys():
        make_optimizer(config, config.learning_rate, 'workers')


def check(config: ml_collections.ConfigDict) -> None:
    """Like `check_config`, but for the arguments of the library, which `make_optimizer` checks."""
    with of_keys():
        for name in config:
            if name not in KEYS:
                raise ValueError(f'{name} is not a known key.{FORMER.get(name) or nearest(name, KEYS)}')
        for name, key in KEYS.items():
            if name not in config:
                raise ValueError(f'{name} is missing; its default is {key.default!r}.')
            if key.check:
                key.check(name, config[name])
        for name, key in KEYS.items():
            if key.table and config[name] and callable(key.table.get(config[name], find)):
                find(name, config)
        for wrong, message in _conflicts(config, find_method(config)):
            if wrong:
                raise ValueError(message)


@contextlib.contextmanager
def of_keys() -> Iterator[None]:
    """Within the block, an error that begins with the name of an argument begins with that of the key."""
    try:
        yield
    except ValueError as error:
        text = ' '.join(str(error).split())  # a nested configuration spans several lines
        text = text.replace('compression', 'ratio') if text.startswith('compression=') else text
        raise ValueError(f'config.{text}') from error


def _conflicts(config: ml_collections.ConfigDict, method: Method) -> Iterator[tuple[object, str]]:
    """Whether keys contradict each other, with the message for that case."""
    name, size, workers = f'method={config.method!r}', config.batch_size, config.num_workers
    virtual, shards, own = config.workers_per_device, config.shards_per_worker, size // workers
    for key, fixed in method.sends.items():
        wrong = key != 'ratio' and config[key] not in (None, fixed)
        yield wrong, f'{key}={config[key]!r} has no effect: {method.title} fixes {fixed!r}. Leave it out.'
    has_outer = 'outer' in method.options
    for key, unused in (('method', config.method in METHODS), ('outer', not config.outer and has_outer)):
        options, without = config[f'{key}_options'], f'no effect on {key}={config[key]!r}. Leave it empty.'
        yield unused and options, f'{key}_options={dict(options)} has {without}'
    why = f"has no effect on {name}, which fixes it or sends no updates. Set outer=''."
    yield config.outer and not has_outer, f'outer={config.outer!r} {why}'
    typed = config.compute_dtype == 'float32' or find('model', config).takes('dtype')
    why = f'has no effect on model={config.model!r}, which takes no dtype. Leave it out.'
    yield not typed, f'compute_dtype={config.compute_dtype!r} {why}'
    near = f'the nearest is {max(1, round(size / workers)) * workers}'
    yield size % workers, f'batch_size={size} must be a multiple of num_workers={workers}; {near}.'
    share = f'the {own} examples of a worker, batch_size={size} / num_workers={workers}'
    yield own % config.accumulate, f'accumulate={config.accumulate} must divide {share}.'
    yield workers % virtual, f'workers_per_device={virtual} must divide config.num_workers={workers}.'
    single = f'{name} is defined for one worker, but config.num_workers={workers}'
    yield method.single_worker and workers != 1, f'{single}. Set it to 1, or use def_a for several.'
    alone = f'diagnostics_every={config.diagnostics_every} compares workers, but there is one. Set it to 0.'
    yield config.diagnostics_every and workers == 1, alone
    if shards > 1:
        needs, part = f'shards_per_worker={shards} needs', own // config.accumulate
        yield virtual > 1, f'{needs} whole devices, but config.workers_per_device={virtual}. Set it to 1.'
        whole = method.link is not None and method.kind not in ('dense', 'ef21')
        yield whole, f'{needs} a method of blocks, e.g. def, but config.{name} compresses whole tensors.'
        yield part % shards, f'{needs} to divide the {part} examples of which a worker takes a gradient.'
    if config.elastic:
        for key in ('diagnostics_every', 'check_replicas_every', 'recalibrate_batches', 'skip_nonfinite'):
            yield config[key], f'elastic=True has no {key}, but config.{key}={config[key]}. Set it to 0.'
        one = f'elastic=True needs a device for each worker, but config.workers_per_device={virtual}'
        yield virtual > 1, f'{one}. Set it to 1.'
        each = f'elastic=True needs one model, but config.{name} gives each worker a model of its own'
        yield 'own' in method.points, f'{each}. Choose another method, e.g. def.'
