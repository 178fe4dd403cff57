"""The best λ, estimated from the messages: what `error_feedback(..., detach='auto')` uses.

Eq. 9, the distance of the detached points from y, is least at λ*(t) = ‖e_t‖² / mean_k ‖e_k‖². The paper
calls that impractical, as e_t, the mean of the workers' errors, is unknown. But the block that is averaged at
each step is a sample of it: the squared norm of the averaged message estimates ‖e_t‖², and the mean squared
norm of the messages mean_k ‖e_k‖². The former is known to all workers after the all-reduce, the latter
travels with it as one more element.

The block that is sent has waited longer than the rest. An error of age t is a sum of t updates; what they
share between workers (signal) adds up to t², what differs (noise) to t:

    mean_k ‖e_k‖² = signal + noise          ‖e_t‖² = signal + noise / K

Two equations for two unknowns; each is then scaled from the age of the block to the ages of the residual, by
`block_orders.AGE_SHARES`.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from def_jax.collectives import AxisName, num_workers, pmean
from def_jax.compressors import Selection

__all__ = ['average_and_estimate', 'best_detach']

_MEMORY = 0.98  # what an estimate keeps of itself a step: the mean of about fifty messages


def average_and_estimate(
    message: jax.Array, selection: Selection, energy: jax.Array, axis_name: AxisName
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The mean message, and what the state of `error_feedback` learns from it.

    Args:
        message: worker k's, a float type [B].
        selection: which coordinates it holds.
        energy: float32 [2], running means of ‖mean_k message‖² and mean_k ‖message‖², scaled from the
            message to all coordinates; zeros at first, which their ratio does not see.
        axis_name: the axis over workers.

    Returns:
        The mean over workers, float32 [B], and the new `energy` and `detach`.
    """
    own_energy = selection.energy(message.astype(jnp.float32)).astype(message.dtype)
    averaged = pmean(jnp.append(message, own_energy), axis_name).astype(jnp.float32)
    mean = averaged[:-1]
    energy = _MEMORY * energy + (1 - _MEMORY) * jnp.stack([selection.energy(mean), averaged[-1]])
    detach = best_detach(energy, num_workers(axis_name), selection.age_shares)
    return mean, {'energy': energy, 'detach': detach}


def best_detach(energy: jax.Array, num_workers: int, age_shares: Sequence[float]) -> jax.Array:
    """λ*(t) from the squared norms of the messages.

    Args:
        energy: float32 [2], ‖mean_k message‖² and mean_k ‖message‖².
        num_workers: K.
        age_shares: the share of the residual in the signal and in the noise of the block that is sent.

    Returns:
        float32 [], in [1/K, 1]; 1 for one worker, whose own error is e_t, and while nothing was sent.

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
    return jnp.where(total > 0, (signal + noise / num_workers) / jnp.where(total > 0, total, 1), 1)
