"""Arguments of `error_feedback` that Algorithm 1 does not have, a file each; they meet in `sending`."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from def_jax.checks import (
    check_flag,
    check_integer,
    check_number,
    check_structure,
    named_leaves,
)
from def_jax.compressors import Compressor, Selection
from def_jax.options import averaging, detach_estimate, outer, skipping
from def_jax.types import AxisName, PyTree
from def_jax.wires import check_bits, layout

__all__ = ['PAPER_DETACH', 'Options', 'check_average_every', 'check_detach']

PAPER_DETACH = 0.3  # the λ of the paper's tables, and this library's default


@dataclasses.dataclass(frozen=True)
class Options:
    """The options of one link.

    Raises:
        ValueError: if one is out of range, or two of them conflict.
    """

    compressor: Compressor
    axis_name: AxisName
    bits: int
    detach: float | Literal['auto']
    every: int
    decay: float
    outer: optax.GradientTransformation | None
    average_every: int
    skip_nonfinite: bool
    overlap: bool

    def __post_init__(self):
        check_bits(self.bits)
        check_detach(self.detach)
        check_integer('every', self.every, 1, 'the number of steps per message')
        check_number('decay', self.decay, 0, 1, 'the fraction of the residual kept per step; 1 keeps all')
        outer.check_outer(self.outer)
        check_average_every(self.average_every)
        check_flag('skip_nonfinite', self.skip_nonfinite)
        check_flag('overlap', self.overlap)
        if self.every > 1 and (self.average_every or self.skip_nonfinite):
            other = 'average_every' if self.average_every else 'skip_nonfinite'
            raise ValueError(
                f'every={self.every} and {other}={getattr(self, other)!r} cannot be combined: workers do not '
                'communicate between messages. Set every=1, or leave the other at its default.'
            )

    @property
    def estimates_detach(self) -> bool:
        return isinstance(self.detach, str)

    @property
    def first_detach(self) -> float:
        """λ in the first step, of residuals that are zero."""
        return 1.0 if isinstance(self.detach, str) else self.detach

    def init(self, params: PyTree) -> dict[str, PyTree]:
        """State of the options, `ErrorFeedbackState.extra`."""
        extra: dict[str, PyTree] = {}
        if self.skip_nonfinite:
            extra |= skipping.init(self.axis_name, self.overlap)
        if self.outer is not None:
            extra['outer'] = outer.init(self.outer, params)
        if self.estimates_detach:
            extra['energy'] = jnp.zeros(2, jnp.float32)
        return extra

    def check(self, state: Any) -> None:
        """Raises ValueError unless a link's state has the fields of its options, in their shapes."""
        expected = jax.eval_shape(self.init, state.residual)
        if missing := sorted(set(expected) - set(state.extra)):
            raise ValueError(
                f'state lacks {", ".join(missing)}: it was made with other options. Pass the state returned '
                'by init of this optimizer.'
            )
        if unknown := sorted(set(state.extra) - set(expected)):
            raise ValueError(
                f'state holds {", ".join(unknown)}, which this optimizer does not know: it was made with '
                'other options, or by an earlier version (int8 messages of 0.3 had `wire_squares`). Train '
                'on from its parameters with a new state, or make the optimizer with the same options.'
            )
        remedy = (
            'It was made with other options, or is stacked over workers. Pass the state returned by init.'
        )
        check_structure('state.extra', state.extra, 'the options of this optimizer need', expected, remedy)
        for (path, x), like in zip(named_leaves(state.extra), jax.tree.leaves(expected), strict=True):
            if jnp.shape(x) != like.shape:
                raise ValueError(f'state.extra{path} is {jnp.shape(x)}, but must be {like.shape}. {remedy}')

    def drawn(self, state: Any) -> jax.Array:
        """How many blocks have been drawn, uint32 []: a step that is skipped has drawn one, too.

        If what is not finite lies in the block, its sum over workers for one, the block would otherwise be
        drawn again forever.
        """
        return state.step + state.extra['skipped'] if self.skip_nonfinite else state.step

    def select(self, key: jax.Array, step: jax.Array, like: PyTree) -> Selection:
        """What the message of a step selects; a round of blocks is a round of messages."""
        places = layout(self.compressor.sizes(like), self.axis_name, self.bits)
        return self.compressor(key, step // self.every if self.every > 1 else step, like, places)

    def carry(self, residual: PyTree) -> PyTree:
        """The residual, of which `decay` is what is carried into a step."""
        if isinstance(self.decay, (int, float)) and self.decay == 1:
            return residual
        return jax.tree.map(lambda r: self.decay * r, residual)

    def finish(self, before: Any, after: Any) -> Any:
        """The state at the end of a step, whether or not a message was sent in it."""
        if self.average_every:
            after = averaging.averaged(self.average_every, self.axis_name, before, after)
        if self.estimates_detach:
            shares = self.compressor.age_shares
            after = after._replace(
                detach=detach_estimate.estimated(after.extra['energy'], self.axis_name, shares)
            )
        return after


def check_average_every(average_every: Any) -> None:
    """Raises ValueError unless it is an integer in [0, 2**31)."""
    check_integer('average_every', average_every, 0, 'a number of steps, 0 for never')


def check_detach(detach: Any) -> None:
    """Raises ValueError unless it is a number in [0, 1] or 'auto'."""
    if not isinstance(detach, str) or detach != 'auto':
        hint = f"λ: 0 is error feedback, {PAPER_DETACH} the paper's choice; or 'auto'"
        check_number('detach', detach, 0, 1, hint)
