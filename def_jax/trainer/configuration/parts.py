"""What a configuration names, by a name in a table or an import path `package.module:factory`, made.

The library gets the keys that are its arguments, and checks them.
"""

import copy
import functools
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import optax

from def_jax import def_adamw, def_sgd
from def_jax.baselines.methods import METHODS, OPTIONS, Method
from def_jax.baselines.names import nearest
from def_jax.compressors import Compressor
from def_jax.trainer.configuration.defaults import KEYS
from def_jax.trainer.configuration.optimizers import sgd
from def_jax.trainer.data.dataset import Dataset
from def_jax.trainer.errors import one_line
from def_jax.trainer.state import PerWorker
from def_jax.trainer.tasks.base import Task
from def_jax.types import AxisName

__all__ = [
    *('Factory', 'complete', 'find', 'find_method', 'make_compressor', 'make_dataset', 'make_optimizer'),
    *('make_schedule', 'make_task'),
]

_BLOCKS = ('order', 'allocation')
_PRESETS: dict[str, Callable[..., Any]] = {'sgd': def_sgd, 'adamw': def_adamw}  # of methods in bytes


class Factory(NamedTuple):
    """The callable that the key `key` of a configuration names by `name`, with `config.<key>_options`."""

    key: str
    name: str
    function: Callable[..., Any]
    passed: Mapping[str, Any]  # keys that it gets if it takes them
    options: Mapping[str, Any]

    @property
    def _parameters(self) -> Mapping[str, inspect.Parameter]:
        try:
            return inspect.signature(self.function).parameters
        except (TypeError, ValueError):  # some classes written in C have none
            return {'options': inspect.Parameter('options', inspect.Parameter.VAR_KEYWORD)}

    def takes(self, argument: str) -> bool:
        """Whether the callable has an argument of that name."""
        parameters = self._parameters
        return argument in parameters or any(each.kind is each.VAR_KEYWORD for each in parameters.values())

    def check_takes(self, argument: str, problem: str) -> None:
        """Raises ValueError, of a problem, unless the callable takes that argument."""
        if not self.takes(argument):
            near = nearest(argument, self._parameters)
            raise ValueError(f'{problem}; it takes {", ".join(self._parameters) or "none"}.{near}')

    def check_options(self) -> None:
        """Raises ValueError unless the callable takes its options."""
        for name in self.options:
            self.check_takes(name, f'{self.key}_options.{name} is no option of {self}')

    def make(self, kind: type, **given: Any) -> Any:
        """Calls the factory with what it takes of the keys and arguments given; returns a `kind`."""
        taken = {name: value for name, value in {**self.passed, **given}.items() if self.takes(name)}
        try:
            made = self.function(**taken | dict(self.options))
        except FileNotFoundError:
            raise  # data that are missing, with their own remedy
        except Exception as error:  # it may be anyone's code
            tells = self.options or isinstance(error, TypeError)  # of an option that is missing
            options = f' with {self.key}_options={dict(self.options)}' if tells else ''
            raise ValueError(f'{self}{options}: {one_line(error, place=True)}') from error
        if not isinstance(made, kind):
            wanted, found = f'{kind.__module__}.{kind.__qualname__}', f'{type(made).__name__} {made!r}'
            raise ValueError(f'{self} must return {wanted}, but returned {found[:100]}.')
        return made

    def __str__(self) -> str:
        return f'{self.key}={self.name!r}'


def find(key: str, config: Mapping[str, Any]) -> Factory:
    """The factory that `config[key]` names; raises ValueError unless it fits its entry in `KEYS`.

    >>> config = {'model': 'fractions:Fraction', 'model_options': {'numerator': 3}}
    >>> find('model', config).make(object, denominator=4)
    Fraction(3, 4)
    """
    entry, name, options = KEYS[key], config[key], config[f'{key}_options']
    try:
        function = (entry.table or {}).get(name) or pkgutil.resolve_name(name)
    except Exception as error:  # it may be anyone's code
        why = f'cannot be imported ({one_line(error, place=True)})'
        raise ValueError(
            f'{key}={name!r} {why}. Start the program in its folder, or set PYTHONPATH.'
        ) from error
    passed = {argument: config[argument] for argument in entry.passed if argument in config}
    passed |= {argument: tuple(value) for argument, value in passed.items() if isinstance(value, list)}
    factory = Factory(key, name, function, passed, ml_collections.ConfigDict(options).to_dict())
    if not callable(function):
        found = f'{type(function).__name__} {str(function)[:100]}'
        raise ValueError(f'{factory} must be callable, but is {found}.')
    for argument, unused in entry.passed.items():
        if argument in factory.options:
            raise ValueError(f'{key}_options.{argument} cannot be set: config.{argument} is passed.')
        if unused is ...:
            factory.check_takes(argument, f'{factory} must take the argument {argument!r}')
        elif not factory.takes(argument) and passed[argument] != unused:
            why = f'has no effect on {factory}, which takes no such argument'
            cure = f'Set {argument}={unused}, or see --config.{key}_options'
            raise ValueError(f'{argument}={passed[argument]!r} {why}. {cure}.')
    factory.check_options()
    return factory


