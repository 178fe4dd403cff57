"""Optimizers and schedules by name, optax's; lengths are fractions of the run, a warm-up begins at zero."""

import collections
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optax

from def_jax.ground.arguments import check_number

__all__ = ['OPTIMIZERS', 'SCHEDULES', 'cosine', 'drops', 'muon', 'sgd', 'wsd']


def sgd(
    learning_rate: optax.ScalarOrSchedule, momentum: float = 0.9, nesterov: bool = False
) -> optax.GradientTransformation:
    """SGD with momentum, Eq. 11; `make_optimizer` adds the L2 penalty to the gradient before."""
    return optax.sgd(learning_rate, momentum or None, nesterov)  # None allocates no buffer


def muon(
    learning_rate: optax.ScalarOrSchedule, weight_decay: float = 0.0, **options: Any
) -> optax.GradientTransformation:
    """`optax.contrib.muon`; the vectors, which Adam updates, get the same weight decay as the matrices."""
    options = {'adam_weight_decay': weight_decay, **options}
    return optax.contrib.muon(learning_rate, weight_decay=weight_decay, **options)


def drops(learning_rate: float, num_steps: int, learning_rate_drops: Sequence[float]) -> optax.Schedule:
    """The learning rate drops tenfold at each of some fractions of the run, as in the paper.

    Drops that fall on the same step multiply, and none comes before the first step.

    >>> [round(float(drops(1.0, 3, (0.5, 0.75))(step)), 3) for step in range(3)]
    [1.0, 1.0, 0.01]
    """
    at = collections.Counter(max(1, round(share * num_steps)) for share in learning_rate_drops)
    scales = {step: 0.1**count for step, count in at.items()}
    return optax.piecewise_constant_schedule(learning_rate, scales)


def cosine(learning_rate: float, num_steps: int, warmup: float = 0.05, final: float = 0.0) -> optax.Schedule:
    """Linear warm-up, then half a cosine: `optax.warmup_cosine_decay_schedule`.

    Args:
        learning_rate: the largest rate, reached at the end of the warm-up.
        num_steps: the number of steps of the run.
        warmup: length of the warm-up, a fraction of the run.
        final: the rate at the end of the run, a fraction of the largest.

    >>> schedule = cosine(1.0, 100, warmup=0.1)
    >>> [round(float(schedule(step)), 3) for step in (0, 5, 10, 55, 100)]
    [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    _check_shares(warmup=warmup, final=final)
    rising = round(warmup * num_steps)
    length = max(num_steps, rising + 1)  # optax refuses a cosine of no steps
    return optax.warmup_cosine_decay_schedule(0.0, learning_rate, rising, length, final * learning_rate)


def wsd(
    learning_rate: float, num_steps: int, warmup: float = 0.05, decay: float = 0.2, final: float = 0.0
) -> optax.Schedule:
    """Linear warm-up, a constant rate, and linear decay.

    Args:
        learning_rate, num_steps, warmup, final: see `cosine`.
        decay: length of the decay, a fraction of the run.

    Raises:
        ValueError: if the parts are longer than the run.

    Source: Hu et al., "MiniCPM", 2024, Section 4.

    >>> schedule = wsd(1.0, 100, warmup=0.1, decay=0.5)
    >>> [round(float(schedule(step)), 3) for step in (0, 5, 10, 50, 75, 100)]
    [0.0, 0.5, 1.0, 1.0, 0.5, 0.0]
    """
    _check_shares(warmup=warmup, decay=decay, final=final)
    if warmup + decay > 1:
        raise ValueError(f'{warmup=} and {decay=} add up to more than 1, the length of the run.')
    rising, falling = round(warmup * num_steps), round(decay * num_steps)
    fall = optax.linear_schedule(learning_rate, final * learning_rate, falling, num_steps - falling - rising)
    return optax.join_schedules([optax.linear_schedule(0.0, learning_rate, rising), fall], [rising])


def _check_shares(**shares: float) -> None:
    for name, share in shares.items():
        check_number(name, share, 0, 1, 'a share of the run, or of the largest rate')


SCHEDULES: Mapping[str, Callable[..., optax.Schedule]] = {'drops': drops, 'cosine': cosine, 'wsd': wsd}
OPTIMIZERS: Mapping[str, Callable[..., optax.GradientTransformation]] = {
    'sgd': sgd,
    'adamw': optax.adamw,
    'lion': optax.lion,
    'muon': muon,
}
