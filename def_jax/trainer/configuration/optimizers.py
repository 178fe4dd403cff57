"""Optimizers by name, as the trainer calls them: optax's, with its own arguments."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import optax

__all__ = ['OPTIMIZERS', 'muon', 'sgd']


def sgd(
    learning_rate: optax.ScalarOrSchedule,
    *,
    momentum: float = 0.9,
    nesterov: bool = False,
    weight_decay: float = 0.0,
) -> optax.GradientTransformation:
    """SGD with momentum, Eq. 11; `make_optimizer` adds the penalty to the gradient that is sent."""
    del weight_decay
    return optax.sgd(learning_rate, momentum=momentum or None, nesterov=nesterov)  # None allocates no buffer


@functools.wraps(optax.contrib.muon)
def muon(learning_rate: optax.ScalarOrSchedule, *, weight_decay: float = 0.0, **options: Any):
    """optax's Muon, with weight decay also for the parameters that it leaves to Adam."""
    options.setdefault('adam_weight_decay', weight_decay)
    return optax.contrib.muon(learning_rate, weight_decay=weight_decay, **options)


OPTIMIZERS: Mapping[str, Callable[..., optax.GradientTransformation]] = {
    'sgd': sgd,
    'adamw': optax.adamw,
    'lion': optax.lion,
    'muon': muon,
}
