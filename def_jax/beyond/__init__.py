"""What the paper does not have: a file for each option, plugged into Algorithm 1 at the seam in `base`."""

from typing import Literal

import optax
from jax.typing import DTypeLike

from def_jax.beyond.averaging import Averaging
from def_jax.beyond.base import Option, Step, Together
from def_jax.beyond.decay import Decay
from def_jax.beyond.detach_estimate import DetachEstimate
from def_jax.beyond.every import Every
from def_jax.beyond.outer import Outer
from def_jax.beyond.skipping import Skipping
from def_jax.beyond.wire_dtype import WireDtype
from def_jax.collectives import AxisName

__all__ = ['Option', 'Step', 'options']


def options(
    axis_name: AxisName,
    *,
    detach: float | Literal['auto'],
    every: int,
    decay: float,
    outer: optax.GradientTransformation | None,
    average_every: int,
    wire_dtype: DTypeLike,
    skip_nonfinite: bool,
) -> Option:
    """What the arguments of `error_feedback` ask for past Algorithm 1.

    Skipping comes first and so decodes a message last: a step that is skipped takes back what the others have
    learned from its message.

    Raises:
        ValueError: if an argument is out of range, or two of them exclude each other.
    """
    known = [
        Skipping(skip_nonfinite),
        Outer(outer),
        WireDtype(wire_dtype),
        DetachEstimate(detach, axis_name, wire_dtype),
        Decay(decay),
        Averaging(average_every, axis_name),
        Every(every),
    ]
    if every > 1 and (average_every or skip_nonfinite):
        other = f'{average_every=}' if average_every else f'{skip_nonfinite=}'
        raise ValueError(
            f'{every=} and {other} exclude each other: between messages workers know nothing of each other. '
            'Set every=1, or leave the other at its default.'
        )
    return Together([option for option in known if option.wanted])
