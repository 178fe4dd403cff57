"""Steps with NaN or infinity: all workers skip them together.

NaN is signalled in-band, at no extra cost: a worker whose update is not finite sends a message of NaN, which
all workers see in the mean. With `overlap`, a worker leaves out its own update at once, and its next message
tells the others, who skip that.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from def_jax.ground.types import PyTree


def marked(message: jax.Array, updates: PyTree, before: Any) -> jax.Array:
    """The message, float32 [M], of NaN if this worker's update is to be skipped."""
    # One NaN says as much; and this message is computed once, and stays in memory.
    if 'left_out' in before.extra:
        first = jnp.where(before.extra['left_out'], jnp.nan, message[:1])
        return lax.dynamic_update_slice(message, first, [0])
    return jnp.where(all_finite(updates), message, jnp.nan)


def undone(
    finite: jax.Array, old: jax.Array, mean: jax.Array, rest: jax.Array, before: Any, after: Any
) -> tuple[jax.Array, jax.Array, Any]:
    """Mean, rest and state after a message; if it was not `finite`, as if it had not been sent.

    `old` is the block of the residual before the step.
    """
    held = before._replace(residual=None, extra=before.extra | {'skipped': before.extra['skipped'] + 1})
    mean, after = optax.tree.where(finite, (mean, after), (jnp.zeros_like(mean), held))
    # Computed within the kernel that puts it back, the rest would slow down every element of the tensor.
    # XLA computes nothing into or out of a conditional, and copies no more than the block.
    return mean, lax.cond(finite, lambda rest, _: rest, lambda _, old: old, rest, old), after


def admitted(updates: PyTree, carried: PyTree, before: Any, after: Any) -> tuple[PyTree, PyTree]:
    """Updates and what is carried, once the message has arrived; if skipped, none and the old residual."""
    finite = after.extra['skipped'] == before.extra['skipped']
    # Selecting between `pending` and the residual would keep both in memory. Selecting the updates fuses
    # with the in-place update of the residual; r + -0.0 is r, bit for bit.
    updates = jax.tree.map(lambda u: jnp.where(finite, u, -0.0), updates)
    return updates, optax.tree.where(finite, carried, before.residual)


def held(before: Any, after: Any) -> Any:
    """The state after a step; if that is skipped, with `inner` as before, or NaN would stay in momentum."""
    alone = 'left_out' in after.extra
    taken = ~after.extra['left_out'] if alone else after.extra['skipped'] == before.extra['skipped']

    def hold(new, old):
        # What advances at every step, such as a schedule's count, must stay the same on all workers.
        keeps = alone and not jnp.issubdtype(new.dtype, jnp.floating)
        return new if keeps else jnp.where(taken, new, old)

    return after._replace(inner=jax.tree.map(hold, after.inner, before.inner))


def all_finite(tree: PyTree) -> jax.Array:
    """Whether every number is finite, at memory speed: |x|'s bits, as an integer, are below infinity's.

    On CPUs, XLA fuses a reduction with the computation of x only over a leading axis of at most 32, where it
    needs no tree of partial results; 16 is faster than 8 or 32. A sum, a logical and, or a maximum over more
    would first write all of x to memory.
    """

    def largest(leaf):
        bits = lax.bitcast_convert_type(jnp.abs(leaf).astype(jnp.float32), jnp.int32)
        rows = bits.reshape(math.gcd(leaf.size, 16), -1)
        return rows.max(axis=0, initial=0).max(initial=0)

    infinity = np.float32(np.inf).view(np.int32)
    return jnp.all(jnp.array([largest(leaf) for leaf in jax.tree.leaves(tree)], jnp.int32) < infinity)
