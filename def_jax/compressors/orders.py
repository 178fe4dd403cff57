"""Which of a tensor's R blocks is sent when: redrawn at every step, or each once a round of R steps."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from def_jax.ground import random

Order = Literal['random', 'shuffled', 'cyclic']
# Means over the residual of age² and of age, as shares of those of the block that is sent. A coordinate that
# waits w steps between two sendings has every age up to w once: at large R E[w³]/3 to E[w²]·E[w] and E[w²]/2
# to E[w]²; w is geometric, R plus the difference of two uniform places in a round, or R.
AGE_SHARES = {'random': (1.0, 1.0), 'shuffled': (3 / 7, 7 / 12), 'cyclic': (1 / 3, 1 / 2)}
_SWAPS = 16  # rounds of the swap-or-not shuffle; each halves what is left of an entry's first place


def place_in_round(order: Order, key: random.Key, step: jax.Array, leaves: Any, counts: Any) -> jax.Array:
    """Which block of every tensor a step of a round sends, in O(1) work and memory a tensor, without a sort.

    `leaves` are the tensors' indices, `counts` the numbers R of their blocks, and the result is below these,
    all uint32 [L]. Over keys every block is equally likely at every step.
    """
    position = step % counts
    if order == 'cyclic':
        offset = random.draw(key, [leaves, 0], counts)
    else:
        keys = random.fold(key, [leaves, step // counts])  # of the round
        swaps = np.arange(_SWAPS, dtype=np.uint32)[:, None]
        # One draw for the offset and all pivots, which differ in what is folded in.
        purpose, index = np.r_[[[0]], 0 * swaps + 1], np.r_[[[0]], swaps]
        offset, *pivots = random.draw(keys, [purpose], counts, index)
        position = _permuted(jnp.stack(pivots), random.words(random.fold(keys, [2, swaps])), position, counts)
    # The random offset makes every block equally likely, whatever the permutation.
    return (position + offset) % counts


def _permuted(pivots: jax.Array, salts: jax.Array, position: jax.Array, size: jax.Array) -> jax.Array:
    """Entry `position` of a random permutation of 0 … size - 1, all uint32, without the other entries.

    Source: Hoang, Morris and Rogaway, "An Enciphering Scheme Based on a Card Shuffle", 2012 (swap-or-not).
    Each round, one of `pivots` and `salts` [rounds, ...], pairs every entry with its mirror image about a
    random pivot below the size and swaps the pair or not, by a bit that both ends of the pair compute alike;
    so any size is permuted, whatever the bits are.
    """
    return lax.scan(_swapped, (position, size), (pivots, salts), unroll=len(pivots))[0][0]


def _swapped(entry: tuple[jax.Array, jax.Array], drawn: tuple[jax.Array, jax.Array]) -> tuple[Any, None]:
    """A round; no closure over the size, since JAX keeps what it traced of a function that it knows."""
    (position, size), (pivot, salt) = entry, drawn
    mirrored = (pivot + size - position) % size
    swapped = _mixed(jnp.maximum(position, mirrored) ^ salt) & 1
    return (jnp.where(swapped, mirrored, position), size), None


def _mixed(bits: jax.Array) -> jax.Array:
    """MurmurHash3's finaliser: each bit of the uint32 depends on all of them."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        bits = (bits ^ (bits >> shift)) * jnp.uint32(factor)
    return bits ^ (bits >> 16)
