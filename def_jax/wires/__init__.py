"""How a block travels: as floats in one all-reduce, as in the paper, or in few bits (`few_bits`)."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax import lax

from def_jax.ground.arguments import check_choice
from def_jax.ground.barriers import part_places
from def_jax.ground.collectives import num_workers, pmean
from def_jax.ground.types import Arrive, AxisName
from def_jax.wires import few_bits
from def_jax.wires.layouts import Layout

Bits = Literal[1, 2, 4, 8, 16, 32]


class Exchanged(NamedTuple):
    """What comes back for a message, float32 [M]."""

    mean: jax.Array  # float32 [M], over workers
    rest: jax.Array  # float32 [M], what of its own a worker has still to send
    energy: jax.Array | None  # float32 [2], the squared norms of the mean, and the mean of those of messages


def check_bits(bits: Any) -> None:
    """Raises ValueError unless numbers can travel in so many bits."""
    meanings = 'signs', '-1, 0 and 1', '-7 to 7', '-127 to 127', 'bfloat16', 'float32, as in the paper'
    check_choice('bits', bits, dict(zip(get_args(Bits), meanings, strict=True)))


def layout(sizes: Sequence[int], axis_name: AxisName, bits: int) -> Layout:
    """Where the parts of a message lie for `exchange`, given their sizes in elements."""
    plan = _plan(sizes, axis_name, bits)
    return Layout.dense(sizes) if plan is None else plan.layout


def _plan(sizes: Sequence[int], axis_name: AxisName, bits: int) -> few_bits.Plan | None:
    """How it travels in few bits; None for floats, and for nothing."""
    return few_bits.plan(tuple(sizes), num_workers(axis_name), bits) if bits < 16 and any(sizes) else None


def exchange(
    message: jax.Array,
    sizes: Sequence[int],
    axis_name: AxisName,
    bits: int,
    weights: jax.Array | None = None,
    arrive: Arrive = lambda sent, mean: mean,
) -> Exchanged:
    """Line 9.

    A message is float32 [M], of parts of these sizes at the places of `layout`, and so are mean and rest. The
    mean of `mean + rest` over workers is the mean of the messages, so Eq. 8 holds, but for the rounding of
    bfloat16's sum, which is lost. A worker's rounding error stays in the rest.

    The energy, float32 [2], is the squared norm of the mean message, and the mean of those of the messages,
    each part's squares times its weight, float32 [parts]; None without weights.
    """
    if (plan := _plan(sizes, axis_name, bits)) is not None:
        return Exchanged(*few_bits.exchange(message, plan, axis_name, weights, arrive))
    dtype = jnp.float32 if bits == 32 else jnp.bfloat16
    # XLA may skip rounding that is undone at once; the barrier forbids that.
    rounded = message if bits == 32 else lax.optimization_barrier(message.astype(dtype)).astype(jnp.float32)
    # This one hides from XLA that in float32 nothing is rounded: it therefore takes the message before it
    # overwrites the residual in place, without a copy. On GPUs, XLA would also take the block again in every
    # kernel that puts the rest of it back.
    message, rounded = lax.optimization_barrier((message, rounded))
    packed = rounded if weights is None else jnp.append(rounded, _energy(rounded, sizes, weights))
    packed = lax.optimization_barrier(packed.astype(dtype))
    mean = arrive(packed, pmean(packed, axis_name).astype(jnp.float32))
    if weights is None:
        return Exchanged(mean, message - rounded, None)
    mean, messages = mean[:-1], mean[-1]
    return Exchanged(mean, message - rounded, jnp.stack([_energy(mean, sizes, weights), messages]))


def _energy(message: jax.Array, sizes: Sequence[int], weights: jax.Array) -> jax.Array:
    """The sum of the parts' squares times their weights, float32 []."""
    places = zip(part_places(Layout.dense(sizes).begins), sizes, strict=True)
    parts = [lax.dynamic_slice(message, [begin], [size]) for (_, begin), size in places]
    return jnp.vdot(jnp.array([jnp.vdot(part, part) for part in parts]), weights) if parts else jnp.float32(0)