def make_dataset(config: Mapping[str, Any]) -> Dataset:
    """Opens the data set, with as many examples as the configuration says."""
    dataset = find('dataset', config).make(Dataset, data_dir=config['data_dir'] or None)
    names = ('train_examples', 'validation_examples', 'test_examples', 'evaluate_train_examples')
    dataset = dataset.limited(**{name: config[name] for name in names})
    dataset.evaluated(config['evaluate_on'])  # that there is one
    return dataset


def make_task(config: Mapping[str, Any], dataset: Dataset) -> Task:
    """Builds the model, which gets `dtype` and the data set's `model_options`, and the task."""
    dtype = jnp.dtype(config['compute_dtype'])
    model = find('model', config).make(object, **{**dataset.model_options, 'dtype': dtype})
    return find('task', config).make(Task, model=model, dataset=dataset)


def make_schedule(config: Mapping[str, Any], num_steps: int) -> optax.Schedule:
    """The learning rate as a function of the step, for a run of `num_steps`."""
    factory = find('schedule', config)
    schedule = factory.make(object, num_steps=num_steps)
    try:
        rate = jax.eval_shape(lambda step: jnp.asarray(schedule(step)), jax.ShapeDtypeStruct((), jnp.int32))
    except Exception as error:  # it may be anyone's code
        raise ValueError(f'{factory} returned no schedule: for a step, it raises {error!r}.') from error
    if rate.shape or not jnp.issubdtype(rate.dtype, jnp.floating):
        raise ValueError(f'{factory} must map a step to a number, but maps it to {rate.str_short()}.')
    return schedule


def make_compressor(config: Mapping[str, Any]) -> Compressor:
    """The blocks, of the configured method."""
    sent = {name: config[name] for name in ('ratio', 'bits', *_BLOCKS)}
    return find_method(config).compressor(**sent)


def make_optimizer(
    config: ml_collections.ConfigDict, learning_rate: optax.ScalarOrSchedule, axis_name: AxisName
) -> optax.GradientTransformation:
    """The configured optimizer and the communication of the configured method.

    The L2 penalty of `sgd` has its gradient at the detached point, Algorithm 1, line 6.
    """
    config, method, factory = complete(config), find_method(config), find('optimizer', config)
    given = {name: config[name] for name, key in KEYS.items() if key.library}
    if config['outer']:
        given['outer'] = find('outer', config).make(optax.GradientTransformation)
    if preset := _preset(config):
        what, takes = f'method={config["method"]!r} with {factory}', inspect.signature(preset).parameters
        for name in given:  # every run has a ratio and a period of averages
            if name not in (*takes, 'ratio', 'average_every') and given[name] != KEYS[name].default:
                raise ValueError(f'{name}={config[name]!r} has no effect on {what}; leave it out.')
        factory._replace(function=preset).check_options()
        given |= {'compression': given['ratio'], 'axis_name': axis_name, 'seed': config['seed']}
        given |= {**factory.passed, 'learning_rate': learning_rate, **factory.options}
        return preset(**{name: value for name, value in given.items() if name in takes})
    shared = factory.make(optax.GradientTransformation, learning_rate=learning_rate)
    decays = factory.function is sgd
    local = optax.add_decayed_weights(config['weight_decay']) if decays else optax.identity()
    options = {name: value for name, value in given.items() if name not in _BLOCKS}
    compressor = make_compressor(config)
    try:
        return method.optimizer(local, shared, axis_name, compressor, seed=config['seed'], **options)
    except (TypeError, AttributeError) as error:  # the library tries the outer optimizer
        outer = f'outer={config["outer"]!r} with {dict(config["outer_options"])}'
        raise ValueError(f'{outer} cannot make an update: {one_line(error, place=True)}') from error


def find_method(config: Mapping[str, Any]) -> Method:
    """The method: one of `METHODS`, or the factory of a transformation that averages over `axis_name`."""
    if config['method'] in METHODS:
        return METHODS[config['method']]
    factory = find('method', config)

    @functools.wraps(factory.function)
    def link(**given: Any) -> optax.GradientTransformation:
        made = factory.make(optax.GradientTransformation, **given)

        def update(updates, state, params=None):
            updates, inner = made.update(updates, state.state, params)
            return updates, PerWorker(inner)

        return optax.GradientTransformation(lambda params: PerWorker(made.init(params)), update)

    free = inspect.signature(factory.function).parameters.keys() - factory.options.keys()
    takes = tuple(name for name in OPTIONS if name in free)
    return Method(factory.name.rpartition(':')[2], 'x', kind='baseline', link=link, takes=takes)


def complete(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The configuration with the method's own values in place of None, as a run records it."""
    config, method = copy.deepcopy(config), find_method(config)
    own = {**OPTIONS, **method.sends, **method.options}
    if preset := _preset(config):
        own |= {name: each.default for name, each in inspect.signature(preset).parameters.items()}
    for name in [name for name, key in KEYS.items() if key.default is config[name] is None]:
        config[name] = own[name]
    return config.lock()


def _preset(config: Mapping[str, Any]) -> Callable[..., Any] | None:
    """The complete optimizer that a method in bytes is, if there is one in place of the configured one."""
    return _PRESETS.get(config['optimizer']) if find_method(config).in_bytes else None
