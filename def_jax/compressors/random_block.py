"""Random block-wise gradient sparsification: one block of every tensor.

How long a block every tensor sends, when one element in `ratio` may be sent in all: a tensor of n elements in
R blocks waits R steps until all of it is sent. Its residual is a sum of that many updates, about; these are
mostly noise, so that its squared norm is of the order of R·E, E the squared norm of one update. Over all
tensors Σ R·E is to be small for a message of Σ n / R elements, and it is least where R is proportional to
√(n / E). The norms of the tensors' updates differ far less than their sizes do. With one E for all, small
tensors send a larger share than large ones: R proportional to √n, the least Σ R.
"""

import functools
import heapq
import itertools
import math
from collections.abc import Sequence
from typing import Literal

from def_jax.compressors import orders
from def_jax.compressors.base import Compressor
from def_jax.compressors.blocks import compressor_of, same_share
from def_jax.ground.arguments import check_choice, check_ratio

Allocation = Literal['proportional', 'balanced']
_FARTHEST = 4  # between divisors further apart than this factor, there are sizes that divide nearly


def random_block(
    ratio: float,
    *,
    order: orders.Order = 'random',
    allocation: Allocation = 'proportional',
) -> Compressor:
    """Random block-wise gradient sparsification (RBGS): one block per tensor, at a shared random place.

    Every tensor of n elements is cut along its own axes into R tiles of one shape, and one tile is drawn.
    Each coordinate lies in exactly one tile, so it is sent with probability exactly 1 / R. A tile is a single
    `dynamic_slice` of the tensor as it lies in memory, and XLA updates it in place. Where n // ratio divides
    n, R = n / (n // ratio). Otherwise the last tile along an axis is shorter than its room in the message. A
    tensor smaller than the ratio sends one element. R is an integer, so ratios below 3 are coarse.

    Args:
        ratio: compression ratio, a number >= 1; 1 sends everything.
        order: 'random' draws every block independently, as the paper does; a coordinate waits R steps on
            average and may wait far longer. 'shuffled' sends every block once in a round of R steps, each
            round in a random order of its own: no coordinate waits longer than 2·R - 1 steps. 'cyclic'
            repeats one round: each waits exactly R steps. Nothing is stored.
        allocation: 'proportional' gives every tensor a block of about n // ratio elements; 'balanced' gives
            small tensors a larger share, in a message of at most that length: R is roughly proportional to
            √n. Blocks grow from divisor to divisor of n, so where one tensor holds nearly all elements, the
            message may be much shorter: 0.62 of it for an MLP of 784-512-10 at ratio 4; see `message_size`.

    Raises:
        ValueError: if `ratio` is not a number >= 1, or `order` or `allocation` is unknown.

    Source: Section 2, Eq. 3; Vogels et al. (2019) and Xie et al. (2020) for the block of every tensor.

    >>> import jax, jax.numpy as jnp
    >>> x = jnp.arange(1.0, 9.0)
    >>> block = random_block(4)(jax.random.PRNGKey(0), jnp.uint32(0), x)
    >>> block.take(x).shape
    (2,)
    >>> int(jnp.sum(block.place(block.take(x), x) != 0))
    2
    """
    ratio = check_ratio(ratio)
    shuffled = 'every block once a round, in a new order each'
    meanings = {'random': 'independent draws', 'shuffled': shuffled, 'cyclic': 'in the same order'}
    check_choice('order', order, meanings)
    shares = {'proportional': 'all tensors send the same share', 'balanced': 'small tensors send more of it'}
    check_choice('allocation', allocation, shares)
    sizes = same_share if allocation == 'proportional' else balanced
    return compressor_of(functools.partial(sizes, ratio=ratio), order)


def identity() -> Compressor:
    """C(x) = x: everything is sent, one block of every tensor, and the residual stays zero in float32.

    >>> import jax.numpy as jnp, def_jax
    >>> def_jax.message_size(identity(), jnp.ones((3, 4)))
    12
    """
    return random_block(1)


def balanced(sizes: Sequence[int], ratio: float) -> list[int]:
    """The elements that each tensor, of so many, sends: from 1 to its size, 0 where it is empty.

    They are the divisors n / R of the sizes n whose Σ R is least, or near it, among those that together are
    at most as many elements as `same_share` sends. Where divisors lie far apart, as those of a prime do,
    ⌈n / R⌉ are between them.

    >>> balanced([4096, 64, 64], 16)
    [128, 64, 64]
    """
    proportional = same_share(sizes, ratio)

    def waits(kept):  # Σ R
        return sum(n / k for n, k in zip(sizes, kept, strict=True) if n)

    # For a few tensors, none small beside the others, the same share may be better than all of these.
    return min(_grown(sizes, sum(proportional)), proportional, key=waits)


def _grown(sizes: Sequence[int], room: int) -> list[int]:
    """Blocks of one element that grow into `room`, each time the one that gains most for what it costs.

    Since R is convex in a block's size, this is optimal but for the last step of each tensor.
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
    divisors = [k for k in range(1, math.isqrt(n) + 1) if n % k == 0]
    divisors += [n // k for k in reversed(divisors) if k * k != n]
    steps = set(divisors)
    for small, large in itertools.pairwise(divisors):
        if large > _FARTHEST * small:
            steps.update(-(-large // 2**j) for j in range(1, (large // small).bit_length()))
    return sorted(steps)
