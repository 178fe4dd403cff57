"""What a configuration names, by a name in a table or an import path `package.module:factory`, made."""

import copy
import dataclasses
import json
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from def_jax import def_adamw, def_sgd
from def_jax.baselines.methods import METHODS, OPTIONS, Method
from def_jax.ground.types import AxisName
from def_jax.presets import ADAMW_DETACH, chosen_bits
from def_jax.trainer.configuration.defaults import KEYS
from def_jax.trainer.configuration.schedules import OPTIMIZERS
from def_jax.trainer.data.dataset import Dataset
from def_jax.trainer.errors import explained
from def_jax.trainer.state import PerWorker
from def_jax.trainer.tasks.base import Task

__all__ = [
    *('complete', 'find', 'find_method', 'make', 'make_dataset', 'make_model', 'make_optimizer'),
    *('make_schedule', 'make_task'),
]

_PRESETS: dict[str, Callable[..., Any]] = {'sgd': def_sgd, 'adamw': def_adamw}  # of methods in bytes


def find(key: str, config: Mapping[str, Any]) -> Callable[..., Any]:
    """The factory that `config[key]` names; ValueError if there is none.

    >>> find('model', {'model': 'fractions:Fraction'})
    <class 'fractions.Fraction'>
    """
    name = config[key]
    with explained(f'{key}={name!r} cannot be used; start the program in its folder, or set PYTHONPATH'):
        function = KEYS[key].table.get(name) or pkgutil.resolve_name(name)
        if not callable(function):
            raise TypeError(f'{function!r} is not a callable object')
    return function


def make(key: str, config: Mapping[str, Any], kind: Any, **given: Any) -> Any:
    """Calls the factory that `config[key]` names, with what is given and its `_options`; returns a `kind`.

    >>> config = {'model': 'fractions:Fraction', 'model_options': {'numerator': 3}}
    >>> make('model', config, object, denominator=4)
    Fraction(3, 4)
    """
    name, function, options = f'{key}={config[key]!r}', find(key, config), _options(key, config, given)
    with explained(f'{name} with {key}_options={options}'):
        made = function(**given, **options)
    if not isinstance(made, kind):
        wanted, found = f'{kind.__module__}.{kind.__qualname__}', f'{type(made).__name__} {made!r}'
        raise ValueError(f'{name} must return {wanted}, but returned {found[:100]}.')
    return made


