"""Random block-wise gradient sparsification: one block of every tensor, or of the whole model."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from def_jax.checks import check_ratio, index_dtype
from def_jax.compressors import orders
from def_jax.compressors.allocations import block_sizes, check_allocation
from def_jax.compressors.base import Compressor, Selection, concatenate, sampled_energy, split, typed_key
from def_jax.compressors.blocks import Block

PyTree = Any

__all__ = ['random_block']


def random_block(
    ratio: float,
    *,
    granularity: str = 'tensor',
    order: str = 'random',
    allocation: str = 'proportional',
) -> Compressor:
    """Random block-wise gradient sparsification (RBGS): one block a tensor, at a shared random place.

    Every tensor of n elements sends one block of b = max(1, n // ratio) elements, and each coordinate is
    sent with probability exactly b / n, so that E[C(x)] = δ·x with δ = b / n. Where b divides n, which
    holds for power-of-two ratios on almost every layer, the tensor is cut into n / b equal boxes along
    its own axes and one box is drawn: a box is a single `dynamic_slice` of the tensor as it lies in
    memory, and XLA updates it in place. Where it does not, the block is a run of b elements of the
    flattened tensor that starts anywhere and wraps around its end.

    Args:
        ratio: compression ratio, a number >= 1; 1 sends everything.
        granularity: 'tensor' for a block of every leaf, or 'model' for one block of the whole model,
            flattened in leaf order (the paper's text; it copies the model to flatten it).
        order: 'random' draws every block independently, as the paper does; a coordinate waits n / b steps
            on average and may wait far longer. 'shuffled' sends every block once a round of R = ⌈n / b⌉
            steps, each round in a random order of its own: no coordinate waits longer than 2·R - 1 steps.
            'cyclic' repeats one round: each waits R steps at most. The order is computed from the key and the
            step, so that nothing is stored and a resumed run goes on in the same round.
        allocation: 'proportional' gives every tensor the block of n // ratio elements that is described
            above; 'balanced' gives small tensors a larger share and large ones a smaller, in a message that
            is no longer: b divides n, and n / b is about proportional to √n, see `allocations`.

    Returns:
        The compressor.

    Raises:
        ValueError: if `ratio` is not a number >= 1, or `granularity`, `order` or `allocation` is unknown.

    Source: Section 2, Eq. 3; Vogels et al. (2019) and Xie et al. (2020) for the block of every tensor.

    >>> import jax, jax.numpy as jnp
    >>> x = jnp.arange(1.0, 9.0)
    >>> block = random_block(4)(jax.random.PRNGKey(0), jnp.uint32(0), x)
    >>> block.take(x).shape
    (2,)
    >>> int(jnp.sum(block.place(block.take(x), x) != 0))
    2
    """
    check_ratio(ratio)
    if granularity not in ('tensor', 'model'):
        raise ValueError(f"{granularity=} must be 'tensor' (a block of every leaf) or 'model' (one of all).")
    orders.check_order(order)
    check_allocation(allocation, granularity)

    def select_blocks(key, step, like) -> Selection:
        shapes = [leaf.shape for leaf in jax.tree.leaves(like)]
        all_sizes = [math.prod(shape) for shape in shapes]
        sizes = block_sizes(all_sizes, ratio, allocation)
        blocks = [Block.of(shape, size) for shape, size in zip(shapes, sizes, strict=True)]
        starts = _draw_starts(order, key, step, blocks)
        energy = sampled_energy(all_sizes, sizes)

        def take(tree):
            leaves = [leaf.astype(jnp.float32) for leaf in jax.tree.leaves(tree)]
            return concatenate([b.take(x, s) for b, x, s in zip(blocks, leaves, starts, strict=True)])

        def replace(tree, message):
            leaves, treedef = jax.tree.flatten(tree)
            placed = zip(blocks, leaves, split(message, sizes), starts, strict=True)
            return jax.tree.unflatten(treedef, [b.replace(x, m.astype(x.dtype), s) for b, x, m, s in placed])

        return Selection(take, replace, energy, orders.AGE_SHARES[order])

    return select_blocks if granularity == 'tensor' else _on_flattened(select_blocks)


def _draw_starts(
    order: str, key: jax.Array, step: jax.Array, blocks: Sequence[Block]
) -> list[list[jax.Array]]:
    """The start of every block at one step, from the shared key and the leaf's index."""
    if not blocks:
        return []
    rank = max(1, max(len(block.grid) for block in blocks))

    integer = index_dtype((block.view, block.circle[0]) for block in blocks)

    def table(rows):  # [leaves, rank], padded with ones: one small kernel serves all leaves
        return np.array([list(row) + [1] * (rank - len(row)) for row in rows], integer)

    grid = table([block.grid for block in blocks])
    below = table([np.cumprod((1, *block.grid[:0:-1]))[::-1] for block in blocks])
    num_starts, num_blocks, spacing = np.array([block.circle for block in blocks], np.int32).T
    places = orders.draw_places(order, typed_key(key), step, num_starts, num_blocks, spacing)
    starts = places.astype(integer)[:, None] // below % grid * table([block.stride for block in blocks])
    return [[starts[i, axis] for axis in range(len(block.grid))] for i, block in enumerate(blocks)]


def _on_flattened(compressor: Compressor) -> Compressor:
    """The compressor applied to the whole tree as one vector."""

    def select(key, step, like) -> Selection:
        size = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(like))
        chosen = compressor(key, step, jax.ShapeDtypeStruct((size,), jnp.float32))

        def take(tree):
            return chosen.take(
                concatenate([leaf.astype(jnp.float32).reshape(-1) for leaf in jax.tree.leaves(tree)])
            )

        def replace(tree, message):
            leaves, treedef = jax.tree.flatten(tree)
            flat = chosen.replace(
                concatenate([leaf.astype(jnp.float32).reshape(-1) for leaf in leaves]), message
            )
            parts = split(flat, [x.size for x in leaves])
            placed = [v.reshape(x.shape).astype(x.dtype) for v, x in zip(parts, leaves, strict=True)]
            return jax.tree.unflatten(treedef, placed)

        return Selection(take, replace, chosen.energy, chosen.age_shares)

    return select
