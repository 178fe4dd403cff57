"""How a block travels: as floats in one all-reduce, as in the paper, or in few bits (`few_bits`)."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax import lax

from def_jax.ground.arguments import check_choice
from def_jax.ground.barriers import materialized, part_places, rounded
from def_jax.ground.collectives import Group, group_of, num_workers, pmean
from def_jax.ground.types import Arrive, AxisName
from def_jax.wires import few_bits
from def_jax.wires.layouts import ALONE, Division, Layout, stretches

Bits = Literal[1, 2, 4, 8, 16, 32]


class Exchanged(NamedTuple):
    """What comes back for a message, float32 [M]."""

    mean: jax.Array  # float32 [M], over workers
    rest: jax.Array  # float32 [M], what of its own a worker has still to send
    energy: jax.Array | None  # float32 [2], the squared norms of the mean, and the mean of those of messages


def check_bits(bits: Any, **others: str) -> None:
    """Raises ValueError unless numbers can travel in so many bits, or it is one of `others`."""
    meanings = 'signs', '-1, 0 and 1', '-7 to 7', '-127 to 127', 'bfloat16', 'float32, as in the paper'
    check_choice('bits', bits, dict(zip(get_args(Bits), meanings, strict=True)) | others)


class Route(NamedTuple):
    """How the parts of a message travel, each held by one device of a worker or by several."""

    sizes: tuple[int, ...]  # of the parts, in elements
    workers: Group
    within: Group  # a worker's devices
    bits: Bits
    holders: tuple[Group, ...]  # of each part, within a worker
    division: Division  # what each of these sends, in elements
    plan: few_bits.Plan | None  # of few bits; None for floats, and for nothing
    layout: Layout  # where the parts of a message lie for `exchange`

    @classmethod
    def of(
        cls,
        sizes: Sequence[int],
        axes: AxisName | Group,
        bits: Bits,
        within: Group = ALONE,
        holders: Sequence[Group] = (),
    ) -> 'Route':
        """By default, a worker is one device."""
        workers, alone = group_of(axes), [ALONE] * len(sizes)
        holders = tuple(holders or alone)
        # A single worker sends nothing that could be divided.
        found = stretches(holders if num_workers(workers) > 1 else alone)
        division, plan = Division.of(found, sizes), None
        if bits < 16 and any(sizes):
            plan = few_bits.plan(tuple(sizes), num_workers(workers), bits, found)
        layout = division.layout(sizes) if plan is None else plan.layout
        return cls(tuple(sizes), workers, within, bits, holders, division, plan, layout)

    def exchange(
        self,
        message: jax.Array,
        weights: jax.Array | None = None,
        arrive: Arrive = lambda sent, mean: mean,
    ) -> Exchanged:
        """Line 9.

        A message is float32 [M], of parts at the places of `layout`, and so are mean and rest. The mean of
        `mean + rest` over workers is the mean of the messages, so Eq. 8 holds, but for the rounding of
        bfloat16's sum, which is lost. A worker's rounding error stays in the rest, on all of its devices.

        The energy, float32 [2], is the squared norm of the mean message, and the mean of those of the
        messages, each part's squares times its weight, float32 [parts]; None without weights. Its sum over a
        worker's devices counts every element once.
        """
        if self.plan is not None:
            return Exchanged(*few_bits.exchange(message, self.plan, self.workers, weights, arrive))
        dtype = jnp.dtype(jnp.float32 if self.bits == 32 else jnp.bfloat16)
        # Hides from XLA that in float32 nothing is rounded: it therefore takes the message before it
        # overwrites the residual in place, without a copy. On GPUs, XLA would also take the block again in
        # every kernel that puts the rest of it back.
        message, numbers = materialized((message, rounded(message, dtype)))
        sent = self.division.section(numbers)
        if weights is not None:
            counts = jnp.array([num_workers(group) for group in self.holders], jnp.float32)
            weights = weights / counts
            sent = jnp.append(sent, self._energy(numbers, weights))
        sent = materialized(sent.astype(dtype))
        mean = arrive(sent, pmean(sent, self.workers).astype(jnp.float32))
        if weights is None:
            return Exchanged(self.division.whole(mean), message - numbers, None)
        mean, messages = self.division.whole(mean[:-1]), mean[-1]
        return Exchanged(mean, message - numbers, jnp.stack([self._energy(mean, weights), messages]))

    def _energy(self, message: jax.Array, weights: jax.Array) -> jax.Array:
        """The sum of the parts' squares times their weights, float32 []."""
        places = zip(part_places(self.layout.begins), self.sizes, strict=True)
        parts = [lax.dynamic_slice(message, [begin], [size]) for (_, begin), size in places]
        if not parts:
            return jnp.float32(0)
        return jnp.vdot(jnp.array([jnp.vdot(part, part) for part in parts]), weights)
