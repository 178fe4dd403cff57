"""Learning rates as functions of the step, by name; lengths are fractions of the run."""

import math
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import optax

from def_jax.checks import check_number

__all__ = ['SCHEDULES', 'cosine', 'drops', 'wsd']


def drops(
    learning_rate: float, num_steps: int, *, learning_rate_drops: Sequence[float] = (0.5, 0.75)
) -> optax.Schedule:
    """The learning rate drops tenfold at each of some fractions of the run, as in the paper.

    >>> schedule = drops(0.1, 100, learning_rate_drops=(0.5,))
    >>> [round(float(schedule(step)), 3) for step in (0, 49, 50)]
    [0.1, 0.1, 0.01]
    """
    return optax.piecewise_constant_schedule(
        learning_rate, {round(share * num_steps): 0.1 for share in learning_rate_drops}
    )


def cosine(
    learning_rate: float, num_steps: int, *, warmup: float = 0.05, final: float = 0.0
) -> optax.Schedule:
    """Linear warm-up, then half a cosine.

    Args:
        learning_rate: the largest rate, reached at the end of the warm-up.
        num_steps: the number of steps of the run.
        warmup: length of the warm-up, a fraction of the run.
        final: the rate at the end of the run, a fraction of the largest.

    Source: Loshchilov and Hutter, "SGDR", 2017; the warm-up of Goyal et al., 2017.

    >>> schedule = cosine(1.0, 100, warmup=0.1)
    >>> [round(float(schedule(step)), 3) for step in (0, 9, 10, 55, 100)]
    [0.1, 1.0, 1.0, 0.5, 0.0]
    """
    start = _warmup_steps(warmup, num_steps)
    check_number('final', final, 0, 1, 'the last rate as a share of the largest')

    def schedule(step: jax.typing.ArrayLike) -> jax.Array:
        done = jnp.clip((step - start) / max(num_steps - start, 1), 0, 1)
        falling = final + (1 - final) * (1 + jnp.cos(math.pi * done)) / 2
        return learning_rate * jnp.minimum(_rise(step, start), falling)

    return schedule


def wsd(
    learning_rate: float, num_steps: int, *, warmup: float = 0.05, decay: float = 0.2, final: float = 0.0
) -> optax.Schedule:
    """Linear warm-up, a constant rate, and linear decay.

    Args:
        learning_rate: the constant rate.
        num_steps: the number of steps of the run.
        warmup: length of the warm-up, a fraction of the run.
        decay: length of the decay, a fraction of the run.
        final: the rate at the end of the run, a fraction of the constant one.

    Raises:
        ValueError: if the parts are longer than the run.

    Source: Hu et al., "MiniCPM", 2024, Section 4.

    >>> schedule = wsd(1.0, 100, warmup=0.1, decay=0.5)
    >>> [round(float(schedule(step)), 3) for step in (0, 9, 50, 75, 100)]
    [0.1, 1.0, 1.0, 0.5, 0.0]
    """
    start = _warmup_steps(warmup, num_steps)
    check_number('final', final, 0, 1, 'the last rate as a share of the largest')
    check_number('decay', decay, 0, 1, 'a share of the run')
    if warmup + decay > 1:
        raise ValueError(f'{warmup=} and {decay=} add up to more than 1, the length of the run.')
    end = max(round(decay * num_steps), 1)

    def schedule(step: jax.typing.ArrayLike) -> jax.Array:
        falling = final + (1 - final) * jnp.clip((num_steps - step) / end, 0, 1)
        return learning_rate * jnp.minimum(_rise(step, start), falling)

    return schedule


def _warmup_steps(warmup: float, num_steps: int) -> int:
    check_number('warmup', warmup, 0, 1, 'a share of the run')
    return round(warmup * num_steps)


def _rise(step: jax.typing.ArrayLike, warmup_steps: int) -> jax.Array:
    """From 1 / warmup_steps at step 0 to 1: no step is lost to a rate of zero."""
    return jnp.minimum((step + 1) / max(warmup_steps, 1), 1)


SCHEDULES: Mapping[str, Callable[..., optax.Schedule]] = {'drops': drops, 'cosine': cosine, 'wsd': wsd}
