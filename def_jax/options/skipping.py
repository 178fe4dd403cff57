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

from def_jax.ground.collectives import Group, pmax
from def_jax.ground.types import AxisName, PyTree


def marked(message: jax.Array, updates: PyTree, before: Any) -> jax.Array:
    """The message, float32 [M], of NaN if this worker's update is to be skipped."""
    # One NaN says as much; and this message is computed once, and stays in memory.
    if is_used(before.left_out):
        first = jnp.where(before.left_out, jnp.nan, message[:1])
        return lax.dynamic_update_slice(message, first, [0])
    return jnp.where(all_finite(updates), message, jnp.nan)


def undone(finite: jax.Array, old: jax.Array, reply: Any, before: Any) -> Any:
    """The reply to a message; if its mean was not `finite`, as if it had not been sent.

    `old` is the block of the residual before the step, `before` the memory.
    """
    held = before._replace(skipped=before.skipped + 1)
    nothing = jnp.zeros_like(reply.mean)
    mean, memory = optax.tree.where(finite, (reply.mean, reply.memory), (nothing, held))
    # Computed within the kernel that puts it back, the rest would slow down every element of the tensor.
    # XLA computes nothing into or out of a conditional, and copies no more than the block.
    rest = lax.cond(finite, lambda rest, _: rest, lambda _, old: old, reply.rest, old)
    return reply._replace(mean=mean, rest=rest, memory=memory)


def admitted(updates: PyTree, carried: PyTree, before: Any, reply: Any) -> tuple[PyTree, PyTree]:
    """Updates and what is carried, once the message has arrived; if skipped, none and the old residual."""
    finite = reply.memory.skipped == before.skipped
    # Selecting between `pending` and the residual would keep both in memory. Selecting the updates fuses
    # with the in-place update of the residual; r + -0.0 is r, bit for bit.
    updates = jax.tree.map(lambda u: jnp.where(finite, u, -0.0), updates)
    return updates, optax.tree.where(finite, carried, before.residual)


def is_used(field: PyTree) -> bool:
    """Whether options use a field of the state that holds one array; () where they don't."""
    return not isinstance(field, tuple)


def is_taken(before: Any, after: Any) -> jax.Array:
    """Whether a step counts, bool []: for all workers, or with `overlap`, for this one."""
    return ~after.left_out if is_used(after.left_out) else after.skipped == before.skipped


def held(before: Any, after: Any) -> Any:
    """The state after a step; if that is skipped, with `inner` as before, or NaN would stay in momentum."""
    taken, alone = is_taken(before, after), is_used(after.left_out)
    return after._replace(inner=hold(taken, after.inner, before.inner, counts=not alone))


def hold(taken: jax.Array, after: PyTree, before: PyTree, *, counts: bool) -> PyTree:
    """The state `after` where the step is `taken`, else `before`; without `counts`, lone integers advance.

    A schedule's count, which advances at every step, must stay the same on all workers.
    """

    def leaf(new, old):
        advances = not counts and not new.ndim and not jnp.issubdtype(new.dtype, jnp.inexact)
        return new if advances else jnp.where(taken, new, old)

    return jax.tree.map(leaf, after, before)


def finite_on_all(tree: PyTree, axes: AxisName | Group) -> jax.Array:
    """Whether every number on every device is finite, bool [], the same on all of them."""
    return pmax((~all_finite(tree)).astype(jnp.int32), axes) == 0


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
