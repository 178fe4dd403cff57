"""Theorem 4.3 as code: the learning rates it covers, and the bound that it gives there.

Legend, beside that of `error_feedback`: L is the smoothness of the loss; σ² the variance of a worker's
gradient and M² a bound on the squared norm of the full one (Assumptions 3.1 and 3.2;
`diagnostics.gradient_statistics` measures both); δ the share of the update in a message (Assumption 4.2).
"""

import math
from typing import Any, NamedTuple

from def_jax.compressors import Compressor
from def_jax.ground.arguments import check_number

PyTree = Any

__all__ = ['Bound', 'compression_delta', 'convergence_bound', 'largest_learning_rate', 'right_hand_side']

_TINY = 1e-30  # in place of an open end at 0


class Bound(NamedTuple):
    """A bound on the mean over steps of E‖∇F(y_t)‖²."""

    value: float  # the right-hand side of Eq. 17
    vacuous: bool  # value ≥ M²: Assumption 3.2 alone says as much, of any point


def compression_delta(compressor: Compressor, params: PyTree) -> float:
    """δ in Assumption 4.2, E‖C(x) - x‖² ≤ (1-δ)·‖x‖²: the probability that an element is sent.

    A tensor is cut into R tiles, and each is drawn with probability 1 / R. Element i lies in exactly one, so
    E‖C(x) - x‖² = Σ_i (1 - 1/R)·x_i² = (1 - 1/R)·‖x‖² for every x, however long the tiles are. Of several
    tensors, that with the most tiles decides, since the assumption is about every x.

    It is not the share B / d for which the message has room, which is larger where the last tile is shorter:
    10 elements in tiles of 3, 3, 3 and 1 have a message of 3, but a draw sends 10 / 4 = 2.5 on average.

    Args:
        compressor: a compressor that selects some of the elements, such as `random_block`.
        params: a pytree of arrays or of `jax.ShapeDtypeStruct`.

    Returns:
        δ in (0, 1].

    Source: Assumption 4.2.

    >>> import jax.numpy as jnp, def_jax
    >>> compression_delta(def_jax.random_block(3), jnp.zeros(10))  # blocks of 3, 3, 3 and 1
    0.25
    """
    return min(1 / part.weight for part in compressor.parts(params) if part.size)


def largest_learning_rate(*, smoothness: float, num_workers: int, detach: float, delta: float) -> float:
    """The largest learning rate that the proof of Theorem 4.3 allows, about δ / (4·B₂·L) for small δ.

    The theorem asks for η ≤ 1/(4L) alone. Its Lemma A.2 also needs B₃ = (1-δ)(1+1/β)·2B₂²η²L² ≤ δ/2, with
    β = √((1-δ/2)/(1-δ)) - 1 and B₂ = ``|1/K-λ| + (K-1)/K``. Eq. 42 writes β where B₃ has 1 + 1/β, so that
    1/(4L) appears to imply it. Solved for η, it is η ≤ √(δ/4 · β / ((1-δ)(1+β))) / (B₂·L). Another β than
    the paper's would allow up to 1.22 times that. One worker with λ = 1 has B₂ = 0, and 1/(4L) remains.

    Args:
        smoothness: L.
        num_workers: K.
        detach: λ in [0, 1].
        delta: δ of the compressor, in (0, 1].

    Returns:
        η, at most 1/(4L).

    Raises:
        ValueError: if an argument is out of range.

    Source: Appendix A, Lemma A.2 and Eq. 38 to 43, corrected; Eq. 49 for 1/(4L).

    >>> largest_learning_rate(smoothness=1.0, num_workers=1, detach=1.0, delta=1 / 64)
    0.25
    >>> rate = largest_learning_rate(smoothness=1.0, num_workers=16, detach=0.3, delta=1 / 64)
    >>> print(f'{rate:.5f}')
    0.00337
    """
    check_number('smoothness', smoothness, _TINY, math.inf, 'L > 0')
    check_number('num_workers', num_workers, 1, math.inf, 'K')
    check_number('detach', detach, 0, 1, 'λ')
    check_number('delta', delta, _TINY, 1, 'δ > 0')
    descent = 1 / (4 * smoothness)
    b2 = abs(1 / num_workers - detach) + (num_workers - 1) / num_workers
    if delta == 1 or b2 == 0:
        return descent
    beta = _beta(delta)
    contraction = math.sqrt(delta / 4 * beta / ((1 - delta) * (1 + beta))) / (b2 * smoothness)
    return min(descent, contraction)


