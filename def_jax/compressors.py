"""Linear compressors: which coordinates of a pytree travel in one step.

A compressor C of the paper is, here, a function `select(key, step, like)` that returns a `Selection`:
`take` packs the coordinates that C keeps into one message, `replace` puts a message in their place. The
choice depends on the shared key, the step and the shapes, never on the values nor on the worker: hence
C(a) + C(b) = C(a + b) (Assumption 3.3), the messages of all workers line up, and one all-reduce of the
message averages C over the workers without sending an index.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from def_jax import block_orders
from def_jax.allocations import block_sizes, check_allocation
from def_jax.blocks import Block
from def_jax.checks import check_ratio, index_dtype, is_number

PyTree = Any

__all__ = [
    'Compressor',
    'Selection',
    'identity',
    'message_size',
    'random_block',
    'random_k',
    'scaled',
]


class Selection(NamedTuple):
    """The coordinates that one step sends: C(x) = place(take(x), x)."""

    take: Callable[[PyTree], jax.Array]  # tree -> message, float32 [B]
    # tree x, message -> x - C(x) + the message at its place
    replace: Callable[[PyTree, jax.Array], PyTree]
    # message -> float32 [], an estimate of ‖tree‖² if every coordinate were like those that were taken
    energy: Callable[[jax.Array], jax.Array]
    age_shares: tuple[float, float] = block_orders.AGE_SHARES['random']

    def place(self, message: jax.Array, like: PyTree) -> PyTree:
        """The message at its place in zeros of `like`'s shapes and dtypes."""
        return self.replace(jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like), message)

    def add(self, tree: PyTree, message: jax.Array) -> PyTree:
        """The tree plus the message at its place."""
        return self.replace(tree, self.take(tree) + message)


Compressor = Callable[[jax.Array, jax.Array, PyTree], Selection]  # shared key, step, like


# The generator is named and not JAX's default: under vmap the 'rbg' generators draw other numbers for each
# entry of the batch, so that workers with equal keys would choose different blocks.
_GENERATOR = 'threefry2x32'


def shared_key(seed: int | jax.Array) -> jax.Array:
    """The key, uint32 [2], that every worker makes from the same seed."""
    return jax.random.key_data(jax.random.key(seed, impl=_GENERATOR))


def message_size(compressor: Compressor, params: PyTree) -> int:
    """Number of elements B that one step sends for `params`; nothing is computed.

    Args:
        compressor: any compressor of this module.
        params: a pytree of arrays or of `jax.ShapeDtypeStruct`.

    Returns:
        B, the size of the message of one worker.

    >>> import jax.numpy as jnp
    >>> message_size(random_block(64), {'w': jnp.ones((512, 10)), 'b': jnp.ones(10)})
    81
    """

    def message(tree):
        return compressor(shared_key(0), jnp.uint32(0), tree).take(tree)

    return jax.eval_shape(message, params).size


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
    block_orders.check_order(order)
    check_allocation(allocation, granularity)

    def select_blocks(key, step, like) -> Selection:
        shapes = [leaf.shape for leaf in jax.tree.leaves(like)]
        all_sizes = [math.prod(shape) for shape in shapes]
        sizes = block_sizes(all_sizes, ratio, allocation)
        blocks = [Block.of(shape, size) for shape, size in zip(shapes, sizes, strict=True)]
        starts = _draw_starts(order, key, step, blocks)
        energy = _sampled_energy(all_sizes, sizes)

        def take(tree):
            leaves = [leaf.astype(jnp.float32) for leaf in jax.tree.leaves(tree)]
            return _concatenate([b.take(x, s) for b, x, s in zip(blocks, leaves, starts, strict=True)])

        def replace(tree, message):
            leaves, treedef = jax.tree.flatten(tree)
            placed = zip(blocks, leaves, split(message, sizes), starts, strict=True)
            return jax.tree.unflatten(treedef, [b.replace(x, m.astype(x.dtype), s) for b, x, m, s in placed])

        return Selection(take, replace, energy, block_orders.AGE_SHARES[order])

    return select_blocks if granularity == 'tensor' else _on_flattened(select_blocks)


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
        key = jax.random.fold_in(_typed(key), step)
        sizes = [math.prod(leaf.shape) for leaf in jax.tree.leaves(like)]
        index_dtype(((size,), size) for size in sizes)  # elements are gathered by int32
        counts = block_sizes(sizes, ratio)
        drawn = enumerate(zip(sizes, counts, strict=True))
        indices = [_draw_spread(jax.random.fold_in(key, leaf), n, k) for leaf, (n, k) in drawn]

        def take(tree):
            leaves = [leaf.astype(jnp.float32).reshape(-1) for leaf in jax.tree.leaves(tree)]
            return _concatenate([x[i] for x, i in zip(leaves, indices, strict=True)])

        def replace(tree, message):
            leaves, treedef = jax.tree.flatten(tree)
            placed = zip(leaves, split(message, counts), indices, strict=True)
            return jax.tree.unflatten(
                treedef,
                [x.reshape(-1).at[i].set(m.astype(x.dtype)).reshape(x.shape) for x, m, i in placed],
            )

        return Selection(take, replace, _sampled_energy(sizes, counts))

    return select


