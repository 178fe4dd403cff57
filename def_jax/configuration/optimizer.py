"""Builds the optimizer of a configuration, passing keys to the library's arguments by name."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import optax

from def_jax import error_feedback, get_method, random_block
from def_jax.collectives import AxisName
from def_jax.compressors import Compressor

__all__ = ['LIBRARY_KEYS', 'make_compressor', 'make_optimizer']

_NOT_KEYS = {'axis_name', 'compressor', 'outer', 'seed'}
LIBRARY_KEYS = tuple(
    name
    for function in (random_block, error_feedback)
    for name in inspect.signature(function).parameters
    if name not in _NOT_KEYS
)


def make_compressor(config: Mapping[str, Any]) -> Compressor:
    """The compressor of a configuration.

    Raises:
        ValueError: if the library rejects a key.
    """
    return get_method(config['method']).compressor(**_arguments(random_block, config))


def make_optimizer(
    config: Mapping[str, Any], learning_rate: optax.ScalarOrSchedule, axis_name: AxisName, seed: Any
) -> optax.GradientTransformation:
    """SGD with momentum and the communication of the configured method.

    Args:
        config: a configuration.
        learning_rate: η.
        axis_name: the axis over workers.
        seed: selects the blocks. A traced seed is not compiled in, so runs that differ only in the seed share
            their compiled programs.

    Returns:
        The optimizer.

    Raises:
        ValueError: if the library rejects a key.
    """
    options = _arguments(error_feedback, config)
    if config['auto_detach']:
        options['detach'] = 'auto'
    return get_method(config['method']).optimizer(
        optax.add_decayed_weights(config['weight_decay']),
        optax.sgd(learning_rate, momentum=config['momentum'] or None),  # None allocates no buffer
        axis_name,
        make_compressor(config),
        seed=seed,
        **options,
    )


def _arguments(function: Callable, config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: config[key] for key in LIBRARY_KEYS if key in inspect.signature(function).parameters}
