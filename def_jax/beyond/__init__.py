"""Options that the paper does not have, one per file, plugged into Algorithm 1 at the seam in `base`."""

from typing import Literal

import jax.numpy as jnp
import optax
from jax.typing import DTypeLike

from def_jax.beyond.averaging import Averaging
from def_jax.beyond.base import Options, Step, exchange, pend
from def_jax.beyond.decay import Decay
from def_jax.beyond.detach_estimate import PAPER_DETACH, DetachEstimate
from def_jax.beyond.every import Every
from def_jax.beyond.floats import Floats, check_wire_dtype
from def_jax.beyond.integers import Integers
from def_jax.beyond.outer import Outer
from def_jax.beyond.overlap import overlapped
from def_jax.beyond.skipping import Skipping
from def_jax.checks import check_flag
from def_jax.compressors import Compressor
from def_jax.types import AxisName

__all__ = ['PAPER_DETACH', 'Options', 'Step', 'exchange', 'options', 'overlapped', 'pend']


def options(
    axis_name: AxisName,
    compressor: Compressor,
    *,
    detach: float | Literal['auto'],
    every: int,
    decay: float,
    outer: optax.GradientTransformation | None,
    average_every: int,
    wire_dtype: DTypeLike,
    skip_nonfinite: bool,
    overlap: bool,
) -> Options:
    """The options beyond Algorithm 1 that the arguments of `error_feedback` select.

    `Skipping` comes first and therefore decodes last: a skipped step discards what the other options learned
    from its message.

    Raises:
        ValueError: if an argument is out of range, or two of them conflict.
    """
    dtype = check_wire_dtype(wire_dtype)
    estimate = DetachEstimate(detach, axis_name, dtype, compressor)
    known = [
        Skipping(skip_nonfinite, axis_name, overlap),
        Outer(outer),
        estimate,
        Decay(decay),
        Averaging(average_every, axis_name),
        Every(every),
    ]
    check_flag('overlap', overlap)
    if every > 1 and (average_every or skip_nonfinite):
        other = f'{average_every=}' if average_every else f'{skip_nonfinite=}'
        raise ValueError(
            f'{every=} and {other} cannot be combined: workers do not communicate between messages. '
            'Set every=1, or leave the other at its default.'
        )
    numbers = int(estimate.wanted)  # that travel beside the block
    wire = Integers(axis_name, compressor, numbers) if dtype == jnp.int8 else Floats(dtype)
    return Options([option for option in known if option.wanted], wire)
