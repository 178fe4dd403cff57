"""The best λ, estimated from the messages, for `error_feedback(..., detach='auto')`.

λ*(t) = ‖e_t‖² / mean_k ‖e_k‖² minimises Eq. 9, the distance of the detached points from y. The paper calls it
impractical because e_t, the mean of the workers' errors, is unknown. But the block averaged at each step is a
sample of it: the squared norm of the averaged message estimates ‖e_t‖², and the mean squared norm of the
messages estimates mean_k ‖e_k‖². All workers know the former after the exchange. The latter travels as one
more element of a float message; in few bits, the units that travel anyway tell it.

In rounds, the block sent has on average waited longer. An error of age t is a sum of t updates. The part that
workers share (signal) grows as t², the part in which they differ (noise) as t:

    mean_k ‖e_k‖² = signal + noise          ‖e_t‖² = signal + noise / K

These two equations determine both parts. `orders.AGE_SHARES` then scales each from the age of the block to
the ages of the residual.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

_MEMORY = 0.98  # weight of the past in the running means, which average about fifty messages


def learned(energy: jax.Array, known: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """The running means `known` after a message whose squared norms are `energy`.

    Both start at zero; the bias cancels in their ratio. Squares that overflow teach nothing.
    """
    before = jnp.stack(known)
    after = jnp.where(jnp.isfinite(energy).all(), _MEMORY * before + (1 - _MEMORY) * energy, before)
    return after[0], after[1]


def best_detach(energy: jax.Array, num_workers: int, age_shares: Sequence[float]) -> jax.Array:
    """λ*(t), float32 [] in [1/K, 1], from ‖mean_k message‖² and mean_k ‖message‖²; 1/K until one is sent.

    `age_shares` are the residual's signal and noise, as fractions of those of the block that is sent.

    Source: Section 3.2, below Eq. 9.

    >>> round(float(best_detach(jnp.array([2.0, 5.0]), num_workers=4, age_shares=(1, 1))), 3)
    0.4
    """
    if num_workers == 1:
        return jnp.float32(1)
    mean_message, messages = energy
    noise = jnp.maximum(messages - mean_message, 0) * num_workers / (num_workers - 1)
    signal = jnp.maximum(messages - noise, 0)
    signal, noise = age_shares[0] * signal, age_shares[1] * noise
    total = signal + noise
    best = (signal + noise / num_workers) / jnp.where(total > 0, total, 1)
    return jnp.where(total > 0, best, 1 / num_workers)
