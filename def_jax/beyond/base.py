"""The seam between Algorithm 1 and everything that the paper does not have.

`error_feedback` calls the hooks of `Options`: those of each option in turn, and those of the one `Wire`,
which says how a block travels. Each file in this folder holds one of them. Without any option, what remains
is Algorithm 1.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from def_jax.compressors.base import Selection
from def_jax.mesh.collectives import pmean
from def_jax.mesh.link import float32_updates
from def_jax.mesh.shards import Shards
from def_jax.types import AxisName, PyTree

Send = Callable[[jax.Array, Any], tuple[jax.Array, Any]]  # block, state -> mean block, new state

__all__ = ['Option', 'Options', 'Send', 'Step', 'Wire', 'exchange', 'pend']


def pend(updates: PyTree, carried: PyTree) -> PyTree:
    """Line 7 in float32, after a check that nothing is broadcast or lost."""
    return jax.tree.map(jnp.add, float32_updates(updates, carried), carried)


class Step(NamedTuple):
    """A step of Algorithm 1 in progress, which options may read and modify."""

    updates: PyTree  # worker k's, from the optimizer before this link
    before: Any  # the state before the step, an `ErrorFeedbackState`
    pending: PyTree  # like params, float32: p_k
    selection: Selection  # the coordinates that C keeps
    shards: Shards  # of what this device holds a part
    after: Any = None  # the state after the step, but for its residual
    rest: Any = None  # float32 [B]: the unsent rest of the block; set once the message is encoded

    def keep(self, **fields: PyTree) -> 'Step':
        """Stores an option's own fields in the new state."""
        return self._replace(after=self.after._replace(extra=self.after.extra | fields))


class Option:
    """One option beyond Algorithm 1. By default, no hook changes anything.

    The constructor checks the option's argument of `error_feedback`, default or not, and sets `wanted`.
    """

    wanted: bool
    conditional = False  # whether `wrap` sends in a branch of a conditional

    def init(self, params: PyTree) -> dict[str, PyTree]:
        """The fields that the option adds to `ErrorFeedbackState.extra`, the same on all workers."""
        del params
        return {}

    def carry(self, residual: PyTree) -> PyTree:
        """The residual as carried into a step, before the updates are added."""
        return residual

    def encode(self, message: jax.Array, step: Step) -> jax.Array:
        """The message, float32 [B] or longer, whose first B elements leave the residual."""
        del step
        return message

    def decode(self, mean: jax.Array, step: Step) -> tuple[jax.Array, Step]:
        """Undoes `encode` on the mean over workers; returns it and the step, updated with what it tells."""
        return mean, step

    def messages(self, step: jax.Array) -> jax.Array:
        """How many messages were sent before a step, uint32 []: it selects the blocks."""
        return step

    def admit(
        self, updates: PyTree, carried: PyTree, before: Any, after: Any, shards: Shards
    ) -> tuple[PyTree, PyTree, Any]:
        """What of the updates is added to what of the residual, once the step's message has arrived."""
        del before, shards
        return updates, carried, after

    def finish(self, before: Any, after: Any) -> Any:
        """The state at the end of a step, whether or not a message was sent in it."""
        del before
        return after

    def wrap(self, send: Send, selection: Selection) -> Send:
        """Wraps line 9, the exchange of a block; the rest of the block is the new state's residual."""
        del selection
        return send


class Wire:
    """How a block travels: the type of its elements, and what rounding keeps back."""

    def init(self, params: PyTree) -> dict[str, PyTree]:
        """The fields that it adds to `ErrorFeedbackState.extra`, the same on all workers."""
        del params
        return {}

    def round(self, block: jax.Array, step: Step) -> jax.Array:
        """What of the block, float32 [B], can travel and leaves the residual: float32 [B]."""
        raise NotImplementedError

    def pack(self, message: jax.Array, step: Step) -> jax.Array:
        """The message as it travels, from the rounded block and the numbers that options append to it."""
        raise NotImplementedError

    def unpack(self, mean: jax.Array, step: Step) -> tuple[jax.Array, Step]:
        """Undoes `pack` on the mean over workers, or on one worker's: float32."""
        raise NotImplementedError


class Options(Option):
    """Several options as one, and the wire: the first option encodes a message first and decodes it last."""

    def __init__(self, options: Sequence[Option], wire: Wire):
        self._options, self.wire = options, wire
        self.conditional = any(option.conditional for option in options)

    def init(self, params: PyTree) -> dict[str, PyTree]:
        parts: list[Option | Wire] = [*self._options, self.wire]
        return {name: field for part in parts for name, field in part.init(params).items()}

    def check(self, state: Any) -> None:
        """Raises ValueError unless a link's state has the fields of its options."""
        if missing := sorted(set(jax.eval_shape(self.init, {})) - set(state.extra)):
            raise ValueError(
                f'state lacks {", ".join(missing)}: it was made with other options. Pass the state returned '
                'by init of this optimizer.'
            )

    def carry(self, residual: PyTree) -> PyTree:
        for option in self._options:
            residual = option.carry(residual)
        return residual

    def encode(self, message: jax.Array, step: Step) -> jax.Array:
        for option in self._options:
            message = option.encode(message, step)
        return message

    def decode(self, mean: jax.Array, step: Step) -> tuple[jax.Array, Step]:
        for option in reversed(self._options):
            mean, step = option.decode(mean, step)
        return mean, step

    def messages(self, step: jax.Array) -> jax.Array:
        for option in self._options:
            step = option.messages(step)
        return step

    def admit(
        self, updates: PyTree, carried: PyTree, before: Any, after: Any, shards: Shards
    ) -> tuple[PyTree, PyTree, Any]:
        for option in self._options:
            updates, carried, after = option.admit(updates, carried, before, after, shards)
        return updates, carried, after

    def finish(self, before: Any, after: Any) -> Any:
        for option in self._options:
            after = option.finish(before, after)
        return after

    def wrap(self, send: Send, selection: Selection) -> Send:
        for option in reversed(self._options):
            send = option.wrap(send, selection)
        return send


def exchange(
    options: Options,
    axis_name: AxisName,
    detach: float,
    block: jax.Array,
    step: Step,
    mean_of: Callable[[jax.Array, AxisName], jax.Array] = pmean,
) -> tuple[jax.Array, Any]:
    """Line 9: the mean block, float32 [B], and the state after it, with the block's rest as its residual.

    The options that wrap it, such as a conditional, see the block in place of the trees.
    """
    residual = step.before.residual

    def send(block, before):
        after = before._replace(step=before.step + 1, detach=jnp.asarray(detach, jnp.float32), residual=None)
        now = step._replace(before=before._replace(residual=residual), after=after)
        mean, now = _all_reduce(options, axis_name, block, now, mean_of)
        return mean, now.after._replace(residual=now.rest)

    return options.wrap(send, step.selection)(block, step.before)


def _all_reduce(
    options: Options, axis_name: AxisName, block: jax.Array, step: Step, mean_of: Callable
) -> tuple[jax.Array, Step]:
    """The mean block, and the step, which knows the rest of the block.

    The rest is the message's rounding error: zeros in float32. The barrier hides them from XLA, which
    therefore takes the message before it overwrites the residual in place, without a copy. On GPUs, XLA would
    also take the block again in every kernel that puts the rest of it back.
    """
    message = options.encode(options.wire.round(block, step), step)
    block, message = lax.optimization_barrier((block, message))
    step = step._replace(rest=block - message[: block.size])
    mean = mean_of(options.wire.pack(message, step), axis_name)
    return options.decode(*options.wire.unpack(mean, step))
