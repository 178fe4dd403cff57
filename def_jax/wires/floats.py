"""Messages of floats: one all-reduce, as in the paper."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax

from def_jax.compressors.base import Layout, part_places
from def_jax.mesh.collectives import pmean
from def_jax.types import AxisName

__all__ = ['Arrive', 'exchange']


Arrive = Callable[[jax.Array, jax.Array], jax.Array]


def exchange(
    message: jax.Array,
    sizes: Sequence[int],
    axis_name: AxisName,
    bits: int,
    weights: jax.Array | None,
    arrive: Arrive,
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """See `wires.exchange`. A worker's rounding error stays in the rest; only rounding of the sum is lost.

    The barrier hides from XLA that in float32 nothing is rounded: it therefore takes the message before it
    overwrites the residual in place, without a copy. On GPUs, XLA would also take the block again in every
    kernel that puts the rest of it back.
    """
    dtype = jnp.float32 if bits == 32 else jnp.bfloat16
    # XLA may skip rounding that is undone at once; the barrier forbids that, too.
    rounded = message if bits == 32 else lax.optimization_barrier(message.astype(dtype)).astype(jnp.float32)
    message, rounded = lax.optimization_barrier((message, rounded))
    packed = rounded if weights is None else jnp.append(rounded, _energy(rounded, sizes, weights))
    packed = lax.optimization_barrier(packed.astype(dtype))
    mean = arrive(packed, pmean(packed, axis_name).astype(jnp.float32))
    if weights is None:
        return mean, message - rounded, None
    mean, messages = mean[:-1], mean[-1]
    return mean, message - rounded, jnp.stack([_energy(mean, sizes, weights), messages])


def _energy(message: jax.Array, sizes: Sequence[int], weights: jax.Array) -> jax.Array:
    """The sum of the parts' squares times their weights, float32 []."""
    places = zip(part_places(Layout.dense(sizes).begins), sizes, strict=True)
    parts = [lax.dynamic_slice(message, [begin], [size]) for (_, begin), size in places]
    return jnp.vdot(jnp.array([jnp.vdot(part, part) for part in parts]), weights) if parts else jnp.float32(0)
