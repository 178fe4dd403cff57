"""How a block travels: as floats in one all-reduce (`floats`), or in few bits (`few_bits`)."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax

from def_jax.checks import check_choice
from def_jax.compressors.base import Layout
from def_jax.mesh.collectives import num_workers
from def_jax.types import AxisName
from def_jax.wires import few_bits, floats
from def_jax.wires.floats import Arrive

__all__ = ['Bits', 'Exchanged', 'check_bits', 'exchange', 'layout']

Bits = Literal[1, 2, 4, 8, 16, 32]


class Exchanged(NamedTuple):
    """What an exchange of blocks tells a worker."""

    mean: jax.Array  # float32 [M], of the messages, the same on all workers
    rest: jax.Array  # float32 [M]: what of this worker's message is still to be sent
    # float32 [2]: squared norms of the mean message and, as a mean over workers, of the messages; None unless
    # asked
    energy: jax.Array | None


def check_bits(bits: Any) -> None:
    """Raises ValueError unless numbers can travel in so many bits."""
    meanings = {
        1: 'signs',
        2: '-1, 0 and 1',
        4: 'integers from -7 to 7',
        8: 'integers from -127 to 127',
        16: 'bfloat16',
        32: 'float32, as in the paper',
    }
    assert tuple(meanings) == get_args(Bits)
    check_choice('bits', bits, meanings)


def layout(sizes: Sequence[int], axis_name: AxisName, bits: int) -> Layout:
    """Where the parts of a message lie for `exchange`, given their sizes in elements."""
    if bits >= 16 or not any(sizes):
        return Layout.dense(sizes)
    return few_bits.plan(tuple(sizes), num_workers(axis_name), bits).layout


def exchange(
    message: jax.Array,
    sizes: Sequence[int],
    axis_name: AxisName,
    bits: int,
    weights: jax.Array | None = None,
    arrive: Arrive = lambda sent, mean: mean,
) -> Exchanged:
    """Line 9: the mean of the workers' messages, and what of this worker's rounding has kept back.

    The mean of `mean + rest` over workers is the mean of the messages, so Eq. 8 holds at any number of bits.

    Args:
        message: float32 [M], this worker's, its parts at the places of `layout`.
        sizes: of the parts, in elements.
        axis_name: the axis over workers.
        bits: in which a number travels.
        weights: float32 [parts], factors of the parts' squares in `energy`; None if it is not wanted.
        arrive: maps what this worker has sent and the mean, as soon as this is known, to the mean.
    """
    if bits >= 16:
        return Exchanged(*floats.exchange(message, sizes, axis_name, bits, weights, arrive))
    return Exchanged(*few_bits.exchange(message, sizes, axis_name, bits, weights, arrive))
