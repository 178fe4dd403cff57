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
                key.check(name, config[name], key.help)
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
    """Whether keys contradict each other, with what is then to be said."""
    name, size, workers = f'method={config.method!r}', config.batch_size, config.num_workers
    for key, fixed in method.sends.items():
        yield (
            key != 'ratio' and config[key] not in (None, fixed),
            f'{key}={config[key]!r} has no effect: {method.title} fixes {fixed!r}. Leave it out.',
        )
    has_outer = 'outer' in method.options
    for key, unused in (('method', config.method in METHODS), ('outer', not config.outer and has_outer)):
        options = f'{key}_options={dict(config[f"{key}_options"])}'
        yield (
            unused and config[f'{key}_options'],
            f'{options} has no effect on {key}={config[key]!r}. Set {key}_options={{}}.',
        )
    yield (
        config.outer and not has_outer,
        f"outer={config.outer!r} has no effect on {name}, which fixes it or sends no updates. Set outer=''.",
    )
    yield (
        config.compute_dtype != 'float32' and not find('model', config).takes('dtype'),
        f'compute_dtype={config.compute_dtype!r} has no effect on model={config.model!r}, which takes no '
        "dtype. Set compute_dtype='float32'.",
    )
    near = max(1, round(size / workers)) * workers
    yield (
        size % workers,
        f'batch_size={size} must be a multiple of num_workers={workers}; the nearest is {near}.',
    )
    given = f'batch_size={size} / num_workers={workers}'
    yield (
        size // workers % config.accumulate,
        f'accumulate={config.accumulate} must divide the {size // workers} examples of a worker, {given}.',
    )
    virtual = config.workers_per_device
    yield (
        workers % virtual,
        f'workers_per_device={virtual} must divide config.num_workers={workers}: devices host equally many.',
    )
    yield (
        method.single_worker and workers != 1,
        f'{name} is defined for one worker, but config.num_workers={workers}. Set it to 1, or use def_a, its '
        'multi-worker form.',
    )
    yield (
        config.diagnostics_every and workers == 1,
        f'diagnostics_every={config.diagnostics_every} measures how workers differ, but there is one. Set '
        'config.diagnostics_every=0.',
    )
    if config.shards_per_worker > 1:
        yield from _conflicts_of_shards(config, method)
    if config.elastic:
        yield from _conflicts_of_elastic(config, method)


def _conflicts_of_shards(config: ml_collections.ConfigDict, method: Method) -> Iterator[tuple[object, str]]:
    name, size, workers = f'method={config.method!r}', config.batch_size, config.num_workers
    shards, virtual = config.shards_per_worker, config.workers_per_device
    share = size // workers // config.accumulate
    given = f'shards_per_worker={shards} needs'
    yield virtual > 1, f'{given} whole devices, but config.workers_per_device={virtual}. Set it to 1.'
    yield (
        method.link is not None and method.kind not in ('dense', 'ef21'),
        f'{given} a method that sends blocks, e.g. def, but config.{name} compresses whole tensors.',
    )
    yield (
        share % shards,
        f'{given} to divide the {share} examples of which a worker takes a gradient, batch_size={size} / '
        f'num_workers={workers} / accumulate={config.accumulate}.',
    )


def _conflicts_of_elastic(config: ml_collections.ConfigDict, method: Method) -> Iterator[tuple[object, str]]:
    name, virtual = f'method={config.method!r}', config.workers_per_device
    for key in ('diagnostics_every', 'check_replicas_every', 'recalibrate_batches', 'skip_nonfinite'):
        yield config[key], f'elastic=True has no {key}, but config.{key}={config[key]}. Set it to 0.'
    one = f'elastic=True needs a device for each worker, but config.workers_per_device={virtual}.'
    yield virtual > 1, f'{one} Set it to 1.'
    yield (
        'own' in method.points,
        f'elastic=True evaluates what workers share, but config.{name} gives each worker a model of its '
        'own. Choose another method, e.g. def.',
    )
