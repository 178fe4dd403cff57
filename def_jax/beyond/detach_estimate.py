"""The best λ, estimated from the messages, for `error_feedback(..., detach='auto')`.

λ*(t) = ‖e_t‖² / mean_k ‖e_k‖² minimises Eq. 9, the distance of the detached points from y. The paper calls it
impractical because e_t, the mean of the workers' errors, is unknown. But the block averaged at each step is a
sample of it: the squared norm of the averaged message estimates ‖e_t‖², and the mean squared norm of the
messages estimates mean_k ‖e_k‖². All workers know the former after the all-reduce; the latter is sent along
with the message as one extra element.

The block that is sent has waited longer than the rest. An error of age t is a sum of t updates. The part that
workers share (signal) grows as t², the part in which they differ (noise) as t:

    mean_k ‖e_k‖² = signal + noise          ‖e_t‖² = signal + noise / K

These two equations determine both parts. `orders.AGE_SHARES` then scales each from the age of the block to
the ages of the residual.
"""

from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from def_jax.beyond.base import Option, Step
from def_jax.checks import check_number
from def_jax.compressors.base import Compressor
from def_jax.mesh.collectives import num_workers
from def_jax.types import AxisName, PyTree

__all__ = ['PAPER_DETACH', 'DetachEstimate', 'best_detach']

PAPER_DETACH = 0.3  # the λ of the paper's tables, and this library's default

_MEMORY = 0.98  # weight of the past in the running means, which average about fifty messages


class DetachEstimate(Option):
    """Sets λ after every step, to 1/K until the first message has arrived.

    Adds `energy`, float32 [2], to the state: running means of ‖mean_k message‖² and mean_k ‖message‖², scaled
    from the message to all coordinates. Both start at zero; the bias cancels in their ratio.

    Raises:
        ValueError: unless `detach` is a number in [0, 1] or 'auto'; if it is 'auto' and `wire_dtype`, a float
            type, overflows on the squared norm of a message.
    """

    def __init__(
        self,
        detach: float | Literal['auto'],
        axis_name: AxisName,
        wire_dtype: DTypeLike,
        compressor: Compressor,
    ):
        self.wanted = isinstance(detach, str) and detach == 'auto'
        self._axis_name, self._compressor = axis_name, compressor
        if not self.wanted:
            hint = f"λ: 0 is error feedback, {PAPER_DETACH} the paper's choice; or 'auto'"
            check_number('detach', detach, 0, 1, hint)
        elif jnp.issubdtype(wire_dtype, jnp.floating) and jnp.finfo(wire_dtype).nexp < 8:
            name = jnp.dtype(wire_dtype).name
            raise ValueError(
                f"wire_dtype={name!r} is too narrow for the squared norm that detach='auto' sends. Use "
                'float32 or bfloat16, or a number for detach.'
            )

    def init(self, params: PyTree) -> dict[str, PyTree]:
        del params
        return {'energy': jnp.zeros(2, jnp.float32)}

    def encode(self, message: jax.Array, step: Step) -> jax.Array:
        return jnp.append(message, self._energy(message, step))

    def decode(self, mean: jax.Array, step: Step) -> tuple[jax.Array, Step]:
        mean, own_energy = mean[:-1], mean[-1]
        measured = jnp.stack([self._energy(mean, step), own_energy])
        return mean, step.keep(energy=_MEMORY * step.before.extra['energy'] + (1 - _MEMORY) * measured)

    def finish(self, before: Any, after: Any) -> Any:
        del before
        workers, energy = num_workers(self._axis_name), after.extra['energy']
        return after._replace(detach=best_detach(energy, workers, self._compressor.age_shares))

    def _energy(self, block: jax.Array, step: Step) -> jax.Array:
        """An estimate of the squared norm of the tree that a block, float32 [B], was taken from."""
        return step.shards.energy(self._compressor, step.selection, block, step.pending)


def best_detach(energy: jax.Array, num_workers: int, age_shares: Sequence[float]) -> jax.Array:
    """λ*(t) from the squared norms of the messages.

    Args:
        energy: float32 [2], ‖mean_k message‖² and mean_k ‖message‖².
        num_workers: K.
        age_shares: the residual's signal and noise, as fractions of those of the block that is sent.

    Returns:
        float32 [], in [1/K, 1]; 1/K until something is sent; 1 for a single worker, whose error is e_t.

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
