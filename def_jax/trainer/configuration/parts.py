"""What a configuration names, by a name in a table or an import path `package.module:factory`, made."""

import copy
import functools
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import ml_collections
import optax

from def_jax import def_adamw, def_sgd
from def_jax.baselines.methods import METHODS, OPTIONS, Method, nearest
from def_jax.trainer.configuration.defaults import KEYS, LIBRARY
from def_jax.trainer.configuration.schedules import sgd
from def_jax.trainer.data.dataset import Dataset
from def_jax.trainer.errors import explained
from def_jax.trainer.state import PerWorker
from def_jax.trainer.tasks.base import Task
from def_jax.types import AxisName

__all__ = ['Factory', 'complete', 'find_method', 'make_dataset', 'make_model', 'make_optimizer', 'make_task']

_PRESETS: dict[str, Callable[..., Any]] = {'sgd': def_sgd, 'adamw': def_adamw}  # of methods in bytes


class Factory:
    """The callable that `config[key]` names; raises ValueError unless it fits its entry in `KEYS`.

    >>> config = {'model': 'fractions:Fraction', 'model_options': {'numerator': 3}}
    >>> Factory('model', config).make(object, denominator=4)
    Fraction(3, 4)
    """

    def __init__(self, key: str, config: Mapping[str, Any]):
        entry, name, self._key, self.name = KEYS[key], config[key], key, f'{key}={config[key]!r}'
        self.options = ml_collections.ConfigDict(config[f'{key}_options']).to_dict()
        self.passed = {argument: config[argument] for argument in entry.passed if argument in config}
        with explained(f'{self.name} cannot be used; start the program in its folder, or set PYTHONPATH'):
            preset = key == 'optimizer' and find_method(config).in_bytes and _PRESETS.get(name)
            self.function = preset or entry.table.get(name) or pkgutil.resolve_name(name)
            self.parameters = inspect.signature(self.function).parameters
        for argument, unused in entry.passed.items():
            if argument in self.options:
                raise ValueError(f'{key}_options.{argument} cannot be set: config.{argument} is passed.')
            if unused is not ... and not self.takes(argument) and (value := self.passed[argument]) != unused:
                cure = f'Set {argument}={unused}, or see --config.{key}_options'
                raise ValueError(f'{argument}={value!r} has no effect on {self.name}. {cure}.')
        for argument in (*(each for each, unused in entry.passed.items() if unused is ...), *self.options):
            if not self.takes(argument):
                takes = ', '.join(self.parameters) + '.' + nearest(argument, self.parameters)
                raise ValueError(f'{self.name} takes no argument {argument!r}, only {takes}')

    def takes(self, argument: str) -> bool:
        """Whether the callable has an argument of that name."""
        return argument in self.parameters or any(p.kind is p.VAR_KEYWORD for p in self.parameters.values())

    def make(self, kind: Any, **given: Any) -> Any:
        """Calls the factory with what it takes of the keys and arguments given; returns a `kind`."""
        taken = {name: value for name, value in {**self.passed, **given}.items() if self.takes(name)}
        with explained(f'{self.name} with {self._key}_options={self.options}'):
            made = self.function(**taken | self.options)
        if not isinstance(made, kind):
            wanted, found = f'{kind.__module__}.{kind.__qualname__}', f'{type(made).__name__} {made!r}'
            raise ValueError(f'{self.name} must return {wanted}, but returned {found[:100]}.')
        return made


def make_dataset(config: Mapping[str, Any]) -> Dataset:
    """Opens the data set, with as many examples as the configuration says."""
    dataset = Factory('dataset', config).make(Dataset, data_dir=config['data_dir'] or None)
    dataset = dataset.limited(**{name: config[name] for name in KEYS if name.endswith('_examples')})
    dataset.evaluated(config['evaluate_on'])  # that there is one
    return dataset


