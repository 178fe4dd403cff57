"""The trainer's configuration of a run, and the optimizer that it names, made by the library."""

from typing import Any

import ml_collections
import optax

from def_jax.baselines.methods import get_method
from def_jax.ground.types import AxisName
from def_jax.trainer.configuration.parts import complete, make_optimizer
from experiments.problems import config_of
from experiments.spec import Spec

__all__ = ['APART', 'REVISION', 'configured', 'decayed', 'in_few_bits', 'optimizer', 'revision']

REVISION = 'own chunk exact'  # of the exchange in few bits; earlier runs rounded a worker's own chunk as well
APART = f'{REVISION}, rounding apart'  # narrow parameters: what x rounds passed the momentum outside before


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


def in_few_bits(spec: Spec) -> bool:
    """Whether the messages of a run are integers of `wires.few_bits`, whose arithmetic `REVISION` names."""
    return complete(configured(spec)).bits < 16


def revision(spec: Spec) -> str:
    """The revision of a run that is made now, see `spec.Spec`."""
    if not in_few_bits(spec):
        return ''
    return APART if spec.where.get('narrow') else REVISION


def decayed(learning_rate: optax.ScalarOrSchedule, weight_decay: float) -> optax.GradientTransformation:
    """AdamW without its moments, for methods that communicate a direction to step along."""
    return optax.chain(optax.add_decayed_weights(weight_decay), optax.scale_by_learning_rate(learning_rate))