def convergence_bound(
    *,
    initial_gap: float,
    learning_rate: float,
    num_steps: int,
    smoothness: float,
    variance: float,
    second_moment: float,
    num_workers: int,
    detach: float,
    delta: float,
) -> Bound:
    """Theorem 4.3: a bound on the mean over steps of E‖∇F(y_t)‖².

    Args:
        initial_gap: F(y_0) - F(y*).
        learning_rate: η, at most `largest_learning_rate`.
        num_steps: T.
        smoothness: L.
        variance: σ².
        second_moment: M².
        num_workers: K.
        detach: λ in [0, 1].
        delta: δ of the compressor, in (0, 1]; with 1 nothing is left behind and the last term is zero.

    Returns:
        The right-hand side of Eq. 17, and whether it is vacuous. At the largest rate, the last term alone is
        about 4·(B₁σ² + 2(1-λ)²M²) / B₂² whatever δ is: at λ = 0.3 with many workers more than M².

    Raises:
        ValueError: if an argument is out of range.

    Source: Theorem 4.3, Eq. 17, under the condition of `largest_learning_rate`.

    >>> setting = dict(initial_gap=1.0, learning_rate=0.002, num_steps=10**5, smoothness=1.0, variance=1.0,
    ...                second_moment=3.0, num_workers=16, delta=1 / 64)
    >>> convergence_bound(detach=0.3, **setting).vacuous
    True
    >>> convergence_bound(detach=0.9, **setting).vacuous
    False
    """
    largest = largest_learning_rate(
        smoothness=smoothness, num_workers=num_workers, detach=detach, delta=delta
    )
    check_number('initial_gap', initial_gap, 0, math.inf, 'F(y_0) - F(y*)')
    remedy = 'the rates that Theorem 4.3 covers; lower it, or raise delta'
    check_number('learning_rate', learning_rate, _TINY, largest, remedy)
    check_number('num_steps', num_steps, 1, math.inf, 'T')
    check_number('variance', variance, 0, math.inf, 'σ²')
    check_number('second_moment', second_moment, 0, math.inf, 'M²')
    value = right_hand_side(
        initial_gap=initial_gap,
        learning_rate=learning_rate,
        num_steps=num_steps,
        smoothness=smoothness,
        variance=variance,
        second_moment=second_moment,
        num_workers=num_workers,
        detach=detach,
        delta=delta,
    )
    return Bound(value, value >= second_moment)


def right_hand_side(
    *,
    initial_gap: float,
    learning_rate: float,
    num_steps: int,
    smoothness: float,
    variance: float,
    second_moment: float,
    num_workers: int,
    detach: float,
    delta: float,
) -> float:
    """The right-hand side of Eq. 17 at any learning rate: a bound only where `convergence_bound` accepts it.

    Args:
        initial_gap: F(y_0) - F(y*).
        learning_rate: η.
        num_steps: T.
        smoothness: L.
        variance: σ².
        second_moment: M².
        num_workers: K.
        detach: λ.
        delta: δ in (0, 1].

    Returns:
        Three terms: the descent from y_0, the noise of K workers, and what compression adds.

    Source: Theorem 4.3, Eq. 17.

    >>> right_hand_side(initial_gap=1.0, learning_rate=0.25, num_steps=16, smoothness=1.0, variance=0.0,
    ...                 second_moment=1.0, num_workers=1, detach=1.0, delta=0.5)
    1.0
    """
    inverse = 1 / num_workers
    value = (
        4 * initial_gap / (learning_rate * num_steps) + 2 * learning_rate * smoothness * variance * inverse
    )
    if delta == 1:
        return value
    b1 = (inverse - detach) ** 2 + (1 - inverse) * inverse
    spread = b1 * variance + 2 * (1 - detach) ** 2 * second_moment
    return value + 4 * (learning_rate * smoothness / _beta(delta)) ** 2 * spread


def _beta(delta: float) -> float:
    """β = √((1-δ/2)/(1-δ)) - 1, without cancellation for small δ."""
    excess = delta / 2 / (1 - delta)
    return excess / (1 + math.sqrt(1 + excess))
