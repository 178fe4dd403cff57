"""Options that the paper does not have, one per file, plugged into Algorithm 1 at the seam in `base`."""

from typing import Literal

import optax
from jax.typing import DTypeLike

from def_jax.beyond.averaging import Averaging
from def_jax.beyond.base import Option, Step, Together
from def_jax.beyond.decay import Decay
from def_jax.beyond.detach_estimate import DetachEstimate
from def_jax.beyond.every import Every
from def_jax.beyond.integers import Integers
from def_jax.beyond.outer import Outer
from def_jax.beyond.skipping import Skipping
from def_jax.beyond.wire_dtype import WireDtype
from def_jax.compressors import Compressor
from def_jax.mesh.collectives import AxisName

__all__ = ['Option', 'Step', 'options']


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
) -> Option:
    """The options beyond Algorithm 1 that the arguments of `error_feedback` select.

    `Skipping` comes first and therefore decodes last: a skipped step discards what the other options learned
    from its message.

    Raises:
        ValueError: if an argument is out of range, or two of them conflict.
    """
    estimate = DetachEstimate(detach, axis_name, wire_dtype)
    known = [
        Skipping(skip_nonfinite),
        Outer(outer),
        WireDtype(wire_dtype),
        Integers(wire_dtype, axis_name, compressor, numbers=int(estimate.wanted)),
        estimate,
        Decay(decay),
        Averaging(average_every, axis_name),
        Every(every),
    ]
    if every > 1 and (average_every or skip_nonfinite):
        other = f'{average_every=}' if average_every else f'{skip_nonfinite=}'
        raise ValueError(
            f'{every=} and {other} cannot be combined: workers do not communicate between messages. '
            'Set every=1, or leave the other at its default.'
        )
    return Together([option for option in known if option.wanted])
