"""Finds what a configuration names: by a name in a table, or by an import path `package.module:factory`.

A factory is any callable. The trainer offers it what it knows, e.g. the number of classes, and the key
`<key>_options` of the configuration holds further arguments, all by keyword.
"""

import dataclasses
import importlib
import inspect
import traceback
from collections.abc import Callable, Collection, Mapping
from typing import Any

import ml_collections

from def_jax.checks import nearest

__all__ = ['Factory', 'find', 'said']


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
        return argument in _arguments(self.function) or _takes_any(self.function)

    def make(self, kind: type, *, required: Mapping[str, Any], **offered: Any) -> Any:
        """Calls the factory; ValueError if it fails, or returns something else than `kind`.

        `required` are arguments that it must take; those `offered` it gets if it takes them and the options
        do not set them.
        """
        taken = {name: value for name, value in offered.items() if self.takes(name)}
        arguments = {**taken, **self.options, **required}
        for name, parameter in _arguments(self.function).items():
            if parameter.default is inspect.Parameter.empty and name not in arguments:
                raise ValueError(f'{self} needs the option {name!r}: set --config.{self.key}_options.{name}.')
        try:
            made = self.function(**arguments)
        except FileNotFoundError:
            raise  # data that are missing, with their own remedy
        except Exception as error:  # it may be anyone's code
            options = f' with {self.key}_options={dict(self.options)}' if self.options else ''
            raise ValueError(f'{self}{options}: {said(error)}') from error
        if not isinstance(made, kind):
            wanted = f'{kind.__module__}.{kind.__qualname__}'
            raise ValueError(f'{self} must return {wanted}, but returned {_described(made)}.')
        return made

    def __str__(self) -> str:
        return f'{self.key}={self.name!r}'


def find(
    key: str,
    config: Mapping[str, Any],
    table: Mapping[str, Callable[..., Any]],
    *,
    required: Collection[str] = (),
    keys: Mapping[str, Any] | None = None,
) -> Factory:
    """Finds the factory that `config[key]` names, and checks the names of its options.

    Args:
        key: the configuration's key, e.g. 'optimizer'.
        config: a configuration; `config[f'{key}_options']` holds the options.
        table: the factories that have a name.
        required: the arguments that every factory of this kind must take.
        keys: further keys of the configuration that are arguments of some factories, with the values that
            they keep if this one does not take them.

    Raises:
        ValueError: if there is none, it does not take what is required or one of the options, or a key has
            no effect.

    >>> import ml_collections
    >>> config = ml_collections.ConfigDict({'model': 'fractions:Fraction', 'model_options': {'numerator': 3}})
    >>> find('model', config, {}).make(object, required={}, denominator=4)
    Fraction(3, 4)
    """
    name, options = config[key], config[f'{key}_options']
    options = options.to_dict() if isinstance(options, ml_collections.ConfigDict) else dict(options)
    factory = Factory(key, name, table[name] if name in table else _imported(key, name, table), options)
    arguments = _arguments(factory.function)
    for argument in required:
        if not factory.takes(argument):
            raise ValueError(f'{factory} must take the argument {argument!r}; it takes {_list(arguments)}.')
    keys = keys or {}
    for other, unused in keys.items():
        value = tuple(config[other]) if isinstance(config[other], list) else config[other]
        if not factory.takes(other) and value != unused:
            raise ValueError(
                f'{other}={value!r} has no effect on {factory}, which takes no argument of that name. Set '
                f'{other}={unused}, or see --config.{key}_options.'
            )
    for argument in (*required, *keys):
        if argument in options:
            raise ValueError(f'{key}_options.{argument} cannot be set: config.{argument} is passed.')
    free = [argument for argument in arguments if argument not in (*required, *keys)]
    for option in options:
        if not factory.takes(option):
            raise ValueError(
                f'{key}_options.{option} is not an option of {factory}, which takes {_list(free)}.'
                f'{nearest(option, free)}'
            )
    return factory


def _imported(key: str, name: str, table: Mapping[str, Any]) -> Callable[..., Any]:
    """The callable at an import path."""
    module_name, _, attribute = name.partition(':')
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # it may be anyone's code
        raise ValueError(
            f'{key}={name!r}: the module {module_name!r} cannot be imported ({said(error)}). Start the '
            'program in the folder that holds it, or set PYTHONPATH.'
        ) from error
    try:
        factory = getattr(module, attribute)
    except AttributeError:
        public = [each for each in dir(module) if not each.startswith('_')]
        raise ValueError(
            f'{key}={name!r}: the module {module_name!r} has no {attribute!r}.{nearest(attribute, public)}'
        ) from None
    if not callable(factory):
        raise ValueError(f'{key}={name!r} must be callable, but is {_described(factory)}.')
    return factory


def _arguments(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The arguments that can be passed by keyword."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {name: each for name, each in _signature(function).items() if each.kind in kinds}


def _takes_any(function: Callable[..., Any]) -> bool:
    return any(each.kind is inspect.Parameter.VAR_KEYWORD for each in _signature(function).values())


def _signature(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):  # some classes written in C have none
        return {'options': inspect.Parameter('options', inspect.Parameter.VAR_KEYWORD)}


def _list(names: Collection[str]) -> str:
    return ', '.join(names) or 'none'


def _described(value: Any) -> str:
    return f'{type(value).__name__} {value!r}'.split('\n')[0][:100]


def said(error: Exception) -> str:
    """An error in one line, with its place unless it speaks for itself."""
    text = ' '.join(str(error).split())
    if isinstance(error, (ValueError, ImportError)) and text:
        return text
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename[:1] != '<']
    return f'{type(error).__name__}: {text}, {frames[-1].filename}:{frames[-1].lineno}'