def make_model(config: Mapping[str, Any], model_options: Mapping[str, Any]) -> Any:
    """Builds the model, which gets `dtype` and the data set's `model_options`."""
    options = {**model_options, 'dtype': jnp.dtype(config['compute_dtype'])}
    return Factory('model', config).make(object, **options)


def make_task(config: Mapping[str, Any], dataset: Dataset) -> Task:
    """Builds the model and the task."""
    model = make_model(config, dataset.model_options)
    return Factory('task', config).make(Task, model=model, dataset=dataset)


def make_optimizer(
    config: ml_collections.ConfigDict, learning_rate: optax.ScalarOrSchedule, axis_name: AxisName
) -> optax.GradientTransformation:
    """The configured optimizer and the communication of the configured method.

    The L2 penalty of `sgd` has its gradient at the detached point, Algorithm 1, line 6.
    """
    config, method, factory = complete(config), find_method(config), Factory('optimizer', config)
    given = {name: config[name] for name in LIBRARY}
    if config['outer']:
        given['outer'] = Factory('outer', config).make(optax.GradientTransformation)
    if factory.function in _PRESETS.values():
        for name in given.keys() - {'ratio', 'average_every'}:  # which every run has
            if not factory.takes(name) and given[name] != KEYS[name].default:
                what = f'method={config["method"]!r} with {factory.name}'
                raise ValueError(f'{name}={config[name]!r} has no effect on {what}; leave it out.')
        given |= {'compression': given['ratio'], 'axis_name': axis_name, 'seed': config['seed']}
        given |= {**factory.passed, 'learning_rate': learning_rate, **factory.options}
        return factory.function(**{name: value for name, value in given.items() if factory.takes(name)})
    decay, blocks = config['weight_decay'], {name: given.pop(name) for name in ('order', 'allocation')}
    of_vectors = {'adam_weight_decay': decay} if 'adam_weight_decay' in factory.parameters else {}
    shared = factory.make(optax.GradientTransformation, learning_rate=learning_rate, **of_vectors)
    local = optax.add_decayed_weights(decay) if factory.function is sgd else optax.identity()
    compressor = method.compressor(given['ratio'], bits=given['bits'], **blocks)
    outer = f'outer={config["outer"]!r} with {dict(config["outer_options"])}'
    with explained(f'{outer} cannot make an update', (TypeError, AttributeError)):  # the library tries it
        optimizer = method.optimizer(local, shared, axis_name, compressor, seed=config['seed'], **given)
    return optimizer


def find_method(config: Mapping[str, Any]) -> Method:
    """The method: one of `METHODS`, or the factory of a transformation that averages over `axis_name`."""
    if config['method'] in METHODS:
        return METHODS[config['method']]
    factory = Factory('method', config)

    @functools.wraps(factory.function)
    def link(**given: Any) -> optax.GradientTransformation:
        made = factory.make(optax.GradientTransformation, **given)

        def update(updates, state, params=None):
            updates, inner = made.update(updates, state.state, params)
            return updates, PerWorker(inner)

        return optax.GradientTransformation(lambda params: PerWorker(made.init(params)), update)

    # Blocks are the library's: a factory that makes its own takes their options by `method_options`.
    own = {'order', 'allocation', *factory.options}
    takes = tuple(name for name in OPTIONS if name in factory.parameters.keys() - own)
    for name in takes:
        if factory.parameters[name].default is inspect.Parameter.empty and config[name] is None:
            raise ValueError(f'{name}=None must be set: {factory.name} has no default for it.')
    return Method(config['method'].rpartition(':')[2], 'x', kind='baseline', link=link, takes=takes)


def complete(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The configuration with the method's own values in place of None, as a run records it."""
    config, method = copy.deepcopy(config), find_method(config)
    own = {**OPTIONS, **method.sends, **method.options}
    if method.in_bytes and (preset := _PRESETS.get(config.optimizer)):
        own |= {name: each.default for name, each in inspect.signature(preset).parameters.items()}
    config.update({name: own[name] for name, key in KEYS.items() if key.default is config[name] is None})
    return config.lock()
