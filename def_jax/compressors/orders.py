"""Which block of a tensor is sent when: drawn anew every step, or every block once a round.

A tensor has R blocks, and each of its coordinates lies in one of them. With independent draws a coordinate
waits R steps on average and sometimes many times that: the wait is geometric. In rounds it waits at most
2·R − 1 steps when each round has a permutation of its own ('shuffled'), and exactly R when all have the
same ('cyclic').
"""

from typing import Any

import jax
import jax.numpy as jnp

__all__ = ['AGE_SHARES', 'ORDERS', 'check_order', 'draw_places']

ORDERS = ('random', 'shuffled', 'cyclic')
# Means over the residual of age² and of age, as shares of those of the block that is sent. A coordinate that
# waits w steps between two sendings has every age up to w once, so they are E[w³]/3 to E[w²]·E[w] and E[w²]/2
# to E[w]²; w is geometric, R plus the difference of two uniform places in a round, or R.
AGE_SHARES = {'random': (1.0, 1.0), 'shuffled': (3 / 7, 7 / 12), 'cyclic': (1 / 3, 1 / 2)}
_SWAPS = 16  # rounds of the swap-or-not shuffle; each halves what is left of an entry's first place


def check_order(order: str) -> None:
    """Raises ValueError unless blocks can be sent in that order."""
    if order not in ORDERS:
        raise ValueError(
            f"{order=} must be 'random' (independent draws), 'shuffled' (every block once a round, in a new "
            "order each) or 'cyclic' (in the same order)."
        )


def draw_places(order: str, key: jax.Array, step: jax.Array, counts: Any) -> jax.Array:
    """Which block of every tensor is sent at one step. O(1) work and memory a tensor, and no sort.

    Args:
        order: one of `ORDERS`.
        key: the shared typed key.
        step: uint32 [], steps so far.
        counts: int32 [L], R for each of L tensors, the number of its blocks: a round sends each once.

    Returns:
        uint32 [L], each below its count. Over keys every block is equally likely at every step.
    """
    leaves = jnp.arange(len(counts))
    if order == 'random':
        step_key = jax.random.fold_in(key, step)
        return jax.vmap(
            lambda leaf, count: jax.random.randint(jax.random.fold_in(step_key, leaf), (), 0, count)
        )(leaves, counts).astype(jnp.uint32)

    def place(leaf, count):
        leaf_key, position = jax.random.fold_in(key, leaf), step % count
        if order == 'shuffled':
            leaf_key = jax.random.fold_in(leaf_key, step // count)
            position = _permuted(leaf_key, position, count)
        # The random offset makes every block equally likely, whatever the permutation.
        offset = jax.random.randint(jax.random.fold_in(leaf_key, 0), (), 0, count).astype(jnp.uint32)
        return (position + offset) % count

    return jax.vmap(place)(leaves, jnp.asarray(counts, jnp.uint32))


def _permuted(key: jax.Array, position: jax.Array, size: jax.Array) -> jax.Array:
    """Entry `position` of a random permutation of 0 … size - 1, all uint32, without the other entries.

    Source: Hoang, Morris and Rogaway, "An Enciphering Scheme Based on a Card Shuffle", 2012 (swap-or-not).
    Each round pairs every entry with its mirror image about a random pivot and swaps the pair or not, by a
    bit that both ends of the pair compute alike; so any size is permuted, whatever the bits are.
    """
    pivot_key, salt_key = jax.random.fold_in(key, 1), jax.random.fold_in(key, 2)
    pivots = jax.random.randint(pivot_key, (_SWAPS,), 0, size).astype(jnp.uint32)
    salts = jax.random.bits(salt_key, (_SWAPS,), jnp.uint32)
    for pivot, salt in zip(pivots, salts, strict=True):
        mirrored = (pivot + size - position) % size
        swapped = _mixed(jnp.maximum(position, mirrored) ^ salt) & 1
        position = jnp.where(swapped, mirrored, position)
    return position


def _mixed(bits: jax.Array) -> jax.Array:
    """MurmurHash3's finaliser: each bit of the uint32 depends on all of them."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        bits = (bits ^ (bits >> shift)) * jnp.uint32(factor)
    return bits ^ (bits >> 16)
