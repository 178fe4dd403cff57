"""What a key of a configuration may hold, and when it may change. `defaults` declares every key."""

import math
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import ml_collections

from def_jax.checks import nearest

__all__ = [
    'ARGUMENTS',
    'FLAG',
    'FORMER',
    'LIBRARY',
    'Key',
    'Rule',
    'at_least',
    'hint',
    'named',
    'one_of',
    'real',
]

_NONE: Mapping[str, Any] = MappingProxyType({})


class Rule(NamedTuple):
    """The values of a key."""

    accepts: Callable[[Any], bool]
    allowed: str  # for error messages
    table: Mapping[str, Any] = _NONE  # what the names stand for, if the values are names
    is_factory: bool = False  # whether `factories` finds what a name or an import path stands for


class Key(NamedTuple):
    """One key of a configuration."""

    default: Any  # None where the method chooses
    rule: Rule
    help: str
    change: Literal['never', 'always', 'regroups', 'with_workers'] = 'never'  # when a run is resumed
    kind: type | None = None  # of the values, where the default is None
    required: tuple[str, ...] = ()  # what the trainer passes to the factory that the key names
    passed: Mapping[str, Any] = _NONE  # keys that it gets if it takes them, with the values they keep if not

    @property
    def checked_by_library(self) -> bool:
        """Whether it is an argument of the library."""
        return self.rule is LIBRARY


FLAG = Rule(lambda value: isinstance(value, bool), 'True or False')
LIBRARY = Rule(lambda value: not isinstance(value, ml_collections.ConfigDict), 'a value for the library')
ARGUMENTS = Rule(
    lambda value: isinstance(value, (ml_collections.ConfigDict, dict)), 'a dict of arguments of the factory'
)


def at_least(low: int, below: float = math.inf) -> Rule:
    """An integer; a bool is no number."""
    allowed = f'an integer >= {low}' if below == math.inf else f'an integer in [{low}, {below})'
    return Rule(lambda value: _is(value, int) and low <= value < below, allowed)


def real(valid: Callable[[float], bool], allowed: str) -> Rule:
    """A finite number."""
    return Rule(lambda x: _is(x, int, float) and abs(x) < math.inf and valid(x), f'a number {allowed}')


def one_of(*names: str) -> Rule:
    """A name."""
    return Rule(lambda value: value in names, f'one of {", ".join(names)}', dict.fromkeys(names))


def named(table: Mapping[str, Any], empty: str = '') -> Rule:
    """A name or an import path, which `factories` finds; with `empty`, also none."""

    def accepts(value: Any) -> bool:
        return isinstance(value, str) and (value in table or ':' in value or bool(empty and not value))

    paths = 'or an import path such as my_package.my_module:factory'
    return Rule(accepts, f'one of {", ".join(table)}, {paths}{empty}', table, True)


def _is(value: Any, *types: type) -> bool:
    return isinstance(value, types) and not isinstance(value, bool)


FORMER = {
    'auto_detach': ' It is a value of another key now: --config.detach=auto.',
    'wire_dtype': ' Write --config.bits=8 for int8, 16 for bfloat16 or float16, 32 for float32.',
    'granularity': ' Every tensor sends its own block; --config.method=sparta sends random elements.',
}


def hint(name: str, names: Iterable[str]) -> str:
    """What to write in place of an unknown key, if that can be told."""
    return FORMER.get(name) or nearest(name, names)
