"""How long a block every tensor sends, when one element in `ratio` may be sent in all.

A tensor of n elements in R blocks waits R steps until all of it is sent. Its residual is a sum of that many
updates, about; these are mostly noise, so that its squared norm is of the order of R·E, E the squared norm of
one update. Over all tensors Σ R·E is to be small for a message of Σ n / R elements, and it is least where

    R is proportional to √(n / E).

The norms of the tensors' updates differ far less than their sizes do. With one E for all, small tensors send
a larger share than large ones: R proportional to √n, the least Σ R. See docs/lab.md for what it brings.
"""

import functools
import heapq
import itertools
import math
from collections.abc import Sequence
from typing import Literal

from def_jax.checks import check_choice

__all__ = ['Allocation', 'block_sizes', 'check_allocation']

_FARTHEST = 4  # between divisors further apart than this factor, there are sizes that divide nearly

Allocation = Literal['proportional', 'balanced']


def check_allocation(allocation: Allocation) -> None:
    """Raises ValueError unless blocks can be allocated so."""
    meanings = {
        'proportional': 'every tensor sends the same share',
        'balanced': 'small tensors send a larger one',
    }
    check_choice('allocation', allocation, meanings)


def block_sizes(sizes: Sequence[int], ratio: float, allocation: Allocation = 'proportional') -> list[int]:
    """The number of elements that every tensor sends.

    Args:
        sizes: of the tensors, in elements.
        ratio: compression ratio, a number >= 1.
        allocation: 'proportional', 1 / ratio of every tensor, one element at least; or 'balanced', the
            divisors n / R of the tensors' sizes n whose Σ R is least, or near it, among those that together
            are at most as many elements as 'proportional' sends. Where divisors lie far apart, as those of a
            prime do, ⌈n / R⌉ are between them.

    Returns:
        A number for every tensor, from 1 to its size; 0 where it is empty.

    >>> block_sizes([4096, 64, 64], 16)
    [256, 4, 4]
    >>> block_sizes([4096, 64, 64], 16, 'balanced')
    [128, 64, 64]
    """
    proportional = [min(n, max(1, int(n // ratio))) for n in sizes]
    if allocation == 'proportional':
        return proportional

    def waits(kept):  # Σ R
        return sum(n / k for n, k in zip(sizes, kept, strict=True) if n)

    # For a few tensors, none small beside the others, the same share may be better than all of these.
    return min(_grown(sizes, sum(proportional)), proportional, key=waits)


def _grown(sizes: Sequence[int], room: int) -> list[int]:
    """Blocks of one element that grow into `room`, each time the one that gains most for what it costs.

    Since R is convex in the size of the block, growing from size to size in this order is optimal but
    for the last step of each tensor, which may not find room.
    """
    kept = [min(n, 1) for n in sizes]
    room -= sum(kept)
    # What one more element gains, negated; the tensor; its next size.
    waiting: list[tuple[float, int, int]] = []

    def consider(i: int) -> None:
        steps = _steps(sizes[i])
        if kept[i] < sizes[i]:
            larger = steps[steps.index(kept[i]) + 1]
            gain = sizes[i] / kept[i] - sizes[i] / larger
            heapq.heappush(waiting, (-gain / (larger - kept[i]), i, larger))

    for i in range(len(sizes)):
        consider(i)
    while waiting:
        _, i, larger = heapq.heappop(waiting)
        if larger - kept[i] <= room:
            room -= larger - kept[i]
            kept[i] = larger
            consider(i)
    return kept


@functools.cache
def _steps(n: int) -> list[int]:
    """The sizes of blocks of n elements: its divisors, and others where these are too far apart.

    >>> _steps(12), _steps(13)
    ([1, 2, 3, 4, 6, 12], [1, 2, 4, 7, 13])
    """
    divisors = _divisors(n)
    steps = set(divisors)
    for small, large in itertools.pairwise(divisors):
        if large > _FARTHEST * small:
            steps.update(-(-large // 2**j) for j in range(1, (large // small).bit_length()))
    return sorted(steps)


def _divisors(n: int) -> list[int]:
    small = [k for k in range(1, math.isqrt(n) + 1) if n % k == 0]
    return small + [n // k for k in reversed(small) if k * k != n]
