"""Which block of a tensor is sent when: redrawn at every step, or each block once a round.

A tensor has R blocks, and each of its coordinates lies in one of them. With independent draws a coordinate
waits R steps on average and sometimes many times that: the wait is geometric. In rounds it waits at most
2·R − 1 steps when each round has a permutation of its own ('shuffled'), and exactly R when all have the
same ('cyclic').
"""

from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from def_jax.checks import check_choice

__all__ = ['AGE_SHARES', 'Order', 'check_order', 'draw_places']

Order = Literal['random', 'shuffled', 'cyclic']
# Means over the residual of age² and of age, as shares of those of the block that is sent. A coordinate that
# waits w steps between two sendings has every age up to w once, so they are E[w³]/3 to E[w²]·E[w] and E[w²]/2
# to E[w]²; w is geometric, R plus the difference of two uniform places in a round, or R.
AGE_SHARES = {'random': (1.0, 1.0), 'shuffled': (3 / 7, 7 / 12), 'cyclic': (1 / 3, 1 / 2)}
_SWAPS = 16  # rounds of the swap-or-not shuffle; each halves what is left of an entry's first place


def check_order(order: Order) -> None:
    """Raises ValueError unless blocks can be sent in that order."""
    shuffled = 'every block once a round, in a new order each'
    meanings = {'random': 'independent draws', 'shuffled': shuffled, 'cyclic': 'in the same order'}
    check_choice('order', order, meanings)


def draw_places(order: Order, key: jax.Array, step: jax.Array, counts: Any) -> jax.Array:
    """Which block of every tensor is sent at one step. O(1) work and memory a tensor, and no sort.

    Args:
        order: see `random_block`.
        key: the shared typed key.
        step: uint32 [], steps so far.
        counts: int32 [L], R for each of L tensors, the number of its blocks: a round sends each once.

    Returns:
        uint32 [L], each below its count. Over keys every block is equally likely at every step.
    """
    leaves, counts = jnp.arange(len(counts), dtype=jnp.uint32), jnp.asarray(counts, jnp.uint32)
    if order == 'random':
        return _draw(key, [step, leaves], counts)
    position = step % counts
    if order == 'cyclic':
        offset = _draw(key, [leaves, 0], counts)
    else:
        keys = _fold(key, [leaves, step // counts])  # of the round
        swaps = np.arange(_SWAPS, dtype=np.uint32)[:, None]
        # One draw for the offset and all pivots, which differ in what is folded in.
        purpose, index = np.r_[[[0]], 0 * swaps + 1], np.r_[[[0]], swaps]
        offset, *pivots = _draw(keys, [purpose], counts, index)
        position = _permuted(jnp.stack(pivots), _words(_fold(keys, [2, swaps])), position, counts)
    # The random offset makes every block equally likely, whatever the permutation.
    return (position + offset) % counts


def _permuted(pivots: jax.Array, salts: jax.Array, position: jax.Array, size: jax.Array) -> jax.Array:
    """Entry `position` of a random permutation of 0 … size - 1, all uint32, without the other entries.

    Source: Hoang, Morris and Rogaway, "An Enciphering Scheme Based on a Card Shuffle", 2012 (swap-or-not).
    Each round, one of `pivots` and `salts` [rounds, ...], pairs every entry with its mirror image about a
    random pivot below the size and swaps the pair or not, by a bit that both ends of the pair compute alike;
    so any size is permuted, whatever the bits are.
    """

    def swap(position, drawn):
        pivot, salt = drawn
        mirrored = (pivot + size - position) % size
        swapped = _mixed(jnp.maximum(position, mirrored) ^ salt) & 1
        return jnp.where(swapped, mirrored, position), None

    return lax.scan(swap, position, (pivots, salts))[0]


def _mixed(bits: jax.Array) -> jax.Array:
    """MurmurHash3's finaliser: each bit of the uint32 depends on all of them."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        bits = (bits ^ (bits >> shift)) * jnp.uint32(factor)
    return bits ^ (bits >> 16)


def _draw(key: jax.Array, path: Sequence[Any], counts: jax.Array, index: Any = 0) -> jax.Array:
    """An integer below each count, uint32 like counts and path: element `index` of `jax.random.randint`.

    That draws from a key into which everything in `path` was folded. It splits the key in two and makes its
    bits by folding in the index, too, so that a single loop computes all, and XLA compiles one threefry.
    """
    half = np.arange(2, dtype=np.uint32).reshape(2, *[1] * max(map(np.ndim, [*path, counts, index])))
    high, low = _words(_fold(key, [*path, half, index], counts.shape))
    counts = jnp.broadcast_to(counts, low.shape)  # users may have forbidden to promote ranks
    wrapped = jnp.uint32(2**16) % counts
    wrapped = wrapped * wrapped % counts
    return (high % counts * wrapped + low % counts) % counts


def _fold(key: jax.Array, path: Sequence[Any], shape: Sequence[int] = ()) -> jax.Array:
    """Typed keys: all of `path`, uint32, folded into the key one after the other, broadcast."""
    shape = jnp.broadcast_shapes(key.shape, shape, *map(jnp.shape, path))
    rows = jnp.stack([jnp.broadcast_to(jnp.asarray(data, jnp.uint32), shape).reshape(-1) for data in path])
    fold = jax.vmap(jax.random.fold_in)
    keys, _ = lax.scan(
        lambda keys, data: (fold(keys, data), None), jnp.broadcast_to(key, shape).reshape(-1), rows
    )
    return keys.reshape(shape)


def _words(keys: jax.Array) -> jax.Array:
    """The 32 random bits of a key, as threefry makes them of two words."""
    words = jax.random.key_data(keys)
    return words[..., 0] ^ words[..., 1]
