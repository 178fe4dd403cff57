"""Finds what a configuration names: by a name in a table, or by an import path `package.module:factory`.

A factory is any callable. The trainer offers it what it knows, e.g. the number of classes, and the key
`<key>_options` of the configuration holds further arguments, all by keyword.
"""

import dataclasses
import importlib
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

import ml_collections

from def_jax.checks import nearest
from def_jax.trainer.configuration.defaults import KEYS
from def_jax.trainer.errors import one_line

__all__ = ['Factory', 'find']


@dataclasses.dataclass(frozen=True)
class Factory:
    """A callable that a configuration names, with its options.

    Attributes:
        key: the configuration's key, e.g. 'optimizer'.
        name: its value.
        function: the callable.
        options: the arguments from the configuration, `config.<key>_options`.
    """

    key: str
    name: str
    function: Callable[..., Any]
    options: Mapping[str, Any]

    def takes(self, argument: str) -> bool:
        """Whether the callable has an argument of that name."""
        parameters = _parameters(self.function)
        return argument in parameters or any(each.kind is each.VAR_KEYWORD for each in parameters.values())

    def make(self, kind: type, **given: Any) -> Any:
        """Calls the factory with its options and what it takes of the arguments given.

        Raises:
            ValueError: if it fails, or returns something else than `kind`.
        """
        arguments = {name: value for name, value in given.items() if self.takes(name)} | dict(self.options)
        for name, parameter in _parameters(self.function).items():
            if parameter.default is parameter.empty and name not in arguments and _by_keyword(parameter):
                raise ValueError(f'{self} needs the option {name!r}: set --config.{self.key}_options.{name}.')
        try:
            made = self.function(**arguments)
        except FileNotFoundError:
            raise  # data that are missing, with their own remedy
        except Exception as error:  # it may be anyone's code
            options = f' with {self.key}_options={dict(self.options)}' if self.options else ''
            raise ValueError(f'{self}{options}: {one_line(error, place=True)}') from error
        if not isinstance(made, kind):
            wanted = f'{kind.__module__}.{kind.__qualname__}'
            raise ValueError(f'{self} must return {wanted}, but returned {_described(made)}.')
        return made

    def __str__(self) -> str:
        return f'{self.key}={self.name!r}'


def find(name: str, config: Mapping[str, Any]) -> Factory:
    """Finds the factory that `config[name]` names, and checks the names of its options.

    Args:
        name: a key, e.g. 'optimizer'; `KEYS[name]` says what such a factory must take.
        config: a configuration; `config[f'{name}_options']` holds the options.

    Raises:
        ValueError: if there is none, it does not take what is required or one of the options, or a key has
            no effect.

    >>> config = {'model': 'fractions:Fraction', 'model_options': {'numerator': 3}}
    >>> find('model', config).make(object, denominator=4)
    Fraction(3, 4)
    """
    key = KEYS[name]
    value, options = config[name], config[f'{name}_options']
    options = options.to_dict() if isinstance(options, ml_collections.ConfigDict) else dict(options)
    function = key.rule.table[value] if value in key.rule.table else _imported(name, value, key.rule.table)
    factory = Factory(name, value, function, options)
    free = [argument for argument, each in _parameters(function).items() if _by_keyword(each)]
    for argument in key.required:
        if not factory.takes(argument):
            raise ValueError(f'{factory} must take the argument {argument!r}; it takes {_list(free)}.')
    for argument, unused in key.passed.items():
        given = tuple(config[argument]) if isinstance(config[argument], list) else config[argument]
        if not factory.takes(argument) and given != unused:
            raise ValueError(
                f'{argument}={given!r} has no effect on {factory}, which takes no argument of that name. Set '
                f'{argument}={unused}, or see --config.{name}_options.'
            )
    for argument in (*key.required, *key.passed):
        if argument in options:
            raise ValueError(f'{name}_options.{argument} cannot be set: config.{argument} is passed.')
    free = [argument for argument in free if argument not in (*key.required, *key.passed)]
    for option in options:
        if not factory.takes(option):
            raise ValueError(
                f'{name}_options.{option} is not an option of {factory}, which takes {_list(free)}.'
                f'{nearest(option, free)}'
            )
    return factory


def _imported(name: str, path: str, table: Mapping[str, Any]) -> Callable[..., Any]:
    """The callable at an import path."""
    module_name, _, attribute = path.partition(':')
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # it may be anyone's code
        raise ValueError(
            f'{name}={path!r}: the module {module_name!r} cannot be imported '
            f'({one_line(error, place=True)}). Start the program in its folder, or set PYTHONPATH.'
        ) from error
    if not hasattr(module, attribute):
        public = [each for each in dir(module) if not each.startswith('_')]
        raise ValueError(
            f'{name}={path!r}: the module {module_name!r} has no {attribute!r}.{nearest(attribute, public)}'
        )
    if not callable(function := getattr(module, attribute)):
        raise ValueError(f'{name}={path!r} must be callable, but is {_described(function)}.')
    return function


def _parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):  # some classes written in C have none
        return {'options': inspect.Parameter('options', inspect.Parameter.VAR_KEYWORD)}


def _by_keyword(parameter: inspect.Parameter) -> bool:
    return parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)


def _list(names: Collection[str]) -> str:
    return ', '.join(names) or 'none'


def _described(value: Any) -> str:
    return f'{type(value).__name__} {value!r}'.split('\n')[0][:100]
