"""What a key of a configuration is: its default, its meaning, its values, and when it may change."""

import sys
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple

import ml_collections

__all__ = ['Change', 'Key', 'factory', 'flag', 'integer', 'library', 'number', 'one_of', 'options', 'value']

Change = Literal['never', 'always', 'regroups', 'with_workers']


class Key(NamedTuple):
    """One key of a configuration."""

    default: Any
    help: str
    types: tuple[type, ...]
    valid: Callable[[Any], bool]
    allowed: str  # the values, for error messages
    names: tuple[str, ...] = ()  # the choices, if the values are names
    change: Change = 'never'  # on resumption; 'regroups' the state, or only together with num_workers

    @property
    def is_librarys(self) -> bool:
        """Whether it is an argument of the library."""
        return self.types == (object,)

    def accepts(self, value: Any) -> bool:
        """Whether the key may hold a value; a bool is no number."""
        numeric = bool not in self.types and object not in self.types
        return (
            isinstance(value, self.types) and not (numeric and isinstance(value, bool)) and self.valid(value)
        )


def value(
    default: Any,
    help: str,
    valid: Callable[[Any], bool],
    allowed: str,
    *types: type,
    change: Change = 'never',
) -> Key:
    """A key of the default's type, or of `types`, with a rule of its own."""
    return Key(default, help, types or (type(default),), valid, allowed, change=change)


def flag(help: str, change: Change = 'never') -> Key:
    """A choice that is off by default."""
    return value(False, help, lambda value: True, 'True or False', change=change)


def integer(default: int, low: int, help: str, change: Change = 'never') -> Key:
    """An integer with a smallest value."""
    return value(default, help, lambda value: value >= low, f'an integer >= {low}', change=change)


def number(default: float, valid: Callable[[float], bool], allowed: str, help: str) -> Key:
    """A finite number."""
    return value(
        default, help, lambda x: abs(x) <= sys.float_info.max and valid(x), f'a number {allowed}', int, float
    )


def one_of(default: str, names: Iterable[str], help: str) -> Key:
    """A name."""
    names = tuple(names)
    allowed = f'one of {", ".join(names)}'
    return Key(default, help, (str,), lambda value: value in names, allowed, names)


def factory(default: str, names: Iterable[str], help: str) -> Key:
    """A name or an import path, which `factories` checks; empty for none where that is the default."""
    names = tuple(names)
    allowed = f'one of {", ".join(names)}, or an import path such as my_package.my_module:factory'
    allowed += '' if default else ', or empty for none'

    def valid(value: str) -> bool:
        return value in names or ':' in value or value == default

    return Key(default, help, (str,), valid, allowed, names)


def options(of: str) -> Key:
    """Arguments of the factory that another key names."""
    allowed = 'a dict of arguments of the factory'
    return value({}, f'arguments of `{of}`', lambda value: True, allowed, ml_collections.ConfigDict, dict)


def library(default: Any, help: str) -> Key:
    """An argument of the library, which checks it."""

    def one_line(value: Any) -> bool:
        return not isinstance(value, ml_collections.ConfigDict)

    return value(default, help, one_line, 'a value that the library accepts', object)
