"""The trainer's configuration of a run, and the optimizer that it names, made by the library."""

from typing import Any

import ml_collections
import optax

from def_jax.baselines.methods import get_method
from def_jax.ground.types import AxisName
from def_jax.trainer.configuration.parts import make_optimizer
from experiments.problems import config_of
from experiments.spec import Spec

__all__ = ['configured', 'optimizer']


def configured(spec: Spec) -> ml_collections.ConfigDict:
    """The problem's configuration with the method, its options, the rate and the seed of a run.

    Raises:
        ValueError: if there is no such problem or method, or an option is no key of the configuration.
    """
    config = config_of(spec)
    get_method(spec.method)
    config.method = spec.method
    for name, value in spec.options.items():
        if name not in config:
            raise ValueError(f'option {name!r} of {spec.method!r} is no key of the configuration.')
        config[name] = value
    return config


def optimizer(spec: Spec, schedule: optax.ScalarOrSchedule, axis_name: AxisName) -> Any:
    """The complete optimizer of one worker, with the communication, at a schedule of rates."""
    return make_optimizer(configured(spec), schedule, axis_name)
