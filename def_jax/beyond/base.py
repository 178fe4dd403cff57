"""The seam between Algorithm 1 and everything that the paper does not have.

`error_feedback` calls the hooks of a single `Option`. Each file in this folder holds one, and `Together`
combines several. Without any option, what remains is Algorithm 1.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax

from def_jax.compressors.base import Selection
from def_jax.mesh.shards import Shards

PyTree = Any
Send = Callable[[PyTree, Any], tuple[jax.Array, Any]]  # pending, state -> mean message, new state

__all__ = ['Option', 'Pending', 'Send', 'Step', 'Together']


class Pending(Protocol):
    """Line 7: updates plus residual. If `taken`, bool [], is False, the step is dropped; see `carry`."""

    def __call__(self, updates: PyTree, residual: PyTree, taken: bool | jax.Array = True) -> PyTree: ...


class Step(NamedTuple):
    """A step of Algorithm 1 in progress, which options may read and modify."""

    updates: PyTree  # worker k's, from the optimizer before this link
    before: Any  # the state before the step, an `ErrorFeedbackState`
    after: Any  # the state after it; its residual is not yet known, hence None
    pend: Pending  # line 7
    pending: PyTree  # like params, float32: p_k
    selection: Selection  # the coordinates that C keeps
    shards: Shards  # of what this device holds a part
    rest: Any = None  # float32 [B]: the unsent rest of the block; set once the message is encoded

    def energy(self, message: jax.Array) -> jax.Array:
        """An estimate of this worker's ‖pending‖² from its message, or of another tree from its block."""
        return self.shards.energy(self.selection, message, self.pending)

    def keep(self, **fields: PyTree) -> 'Step':
        """Stores an option's own fields in the new state."""
        return self._replace(after=self.after._replace(extra=self.after.extra | fields))


class Option:
    """One option beyond Algorithm 1. By default, no hook changes anything.

    The constructor checks the option's argument of `error_feedback`, default or not, and sets `wanted`.
    """

    wanted: bool

    def init(self, params: PyTree) -> dict[str, PyTree]:
        """The fields that the option adds to `ErrorFeedbackState.extra`, the same on all workers."""
        del params
        return {}

    def carry(self, residual: jax.Array, taken: bool | jax.Array) -> jax.Array:
        """One tensor's residual as carried into a step, before the update is added."""
        del taken
        return residual

    def encode(self, message: jax.Array, step: Step) -> jax.Array:
        """The message, [B] or longer, whose first B elements leave the residual."""
        del step
        return message

    def pack(self, message: jax.Array, step: Step) -> jax.Array:
        """The encoded message as it travels, once `step.rest` is known."""
        del step
        return message

    def unpack(self, mean: jax.Array, step: Step) -> tuple[jax.Array, Step]:
        """Undoes `pack` on the mean over workers, before `decode`."""
        return mean, step

    def decode(self, mean: jax.Array, step: Step) -> tuple[jax.Array, Step]:
        """Undoes `encode` on the mean over workers; returns it and the step, updated with what it tells."""
        return mean, step

    def messages(self, step: jax.Array) -> jax.Array:
        """How many messages were sent before a step, uint32 []: it selects the blocks."""
        return step

    def wrap(self, send: Send, selection: Selection) -> Send:
        """Wraps lines 8 and 9, the exchange of a message; the mean that it returns is float32 [B]."""
        del selection
        return send


class Together(Option):
    """Several options as one: the first encodes a message first and decodes it last."""

    def __init__(self, options: Sequence[Option]):
        self._options = options

    def init(self, params: PyTree) -> dict[str, PyTree]:
        return {name: field for option in self._options for name, field in option.init(params).items()}

    def carry(self, residual: jax.Array, taken: bool | jax.Array) -> jax.Array:
        for option in self._options:
            residual = option.carry(residual, taken)
        return residual

    def encode(self, message: jax.Array, step: Step) -> jax.Array:
        for option in self._options:
            message = option.encode(message, step)
        return message

    def decode(self, mean: jax.Array, step: Step) -> tuple[jax.Array, Step]:
        for option in reversed(self._options):
            mean, step = option.decode(mean, step)
        return mean, step

    def pack(self, message: jax.Array, step: Step) -> jax.Array:
        for option in self._options:
            message = option.pack(message, step)
        return message

    def unpack(self, mean: jax.Array, step: Step) -> tuple[jax.Array, Step]:
        for option in reversed(self._options):
            mean, step = option.unpack(mean, step)
        return mean, step

    def messages(self, step: jax.Array) -> jax.Array:
        for option in self._options:
            step = option.messages(step)
        return step

    def wrap(self, send: Send, selection: Selection) -> Send:
        for option in self._options:
            send = option.wrap(send, selection)
        return send
