"""Names of methods, keys and devices, looked up in their tables."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

__all__ = ['look_up', 'nearest']

T = TypeVar('T')


def look_up(kind: str, name: Any, table: Mapping[str, T]) -> T:
    """`table[name]`, or a ValueError that lists the names.

    >>> look_up('method', 'deff', {'sgd': 0, 'def': 1})
    Traceback (most recent call last):
    ValueError: method='deff' is unknown; it must be one of sgd, def. Did you mean 'def'?
    """
    if name not in table:
        raise ValueError(
            f'{kind}={name!r} is unknown; it must be one of {", ".join(table)}.{nearest(name, table)}'
        )
    return table[name]


def nearest(name: Any, names: Iterable[str]) -> str:
    """' Did you mean ...?' if one of `names` is close to `name`, else an empty string.

    >>> nearest('metod', ['method', 'ratio'])
    " Did you mean 'method'?"
    """
    near = difflib.get_close_matches(str(name), list(names), n=1)
    return f' Did you mean {near[0]!r}?' if near else ''
