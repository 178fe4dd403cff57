"""The optimizer that a spec names, made by the library."""

from collections.abc import Callable, Mapping
from typing import Any

import ml_collections
import optax

import def_jax
from def_jax.methods import METHODS
from def_jax.trainer.configuration import arguments
from def_jax.trainer.configuration.parts import make_optimizer
from def_jax.types import AxisName
from experiments.problems import config_of
from experiments.spec import Spec

__all__ = ['PRESETS', 'answer', 'configured', 'optimizer']

# Complete optimizers, by the problem's own.
PRESETS: Mapping[str, Mapping[str, Callable[..., optax.GradientTransformation]]] = {
    'def_q': {'sgd': def_jax.def_sgd, 'adamw': def_jax.def_adamw},
}


def configured(spec: Spec) -> ml_collections.ConfigDict:
    """The trainer's configuration of a run.

    A preset's options are arguments of its function and not in it; its method is DEF, whose points it has.

    Raises:
        ValueError: if there is no such problem or method.
        KeyError: if an option is no key of the configuration.
    """
    config = config_of(spec)
    if spec.method in PRESETS:
        config.method = 'def'
        return arguments.lock(config)
    if spec.method not in METHODS:
        raise ValueError(f'method={spec.method!r} must be one of {", ".join([*PRESETS, *METHODS])}.')
    config.method = spec.method
    with config.unlocked():
        for name, value in spec.options.items():
            if name not in config:
                raise KeyError(f'option {name!r} of {spec.method!r} is no key of the configuration.')
            config[name] = value
    return arguments.lock(config)


def optimizer(spec: Spec, schedule: Any, axis_name: AxisName) -> optax.GradientTransformation:
    """The complete optimizer of one worker, with the communication, at a schedule of rates."""
    config = configured(spec)
    if spec.method not in PRESETS:
        return make_optimizer(config, schedule, axis_name)
    preset, options = PRESETS[spec.method][config.optimizer], dict(spec.options)
    compression = options.pop('compression')
    return preset(
        schedule, compression, axis_name, weight_decay=config.weight_decay, seed=config.seed, **options
    )


def answer(method: str) -> str:
    """The point that a method outputs: 'x', 'y' or 'own'."""
    return METHODS['def' if method in PRESETS else method].answer
