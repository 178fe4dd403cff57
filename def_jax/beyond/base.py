"""The seam between Algorithm 1 and everything that the paper does not have.

`error_feedback` calls the hooks of one `Option`. Each file of this folder holds one, and `Together` makes
one of several; without any of them, what remains is Algorithm 1.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax

from def_jax.compressors.base import Selection

PyTree = Any
Update = Callable[[PyTree, Any, PyTree], tuple[PyTree, Any]]  # updates, state, params -> updates, state

__all__ = ['Option', 'Pending', 'Step', 'Together', 'Update']


class Pending(Protocol):
    """Line 7: updates plus residual; with `taken`, bool [], False what a step that is dropped leaves."""

    def __call__(self, updates: PyTree, residual: PyTree, taken: bool | jax.Array = True) -> PyTree: ...


class Step(NamedTuple):
    """One step of Algorithm 1 in progress: what options may read and replace."""

    updates: PyTree  # worker k's, from the optimizer before this link
    before: Any  # the state before the step, an `ErrorFeedbackState`
    after: Any  # the state after it; its residual is not known yet and None
    pend: Pending  # line 7
    pending: PyTree  # like params, float32: p_k
    selection: Selection  # the coordinates that C keeps
    rest: Any = None  # float32 [B]: what stays behind of the block; known when the message has been encoded

    def keep(self, **fields: PyTree) -> 'Step':
        """Stores an option's own fields in the new state."""
        return self._replace(after=self.after._replace(extra=self.after.extra | fields))


class Option:
    """One option past Algorithm 1. By default no hook changes anything.

    A constructor checks its argument of `error_feedback`, be it the default, and sets `wanted`.
    """

    wanted: bool

    def init(self, params: PyTree) -> dict[str, PyTree]:
        """The fields that the option adds to `ErrorFeedbackState.extra`, the same on all workers."""
        del params
        return {}

    def carry(self, residual: jax.Array, taken: bool | jax.Array) -> jax.Array:
        """What is left of one tensor's residual when the next update is added to it."""
        del taken
        return residual

    def encode(self, message: jax.Array, step: Step) -> jax.Array:
        """The message, [B] or longer, as it travels."""
        del step
        return message

    def decode(self, mean: jax.Array, step: Step) -> tuple[jax.Array, Step]:
        """The mean over workers before `encode`, and the step with what was learned from it."""
        return mean, step

    def wrap(self, update: Update, pend: Pending) -> Update:
        """A function around the whole step."""
        del pend
        return update


class Together(Option):
    """Several options as one: the first encodes a message first, and decodes it last."""

    def __init__(self, options: Sequence[Option]):
        self._options = options
        self.wanted = bool(options)

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

    def wrap(self, update: Update, pend: Pending) -> Update:
        for option in self._options:
            update = option.wrap(update, pend)
        return update