def scaled(delta: float) -> Compressor:
    """C(x) = δ·x: sends everything, shrunk. With one worker and λ = 1, x is SGD with iterate averaging.

    Args:
        delta: δ, in (0, 1].

    Returns:
        The compressor; its message holds every element, so it saves no traffic.

    Raises:
        ValueError: if `delta` is not in (0, 1].

    Source: Lemma C.1 and Eq. 96.

    >>> import jax, jax.numpy as jnp
    >>> kept = scaled(0.25)(jax.random.PRNGKey(0), jnp.uint32(0), jnp.ones(2))
    >>> kept.place(kept.take(jnp.ones(2)), jnp.ones(2)).tolist()
    [0.25, 0.25]
    """
    if not is_number(delta) or not 0 < delta <= 1:
        raise ValueError(
            f'{delta=} must be a number in (0, 1], the share of the update that is applied each step.'
        )

    def select(key, step, like) -> Selection:
        del key, step, like

        def take(tree):
            return _concatenate(
                [delta * leaf.astype(jnp.float32).reshape(-1) for leaf in jax.tree.leaves(tree)]
            )

        def replace(tree, message):
            leaves, treedef = jax.tree.flatten(tree)
            parts = split(message, [x.size for x in leaves])
            changes = [m.reshape(x.shape) - delta * x for x, m in zip(leaves, parts, strict=True)]
            placed = [(x + change).astype(x.dtype) for x, change in zip(leaves, changes, strict=True)]
            return jax.tree.unflatten(treedef, placed)

        return Selection(take, replace, lambda message: jnp.vdot(message, message) / delta**2)

    return select


def identity() -> Compressor:
    """C(x) = x: everything is sent, the residual stays zero.

    Returns:
        The compressor of uncompressed SGD.

    >>> import jax.numpy as jnp
    >>> message_size(identity(), jnp.ones((3, 4)))
    12
    """
    return scaled(1.0)


def _typed(key: jax.Array) -> jax.Array:
    return jax.random.wrap_key_data(key, impl=_GENERATOR)


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
    places = block_orders.draw_places(order, _typed(key), step, num_starts, num_blocks, spacing)
    starts = places.astype(integer)[:, None] // below % grid * table([block.stride for block in blocks])
    return [[starts[i, axis] for axis in range(len(block.grid))] for i, block in enumerate(blocks)]


def _on_flattened(compressor: Compressor) -> Compressor:
    """The compressor applied to the whole tree as one vector."""

    def select(key, step, like) -> Selection:
        size = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(like))
        chosen = compressor(key, step, jax.ShapeDtypeStruct((size,), jnp.float32))

        def take(tree):
            return chosen.take(
                _concatenate([leaf.astype(jnp.float32).reshape(-1) for leaf in jax.tree.leaves(tree)])
            )

        def replace(tree, message):
            leaves, treedef = jax.tree.flatten(tree)
            flat = chosen.replace(
                _concatenate([leaf.astype(jnp.float32).reshape(-1) for leaf in leaves]), message
            )
            parts = split(flat, [x.size for x in leaves])
            placed = [v.reshape(x.shape).astype(x.dtype) for v, x in zip(parts, leaves, strict=True)]
            return jax.tree.unflatten(treedef, placed)

        return Selection(take, replace, chosen.energy, chosen.age_shares)

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


def _sampled_energy(sizes: Sequence[int], kept: Sequence[int]) -> Callable[[jax.Array], jax.Array]:
    weights = [n / max(1, k) for n, k in zip(sizes, kept, strict=True)]

    def energy(message):
        parts = zip(weights, split(message, kept), strict=True)
        return sum((weight * jnp.vdot(part, part) for weight, part in parts), jnp.float32(0))

    return energy


def _concatenate(parts: Sequence[jax.Array]) -> jax.Array:
    return jnp.concatenate([jnp.zeros(0, jnp.float32), *parts])


def split(message: jax.Array, sizes: Sequence[int]) -> list[jax.Array]:
    ends = np.cumsum(sizes, dtype=np.int64)
    return [
        lax.slice_in_dim(message, int(end) - size, int(end)) for size, end in zip(sizes, ends, strict=True)
    ]
