"""Random elements of every tensor."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from def_jax.compressors.base import Compressor, Part, Selection, check_indexable
from def_jax.compressors.blocks import Block, same_share
from def_jax.ground.arguments import check_ratio
from def_jax.ground.random import typed_key
from def_jax.wires.layouts import Layout

__all__ = ['random_k']


def random_k(ratio: float) -> Compressor:
    """Scattered elements of every tensor: one, at a random place, from each of k = n // ratio or so cells.

    A tensor is seen as a matrix, its last axis the columns, and cut into cells of R ≈ ratio elements, of R
    consecutive rows of one column where there are as many. Each coordinate is sent with probability exactly
    1 / R, as by `random_block`, but the elements lie apart and are drawn independently. Taking them is a
    gather of k elements; putting them back is a comparison and a selection in the pass that updates the
    tensor, in place. A scatter, one element after the other, would take longer. Where cells do not divide the
    tensor, those at its end are shorter: if the place that is drawn lies outside, the cell sends a zero.

    Args:
        ratio: compression ratio, a number >= 1. R is an integer, so ratios below 3 are coarse.

    Raises:
        ValueError: if `ratio` is not a number >= 1.

    Source: Section 2 (random-K; Stich et al., 2018).

    >>> import jax, jax.numpy as jnp
    >>> chosen = random_k(2)(jax.random.PRNGKey(0), jnp.uint32(0), jnp.ones(6))
    >>> int(chosen.place(chosen.take(jnp.ones(6)), jnp.ones(6)).sum())
    3
    """
    ratio = check_ratio(ratio)

    def cells_of(like) -> list[_Cells]:
        shapes = [leaf.shape for leaf in jax.tree.leaves(like)]
        counts = same_share([math.prod(shape) for shape in shapes], ratio)
        return [_Cells.of(*leaf) for leaf in zip(shapes, counts, strict=True)]

    def parts(like) -> list[Part]:
        return [Part(cell.num_cells, cell.size) for cell in cells_of(like)]

    def select(key, step, like, layout) -> Selection:
        sizes = [leaf.size for leaf in jax.tree.leaves(like)]
        check_indexable(((size,), size) for size in sizes)  # elements are gathered by int32
        cells = cells_of(like)
        drawn = _draw_places(jax.random.fold_in(typed_key(key), step), cells)
        counts = [cell.num_cells for cell in cells]

        def take(tree):
            leaves = zip(cells, jax.tree.leaves(tree), drawn, strict=True)
            return layout.join([cell.take(x, place) for cell, x, place in leaves])

        def replace(tree, message):
            leaves, treedef = jax.tree.flatten(tree)
            placed = zip(cells, leaves, layout.split(message, counts), drawn, strict=True)
            return jax.tree.unflatten(treedef, [cell.replace(x, m, place) for cell, x, m, place in placed])

        return Selection(take, replace)

    return Compressor(select, parts)


class _Cells(Block):
    """Tiles of a tensor, seen as a matrix, each of which sends one element: its place is an index below R."""

    @classmethod
    def of(cls, shape: tuple[int, ...], count: int) -> '_Cells':
        """About `count` cells; none if it is 0."""
        n = math.prod(shape)
        columns = shape[-1] if len(shape) > 1 else 1
        rows = n // max(1, columns)
        # A block is cut along its first axis first: here, into columns.
        width, height = Block.of((columns, rows), round(n / count) if count else 0).shape
        return cls((rows, columns), (height, width))

    @property
    def num_cells(self) -> int:
        """How many elements are sent; none of an empty tensor."""
        return math.prod(self.grid)

    def take(self, x: jax.Array, places: jax.Array) -> jax.Array:
        """The element at its place in each cell, float32 [num_cells]; zero where outside of the tensor."""
        inside, at = jnp.ones(self.grid, bool), []
        within = divmod(places.reshape(self.grid), np.uint32(max(1, self.shape[1])))
        for axis, edge in enumerate(self.tensor):
            begin = np.arange(self.grid[axis], dtype=np.uint32) * np.uint32(self.shape[axis])
            index = jnp.expand_dims(begin, 1 - axis) + within[axis]
            inside = inside & (index < edge)
            at.append(jnp.minimum(index, np.uint32(max(1, edge) - 1)))
        taken = x.reshape(self.tensor).at[at[0], at[1]].get(mode='promise_in_bounds')
        return jnp.where(inside, taken.astype(jnp.float32), 0).reshape(-1)

    def replace(self, x: jax.Array, values: jax.Array, places: jax.Array) -> jax.Array:
        """x with `values`, float32 [num_cells], at the places of the cells."""
        height, width = self.shape
        position = jnp.arange(self.size, dtype=jnp.uint32).reshape(1, height, 1, width)
        chosen = self._spread(position, x) == self._spread(self._by_cell(places), x)
        return jnp.where(chosen, self._spread(self._by_cell(values).astype(x.dtype), x), x)

    def _by_cell(self, line: jax.Array) -> jax.Array:
        return line.reshape(self.grid[0], 1, self.grid[1], 1)

    def _spread(self, x: jax.Array, like: jax.Array) -> jax.Array:
        """x [rows of cells or 1, height or 1, columns of cells or 1, width or 1], broadcast to the tensor."""
        (down, across), (height, width), (rows, columns) = self.grid, self.shape, self.tensor
        spread = jnp.broadcast_to(x, (down, height, across, width)).reshape(down * height, across * width)
        return spread[:rows, :columns].reshape(like.shape)


def _draw_places(key: jax.Array, cells: Sequence[_Cells]) -> list[jax.Array]:
    """A place in each cell of every tensor, uint32 [num_cells]: one draw for all, which is one kernel."""
    counts = [cell.num_cells for cell in cells]
    sizes = [jnp.full(cell.num_cells, cell.size, jnp.uint32) for cell in cells]
    bounds = jnp.concatenate([jnp.zeros(0, jnp.uint32), *sizes])
    drawn = jax.random.randint(key, bounds.shape, 0, bounds, jnp.uint32)
    return Layout.dense(counts).split(drawn, counts)