def _options(key: str, config: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The further arguments of a factory; ValueError if one of them is given already."""
    options = ml_collections.ConfigDict(config[f'{key}_options']).to_dict()
    for argument in options.keys() & given.keys():
        raise ValueError(f'{key}_options.{argument} cannot be set: it is passed, see config.{argument}.')
    return options


def make_dataset(config: ml_collections.ConfigDict) -> Dataset:
    """Opens the data set, with as many examples as the configuration says."""
    folder = {'data_dir': config.data_dir} if config.data_dir else {}
    dataset = make('dataset', config, Dataset, **folder).limited(
        train_examples=config.train_examples,
        validation_examples=config.validation_examples,
        test_examples=config.test_examples,
        evaluate_train_examples=config.evaluate_train_examples,
    )
    dataset.evaluated(config.evaluate_on)  # that there is one
    what = f'dataset={config.dataset!r}: model_options'
    options = {name: _plain(f'{what}[{name!r}]', value) for name, value in dataset.model_options.items()}
    return dataclasses.replace(dataset, model_options=options)


def _plain(name: str, value: Any) -> Any:
    """The value as `def_jax.trainer.load` reads it, with Python's numbers in place of NumPy's scalars.

    >>> _plain('model_options', {'sizes': [np.int64(3)], 'grey': np.False_})
    {'sizes': [3], 'grey': False}
    """

    def number(x):
        if isinstance(x, np.generic):
            return x.item()
        raise TypeError

    try:
        plain = json.loads(json.dumps(value, default=number))
        fits = plain == value
    except (TypeError, ValueError, RecursionError):
        fits = False
    if not fits:
        allowed = 'a number, text, a bool, None, or lists and dicts of these, with text as keys'
        why = 'since def_jax.trainer.load reads it from the file of the trained model'
        raise ValueError(f'{name}={value!r} must be {allowed}, {why}.')
    return plain


def make_model(config: ml_collections.ConfigDict, model_options: Mapping[str, Any]) -> Any:
    """Builds the model; `config.model_options` override the data set's options and `dtype`."""
    given = dict(model_options)
    if config.compute_dtype != 'float32':
        given['dtype'] = jnp.dtype(config.compute_dtype)
    return make('model', config, object, **{k: v for k, v in given.items() if k not in config.model_options})


def make_task(config: ml_collections.ConfigDict, dataset: Dataset) -> Task:
    """Builds the model and the task."""
    return make('task', config, Task, model=make_model(config, dataset.model_options), dataset=dataset)


def make_schedule(config: ml_collections.ConfigDict, num_steps: int) -> optax.Schedule:
    """Builds the schedule of the learning rate, of a run of so many steps."""
    given = dict(learning_rate=config.learning_rate, num_steps=num_steps)
    if config.schedule == 'drops':
        given['learning_rate_drops'] = config.learning_rate_drops
    return make('schedule', config, Callable, **given)


def make_optimizer(
    config: ml_collections.ConfigDict, learning_rate: optax.ScalarOrSchedule, axis_name: AxisName
) -> optax.GradientTransformation:
    """The configured optimizer and the communication of the configured method.

    The L2 penalty of `sgd` has its gradient at the detached point, Algorithm 1, line 6.
    """
    config, method = complete(config), find_method(config)
    outer = {'outer': make('outer', config, optax.GradientTransformation)} if config.outer else {}
    if method.in_bytes and config.optimizer in _PRESETS:
        return _preset(config, learning_rate, axis_name, outer)
    local, given = optax.identity(), {'learning_rate': learning_rate}
    if config.optimizer == 'sgd':
        local = optax.add_decayed_weights(config.weight_decay)
        given |= dict(momentum=config.momentum)
    elif config.optimizer in OPTIMIZERS:
        given |= dict(weight_decay=config.weight_decay)
    shared = make('optimizer', config, optax.GradientTransformation, **given)
    compressor = method.compressor(
        ratio=config.ratio, bits=config.bits, order=config.order, allocation=config.allocation
    )
    what = f'outer={config.outer!r} with {dict(config.outer_options)}'
    with explained(f'{what} cannot make an update', (TypeError, AttributeError)):  # the library tries it
        return method.optimizer(
            local,
            shared,
            axis_name,
            compressor,
            seed=config.seed,
            inside=_inside(config),
            ratio=config.ratio,
            bits=config.bits,
            detach=config.detach,
            every=config.every,
            decay=config.decay,
            average_every=config.average_every,
            rank=config.rank,
            chunk=config.chunk,
            error_decay=config.error_decay,
            freeze_after=config.freeze_after,
            skip_nonfinite=config.skip_nonfinite,
            overlap=config.overlap,
            **outer,
        )


def _inside(config: ml_collections.ConfigDict) -> int | None:
    """The devices of a worker; None if it is one."""
    return config.inside if config.inside > 1 else None


def _preset(
    config: ml_collections.ConfigDict,
    learning_rate: optax.ScalarOrSchedule,
    axis_name: AxisName,
    outer: dict[str, optax.GradientTransformation],
) -> optax.GradientTransformation:
    """DEF-Q as `def_sgd` or `def_adamw`; ValueError if a key is set that these do not have."""
    preset = _PRESETS[config.optimizer]
    names = ('every', 'decay', 'rank', 'chunk', 'error_decay', 'freeze_after')
    for name in names if preset is def_adamw else (*names, 'outer'):
        if config[name] != KEYS[name].default:
            what = f'method={config.method!r} with optimizer={config.optimizer!r}'
            raise ValueError(f'{name}={config[name]!r} has no effect on {what}; leave it out.')
    given = dict(
        learning_rate=learning_rate,
        compression=config.ratio,
        axis_name=axis_name,
        inside=_inside(config),
        bits=config.bits,
        detach=config.detach,
        order=config.order,
        allocation=config.allocation,
        weight_decay=config.weight_decay,
        skip_nonfinite=config.skip_nonfinite,
        overlap=config.overlap,
        seed=config.seed,
        **outer,
    )
    if config.optimizer == 'sgd':
        given |= dict(momentum=config.momentum)
    options = _options('optimizer', config, given)
    with explained(f'optimizer={config.optimizer!r} with optimizer_options={options}', (TypeError,)):
        return preset(**given, **options)


def find_method(config: Mapping[str, Any]) -> Method:
    """The method: one of `METHODS`, or the factory of a transformation that averages over `axis_name`."""
    if config['method'] in METHODS:
        return METHODS[config['method']]
    find('method', config)

    def link(axis_name: AxisName) -> optax.GradientTransformation:
        made = make('method', config, optax.GradientTransformation, axis_name=axis_name)

        def update(updates, state, params=None):
            updates, inner = made.update(updates, state.state, params)
            return updates, PerWorker(inner)

        return optax.GradientTransformation(lambda params: PerWorker(made.init(params)), update)

    return Method(config['method'].rpartition(':')[2], 'x', kind='baseline', link=link)


def complete(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The configuration with the method's own values in place of None, as a run records it."""
    config, method = copy.deepcopy(config), find_method(config)
    own = {**OPTIONS, **method.sends, **method.options}
    if method.in_bytes:
        own['bits'] = chosen_bits(config.ratio, 'auto')
        if config.optimizer == 'adamw':  # the preset's own
            own['detach'] = ADAMW_DETACH
    config.update({name: own[name] for name, key in KEYS.items() if key.default is config[name] is None})
    return config.lock()
