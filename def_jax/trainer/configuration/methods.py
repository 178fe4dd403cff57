"""The method that a configuration names: one of the library's, or a transformation by its import path."""

import functools
import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

import ml_collections
import optax

from def_jax import def_adamw
from def_jax.baselines.methods import METHODS, OPTIONS, Method
from def_jax.trainer.configuration.defaults import KEYS
from def_jax.trainer.configuration.factories import find
from def_jax.types import PyTree

__all__ = ['adamw_preset', 'complete', 'find_method']


def find_method(config: Mapping[str, Any]) -> Method:
    """The method: one of `METHODS`, or the factory of a transformation that averages over `axis_name`.

    Raises:
        ValueError: as `find` does.
    """
    if config['method'] in METHODS:
        return METHODS[config['method']]
    factory = find('method', config)

    @functools.wraps(factory.function)
    def link(**given: Any) -> optax.GradientTransformation:
        return _linked(factory.make(optax.GradientTransformation, **given))

    free = inspect.signature(factory.function).parameters.keys() - factory.options.keys()
    takes = tuple(name for name in OPTIONS if name in free)
    return Method(factory.name.rpartition(':')[2], 'x', kind='baseline', link=link, takes=takes)


class _Averaged(NamedTuple):
    """State of a transformation that is no link of the library; any of it may differ between workers."""

    state: PyTree

    @property
    def per_worker(self) -> tuple[str, ...]:
        return ('state',)


def _linked(transformation: optax.GradientTransformation) -> optax.GradientTransformation:
    """A transformation that communicates, as the library knows its own by their states."""

    def update(updates, state, params=None):
        updates, inner = transformation.update(updates, state.state, params)
        return updates, _Averaged(inner)

    return optax.GradientTransformation(lambda params: _Averaged(transformation.init(params)), update)


def adamw_preset(config: Mapping[str, Any]) -> Mapping[str, inspect.Parameter]:
    """The arguments of `def_adamw`, if the configuration means it; else nothing."""
    meant = config['optimizer'] == 'adamw' and find_method(config).in_bytes
    return inspect.signature(def_adamw).parameters if meant else {}


def complete(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The configuration with the method's own values in place of None, as a run records it."""
    config, method = ml_collections.ConfigDict(config), find_method(config)
    preset = {name: parameter.default for name, parameter in adamw_preset(config).items()}
    own = {**method.sends, **method.options, **preset}
    for name, key in KEYS.items():
        if key.checked_by_library and config[name] is None:
            default = own.get(name, inspect.Parameter.empty)
            config[name] = OPTIONS[name] if default is inspect.Parameter.empty else default
    return config.lock()
