"""Learning rates as functions of the step, by name; lengths are fractions of the run.

A warm-up is optax's: it begins at a rate of zero.
"""

from collections.abc import Callable, Mapping, Sequence

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
    rising, last = round(warmup * num_steps), final * learning_rate
    length = max(num_steps, rising + 1)  # optax refuses a cosine of no steps
    return optax.warmup_cosine_decay_schedule(0.0, learning_rate, rising, length, last)


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
    >>> [round(float(schedule(step)), 3) for step in (0, 5, 10, 50, 75, 100)]
    [0.0, 0.5, 1.0, 1.0, 0.5, 0.0]
    """
    _check_shares(warmup=warmup, decay=decay, final=final)
    if warmup + decay > 1:
        raise ValueError(f'{warmup=} and {decay=} add up to more than 1, the length of the run.')
    rising, length = round(warmup * num_steps), round(decay * num_steps)
    last = final * learning_rate
    parts = [
        optax.linear_schedule(0.0, learning_rate, rising),
        optax.linear_schedule(learning_rate, last, length, num_steps - length - rising),
    ]
    return optax.join_schedules(parts, [rising])


def _check_shares(**shares: float) -> None:
    for name, share in shares.items():
        check_number(name, share, 0, 1, 'a share of the run, or of the largest rate')


SCHEDULES: Mapping[str, Callable[..., optax.Schedule]] = {'drops': drops, 'cosine': cosine, 'wsd': wsd}
