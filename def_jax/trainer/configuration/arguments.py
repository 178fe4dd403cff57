"""Settings after the colon of --config=FILE:key=value,key=value.

`--config.key=value` sets a key after get_config returns. Settings after the colon are passed to get_config,
so one key can determine the value of another.

Errors are absl flag errors: for a ValueError, config_flags would print a full traceback.
"""

import re
from collections.abc import Callable
from typing import Any

import ml_collections
from absl import flags

from def_jax.trainer.configuration.keys import hint

__all__ = ['lock', 'override', 'parse']


_PARSERS: dict[type, Callable[[str], Any]] = {
    bool: lambda text: {'true': True, 'false': False}[text.lower()],
    int: int,
    float: float,
    str: str,
}


def parse(arg: str | None, config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Parses the settings in `arg`, each as the type of its key in `config`.

    `arg` is 'key=value,key=value', the argument of get_config; None or '' for no settings.

    Raises:
        absl.flags.IllegalFlagValueError: if a setting has no value, a key is unknown or repeated, or a
            value has the wrong type. The values themselves are checked later, by `check_config`.

    >>> config = ml_collections.ConfigDict({'method': 'def', 'ratio': 64})
    >>> parse('method=ef,ratio=256', config)
    {'method': 'ef', 'ratio': 256}
    """
    settings: dict[str, Any] = {}
    for setting in arg.split(',') if arg else ():
        key, equals, text = setting.partition('=')
        if not equals:
            raise flags.IllegalFlagValueError(f'{setting!r} in {arg!r} must have the form key=value.')
        if key not in config:
            raise flags.IllegalFlagValueError(f'{key!r} in {arg!r} is not a known key.{hint(key, config)}')
        if key in settings:
            raise flags.IllegalFlagValueError(f'{key!r} in {arg!r} is given twice.')
        kind = config.get_type(key)
        if kind is object:  # of a key that takes both numbers and words
            kind = float if re.fullmatch(r'[\d.]+(e-?\d+)?', text) else str
        if kind not in _PARSERS:
            raise flags.IllegalFlagValueError(
                f'{key!r} is a {kind.__name__} and cannot be set after the colon; use --config.{key}=VALUE.'
            )
        try:
            settings[key] = _PARSERS[kind](text)
        except (KeyError, ValueError):
            raise flags.IllegalFlagValueError(f'{key}={text!r} must be of type {kind.__name__}.') from None
    return settings


def override(config: ml_collections.ConfigDict, arg: str | None) -> ml_collections.ConfigDict:
    """Applies the settings in `arg`, see `parse`, and locks the configuration; ends every get_config."""
    config.update(parse(arg, config))
    return lock(config)


def lock(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Locks a configuration, so that misspelt keys are noticed, except for the arguments of factories.

    >>> config = lock(ml_collections.ConfigDict({'seed': 0, 'optimizer_options': {}}))
    >>> config.optimizer_options.b2 = 0.95
    """
    config.lock()
    for key, value in config.items():
        if isinstance(value, ml_collections.ConfigDict):
            value.unlock() if key.endswith('_options') else lock(value)
    return config
