"""Finds what a configuration names: by a name in a table, or by an import path `package.module:factory`."""

import dataclasses
import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from def_jax.checks import nearest
from def_jax.trainer.configuration.defaults import KEYS
from def_jax.trainer.errors import one_line

__all__ = ['Factory', 'find']


@dataclasses.dataclass(frozen=True)
class Factory:
    """The callable that the key `key` of a configuration names by `name`, with `config.<key>_options`."""

    key: str
    name: str
    function: Callable[..., Any]
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

    def check_options(self, required: Iterable[str] = ()) -> None:
        """Raises ValueError unless the callable takes what is required, and the options."""
        wrong = {name: f'{self} must take the argument {name!r}' for name in required}
        wrong |= {name: f'{self.key}_options.{name} is no option of {self}' for name in self.options}
        for argument, problem in wrong.items():
            if not self.takes(argument):
                near = nearest(argument, self._parameters)
                raise ValueError(f'{problem}; it takes {", ".join(self._parameters) or "none"}.{near}')

    def make(self, kind: type, **given: Any) -> Any:
        """Calls the factory with its options and what it takes of the arguments given; returns a `kind`."""
        arguments = {name: value for name, value in given.items() if self.takes(name)} | dict(self.options)
        try:
            made = self.function(**arguments)
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
    entry, value = KEYS[key], config[key]
    options = getattr(config[f'{key}_options'], 'to_dict', lambda: config[f'{key}_options'])()
    function = (entry.table or {}).get(value) or _imported(f'{key}={value!r}', value)
    factory = Factory(key, value, function, options)
    factory.check_options(entry.required)
    for argument, unused in entry.passed.items():
        given = tuple(config[argument]) if isinstance(config[argument], list) else config[argument]
        if not factory.takes(argument) and given != unused:
            problem = f'{argument}={given!r} has no effect on {factory}, which takes no such argument'
            raise ValueError(f'{problem}. Set {argument}={unused}, or see --config.{key}_options.')
    for argument in options.keys() & {*entry.required, *entry.passed}:
        raise ValueError(f'{key}_options.{argument} cannot be set: config.{argument} is passed.')
    return factory


def _imported(what: str, path: str) -> Callable[..., Any]:
    module, _, attribute = path.partition(':')
    try:
        function = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # it may be anyone's code
        cure = 'Start the program in its folder, or set PYTHONPATH'
        raise ValueError(f'{what} cannot be imported ({one_line(error, place=True)}). {cure}.') from error
    if not callable(function):
        raise ValueError(f'{what} must be callable, but is {type(function).__name__} {str(function)[:100]}.')
    return function
