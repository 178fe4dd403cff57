"""Random elements of every tensor."""

import math

import jax
import jax.numpy as jnp

from def_jax.checks import check_indexable, check_ratio
from def_jax.compressors.allocations import block_sizes
from def_jax.compressors.base import Compressor, Selection, concatenate, sampled_energy, split, typed_key

__all__ = ['random_k']


def random_k(ratio: float) -> Compressor:
    """k = max(1, n // ratio) scattered elements of every tensor: one from each of k equal stretches.

    Linear like `random_block`, and each coordinate is sent with probability exactly k / n, but the
    elements lie apart: a gather and a scatter of k elements instead of a slice. Drawing one element from
    each stretch of the tensor, rotated by a shared random offset, costs O(k); drawing from all subsets of
    k elements would cost a sort of the tensor.

    Args:
        ratio: compression ratio, a number >= 1.

    Returns:
        The compressor.

    Raises:
        ValueError: if `ratio` is not a number >= 1.

    Source: Section 2 (random-K; Stich et al., 2018).

    >>> import jax, jax.numpy as jnp
    >>> chosen = random_k(2)(jax.random.PRNGKey(0), jnp.uint32(0), jnp.ones(6))
    >>> int(chosen.place(chosen.take(jnp.ones(6)), jnp.ones(6)).sum())
    3
    """
    check_ratio(ratio)

    def select(key, step, like) -> Selection:
        key = jax.random.fold_in(typed_key(key), step)
        sizes = [math.prod(leaf.shape) for leaf in jax.tree.leaves(like)]
        check_indexable(((size,), size) for size in sizes)  # elements are gathered by int32
        counts = block_sizes(sizes, ratio)
        drawn = enumerate(zip(sizes, counts, strict=True))
        indices = [_draw_spread(jax.random.fold_in(key, leaf), n, k) for leaf, (n, k) in drawn]

        waits = [n / max(1, k) for n, k in zip(sizes, counts, strict=True)]
        energy = sampled_energy(waits, lambda message: split(message, counts))

        def take(tree):
            leaves = [leaf.astype(jnp.float32).reshape(-1) for leaf in jax.tree.leaves(tree)]
            return concatenate([x[i] for x, i in zip(leaves, indices, strict=True)])

        def replace(tree, message):
            leaves, treedef = jax.tree.flatten(tree)
            placed = zip(leaves, split(message, counts), indices, strict=True)
            return jax.tree.unflatten(
                treedef,
                [x.reshape(-1).at[i].set(m.astype(x.dtype)).reshape(x.shape) for x, m, i in placed],
            )

        return Selection(take, replace, energy)

    return select


def _draw_spread(key: jax.Array, size: int, count: int) -> jax.Array:
    """`count` distinct indices below `size`: one from each of `count` stretches, rotated together."""
    if not count:
        return jnp.zeros(0, jnp.uint32)
    length, longer = divmod(size, count)  # the first `longer` stretches have one element more
    stretch = jnp.arange(count, dtype=jnp.uint32)
    begin = stretch * length + jnp.minimum(stretch, longer)
    within_key, offset_key = jax.random.split(key)
    within = jax.random.randint(within_key, (count,), 0, length + (stretch < longer), jnp.uint32)
    offset = jax.random.randint(offset_key, (), 0, size, jnp.uint32)
    return (begin + within + offset) % size
