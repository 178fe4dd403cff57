"""How tensors are cut into tiles, one of which is drawn and sent, taken and put back in place."""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from def_jax.compressors import base, orders
from def_jax.compressors.base import Compressor, Part, Selection
from def_jax.ground import random
from def_jax.ground.barriers import in_memory, materialized, part_places, read_after
from def_jax.wires.layouts import Layout

_SHORT_RUN = 16  # float32 elements in a line of cache
_PER_HALVING = 0.02  # a run half as long is worth a ratio that is 2% off


class Block(NamedTuple):
    """Tiles of one shape that cover a tensor. All fields are Python integers, known when a step is traced.

    The last tile along an axis may be shorter. It is then taken from the end of the tensor, overlaps the tile
    before it, and does not own the overlap: what it does not own is zero in the message, and stays as it is
    in the tensor. So each coordinate belongs to exactly one tile.
    """

    tensor: tuple[int, ...]  # shape of the tensor
    shape: tuple[int, ...]  # shape of a tile

    @classmethod
    def of(cls, tensor: tuple[int, ...], size: int) -> 'Block':
        """Tiles of `size` elements, or nearly."""
        n = math.prod(tensor)
        if not size:
            return cls(tensor, tensor)
        return cls(tensor, _box(tensor, n // size) if n % size == 0 else _nearest(tensor, size))

    @property
    def grid(self) -> tuple[int, ...]:
        """Number of tiles along each axis."""
        return tuple(-(-axis // max(1, edge)) for axis, edge in zip(self.tensor, self.shape, strict=True))

    @property
    def num_tiles(self) -> int:
        """R, the number of tiles; 1 for an empty tensor."""
        return max(1, math.prod(self.grid))

    @property
    def size(self) -> int:
        """Number of elements of a tile."""
        return math.prod(self.shape)

    def take(self, x: jax.Array, first: Any) -> jax.Array:
        """The tile whose first own coordinates are `first`, uint32 [] each, as float32 [size]."""
        tile = lax.dynamic_slice(x, self._start(first), self.shape).astype(jnp.float32)
        return self._where_own(first, tile, jnp.float32(0)).reshape(-1)

    def replace(self, x: jax.Array, values: jax.Array, first: Any) -> jax.Array:
        """x with `values`, float32 [size], in place of the tile's own elements. XLA writes the tile only."""
        start, tile = self._start(first), values.reshape(self.shape).astype(x.dtype)
        if self._cut_short:
            x = read_after(values[0], x)
            # In memory, or XLA for GPUs may read the tile from a copy of x.
            tile = in_memory(self._where_own(first, tile, lax.dynamic_slice(x, start, self.shape)))
        return lax.dynamic_update_slice(x, tile, start)

    @property
    def _cut_short(self) -> list[int]:
        """The axes along which the last tile is shorter."""
        return [i for i, edge in enumerate(self.shape) if edge and self.tensor[i] % edge]

    def _start(self, first: Any) -> list[Any]:
        # Both kinds of slice move a start that is too near the end, so that the tile fits.
        return [np.uint32(0) if cuts == 1 else first[i] for i, cuts in enumerate(self.grid)]

    def _where_own(self, first: Any, own: jax.Array, other: jax.Array) -> jax.Array:
        for i in self._cut_short:
            overlap = first[i] - jnp.minimum(first[i], np.uint32(self.tensor[i] - self.shape[i]))
            own = jnp.where(lax.broadcasted_iota(jnp.uint32, self.shape, i) >= overlap, own, other)
        return own


def same_share(sizes: Sequence[int], ratio: float) -> list[int]:
    """The elements that each tensor, of so many, sends: 1 / ratio of them, at least one of any."""
    return [min(n, max(1, int(n // ratio))) for n in sizes]


def compressor_of(sizes: Callable[[Sequence[int]], list[int]], order: orders.Order) -> Compressor:
    """Sends one tile of every tensor, of so many elements as `sizes` says for those of the tensors."""

    @functools.lru_cache(maxsize=8)  # a step asks several times
    def cut(shapes) -> list[Block]:
        return list(map(Block.of, shapes, sizes(list(map(math.prod, shapes)))))

    def blocks_of(like) -> list[Block]:
        return cut(tuple(leaf.shape for leaf in jax.tree.leaves(like)))

    def parts(like) -> list[Part]:
        return [Part(block.size, block.num_tiles) for block in blocks_of(like)]

    def select(key, step, like, layout) -> Selection:
        blocks = blocks_of(like)
        places = _draw_places(order, key, step, blocks, layout)

        def take(tree):
            leaves = zip(blocks, jax.tree.leaves(tree), places, strict=True)
            message = layout.join([block.take(x, first) for block, x, (first, _) in leaves])
            if len(blocks) != 1:
                return message
            # Nothing to concatenate: XLA would take the block again wherever the message is used, after the
            # tensor has been overwritten, and save that by a copy. It cannot see through an unknown start.
            ((_, begin),) = places
            return lax.dynamic_slice(jnp.append(message, jnp.float32(0)), [begin], [layout.total])

        def replace(tree, message):
            leaves, treedef = jax.tree.flatten(tree)
            placed = []
            for block, x, (first, begin) in zip(blocks, leaves, places, strict=True):
                placed.append(block.replace(x, lax.dynamic_slice(message, [begin], [block.size]), first))
            return jax.tree.unflatten(treedef, placed)

        return Selection(take, replace)

    return Compressor(select, parts, orders.AGE_SHARES[order])


def _draw_places(
    order: orders.Order, key: jax.Array, step: jax.Array, blocks: Sequence[Block], layout: Layout
) -> list[tuple[list[jax.Array], jax.Array]]:
    """For every leaf the first coordinates of its tile, uint32 [] each, and its place in the message."""
    if not blocks:
        return []
    base.check_indexable((block.tensor, block.num_tiles) for block in blocks)
    rank = max(len(block.tensor) for block in blocks)

    def table(rows):  # [leaves, rank], padded with ones: one small kernel serves all leaves
        return np.array([list(row) + [1] * (rank - len(row)) for row in rows], np.uint32)

    grids, shapes = [block.grid for block in blocks], [block.shape for block in blocks]
    counts = jnp.array([block.num_tiles for block in blocks], jnp.uint32)
    leaves, words = jnp.arange(len(blocks), dtype=jnp.uint32), (key[0], key[1])
    if order == 'random':
        drawn = random.draw(words, [step, leaves], counts)
    else:
        drawn = orders.place_in_round(order, words, step, leaves, counts)
    below = table([np.cumprod((1, *grid[:0:-1]))[::-1] for grid in grids])
    # In memory, or XLA for GPUs would draw it again in the kernel of every tensor, and compile for minutes.
    first = materialized(drawn[:, None] // below % table(grids) * table(shapes))
    row = functools.partial(lax.dynamic_index_in_dim, first, keepdims=False, allow_negative_indices=False)
    return [(list(row(leaf)), begin) for leaf, begin in part_places(layout.begins, key)]


def _box(tensor: tuple[int, ...], count: int) -> tuple[int, ...]:
    """The shape of `count` boxes that tile a tensor whose size they divide, cut along its first axes."""
    shape = []
    for axis in tensor:
        cuts = math.gcd(axis, count)
        count //= cuts
        shape.append(axis // cuts)
    return tuple(shape)


@functools.cache
def _nearest(tensor: tuple[int, ...], size: int) -> tuple[int, ...]:
    """The tiles whose size and number are nearest to `size` and n / size.

    They are cut along at most two axes; those before may all be cut into single slices besides.
    """
    tensor = (1, *tensor)  # so that there are two axes
    run = min(_SHORT_RUN, tensor[-1])
    least, nearest = math.inf, tensor
    for (i, j), single in itertools.product(itertools.combinations(range(len(tensor)), 2), (False, True)):
        shape: list[Any] = list(tensor)
        shape[:i] = [1] * i if single else tensor[:i]
        shape[i], shape[j] = np.ix_(_edges(tensor[i]), _edges(tensor[j]))
        sizes = math.prod(shape)
        counts = math.prod(-(-axis // edge) for axis, edge in zip(tensor, shape, strict=True))
        distance = np.abs(np.log(sizes / size)) + np.abs(np.log(counts * (size / math.prod(tensor))))
        distance += _PER_HALVING * np.log2(run / np.minimum(run, shape[-1]))
        # Rounded, so that a tie is one on every worker's machine; the first of all is taken.
        distance = np.round(distance, 6)
        best = np.unravel_index(np.argmin(distance), distance.shape)
        if distance[best] < least:
            least = float(distance[best])
            nearest = tuple(int(np.broadcast_to(edge, distance.shape)[best]) for edge in shape)
    return nearest[1:]


def _edges(axis: int) -> np.ndarray:
    """The lengths of ⌈axis / q⌉ slices, for every q."""
    small = np.arange(1, math.isqrt(axis) + 1)
    return np.unique(np.concatenate([small, -(-axis // small)])).astype(np.float64)
