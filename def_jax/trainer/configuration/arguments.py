"""Settings after the colon of --config=FILE:key=value,key=value.

`--config.key=value` sets a key after get_config returns. Settings after the colon are passed to get_config,
so one key can determine the value of another.
"""

import re
from typing import Any

import ml_collections
from absl import flags

from def_jax.checks import nearest

__all__ = ['lock', 'override', 'parse']

_PARSERS: dict[type, Any] = {
    bool: lambda text: {'true': True, 'false': False}[text.lower()],
    **{kind: kind for kind in (int, float, str)},
}


def parse(arg: str | None, config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Parses the argument of get_config, 'key=value,key=value', each as the type of its key in `config`.

    Raises absl.flags.IllegalFlagValueError, since of a ValueError config_flags would print a traceback.

    >>> config = ml_collections.ConfigDict({'method': 'def', 'ratio': 64})
    >>> parse('method=ef,ratio=256', config)
    {'method': 'ef', 'ratio': 256}
    """
    settings: dict[str, Any] = {}
    refused = flags.IllegalFlagValueError
    for setting in arg.split(',') if arg else ():
        key, equals, text = setting.partition('=')
        if not equals or key in settings:
            raise refused(f'{setting!r} in {arg!r} must have the form key=value, once for each key.')
        if key not in config:
            raise refused(f'{key!r} in {arg!r} is not a known key.{nearest(key, config)}')
        kind = config.get_type(key)
        if kind is object:  # of a key that takes both numbers and words
            kind = float if re.fullmatch(r'[\d.]+(e-?\d+)?', text) else str
        if kind not in _PARSERS:
            cannot = 'cannot be set after the colon'
            raise refused(f'{key!r} is a {kind.__name__} and {cannot}; use --config.{key}=VALUE.')
        try:
            settings[key] = _PARSERS[kind](text)
        except (KeyError, ValueError):
            raise refused(f'{key}={text!r} must be of type {kind.__name__}.') from None
    return settings


def override(config: ml_collections.ConfigDict, arg: str | None) -> ml_collections.ConfigDict:
    """Applies the settings in `arg`, see `parse`, and locks the configuration; ends every get_config."""
    config.update(parse(arg, config))
    return lock(config)


def lock(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Locks a configuration, so that misspelt keys are noticed, except for the arguments of factories."""
    config.lock()
    for key in config:
        if key.endswith('_options'):
            config[key].unlock()
    return config
