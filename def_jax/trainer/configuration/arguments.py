"""Settings after the colon of --config=FILE:key=value,key=value.

`--config.key=value` sets a key after get_config returns. Settings after the colon are passed to get_config,
so one key can determine the value of another.
"""

import ast
import contextlib
import copy
from typing import Any

import ml_collections
from absl import flags

from def_jax.baselines.names import nearest

__all__ = ['lock', 'override', 'parse']


def parse(arg: str | None, config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Parses the argument of get_config, 'key=value,key=value', each as the type of its key in `config`.

    Raises absl.flags.IllegalFlagValueError, since of a ValueError config_flags would print a traceback.

    >>> config = ml_collections.ConfigDict({'method': 'def', 'ratio': 64})
    >>> parse('method=ef,ratio=256', config)
    {'method': 'ef', 'ratio': 256}
    """
    settings: dict[str, Any] = {}
    config, refused = copy.deepcopy(config), flags.IllegalFlagValueError
    for setting in arg.split(',') if arg else ():
        key, equals, text = setting.partition('=')
        if not equals or key in settings:
            raise refused(f'{setting!r} in {arg!r} must have the form key=value, once for each key.')
        if key not in config:
            raise refused(f'{key!r} in {arg!r} is not a known key.{nearest(key, config)}')
        kind, value = config.get_type(key), text
        with contextlib.suppress(ValueError, SyntaxError):
            value = text if kind is str else ast.literal_eval(text.capitalize() if kind is bool else text)
        try:
            config[key] = value
        except TypeError:
            cure = f'; --config.{key}=VALUE takes commas' * (kind is tuple)
            raise refused(f'{key}={text!r} must be of type {kind.__name__}{cure}.') from None
        settings[key] = config[key]
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
