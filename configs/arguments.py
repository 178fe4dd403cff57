"""The part of --config=FILE:key=value,key=value behind the colon.

`--config.key=value` sets a key after the file is done. What stands behind the colon is known to the file
while it is at work, so that one key may decide about others.

Errors are those of flags, not ValueErrors, of which config_flags would report the whole traceback.
"""

from collections.abc import Callable
from typing import Any

import ml_collections
from absl import flags

_PARSERS: dict[type, Callable[[str], Any]] = {
    bool: lambda text: {'true': True, 'false': False}[text.lower()],
    int: int,
    float: float,
    str: str,
}


def parse(arg: str | None, config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Returns the settings in `arg`, each of the type that its key has in `config`.

    Args:
        arg: 'key=value,key=value', what get_config is called with; None or '' for no settings.
        config: a complete configuration, which stays as it is.

    Returns:
        The settings, in the order of `arg`.

    Raises:
        absl.flags.IllegalFlagValueError: if a setting has no value, a key is unknown or comes twice, or a
            value is of the wrong type. Whether the values are possible is checked later, with the whole
            configuration.

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
            # Only now: it imports JAX, which train.py does after it has set the environment.
            from def_jax.checks import nearest

            raise flags.IllegalFlagValueError(f'{key!r} in {arg!r} is not a known key.{nearest(key, config)}')
        if key in settings:
            raise flags.IllegalFlagValueError(f'{key!r} in {arg!r} comes twice.')
        settings[key] = _value(key, text, type(config[key]))
    return settings


def override(config: ml_collections.ConfigDict, arg: str | None) -> ml_collections.ConfigDict:
    """Sets what is in `arg`, see `parse`, and locks the configuration: the end of a get_config."""
    config.update(parse(arg, config))
    return config.lock()


def _value(key: str, text: str, kind: type) -> Any:
    if kind not in _PARSERS:
        raise flags.IllegalFlagValueError(
            f'{key!r} is a {kind.__name__} and cannot stand behind the colon; use --config.{key}=VALUE.'
        )
    try:
        return _PARSERS[kind](text)
    except (KeyError, ValueError):
        raise flags.IllegalFlagValueError(f'{key}={text!r} must be of type {kind.__name__}.') from None
