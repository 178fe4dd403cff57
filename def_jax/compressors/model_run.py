"""One block of the whole model: a run of its elements, moved as its overlap with each leaf."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from def_jax.checks import check_indexable
from def_jax.compressors import orders
from def_jax.compressors.base import Selection, typed_key
from def_jax.compressors.blocks import Block, read_after
from def_jax.compressors.orders import Order
from def_jax.types import PyTree

__all__ = ['select_run']

_CHEAP = 1024  # elements: up to here, moving a whole leaf costs next to nothing


class _Window(NamedTuple):
    """Slices of a leaf along one axis, enough to hold its overlap with the run wherever that is.

    XLA reads and writes a window in place along an axis of the leaf, but not along the flattened leaf. The
    first axis keeps the leaf's order and needs no transposition; where its slices are longer than the run, so
    that the window would be, it is the first axis whose slices are not, or else the longest.
    """

    leaf: tuple[int, ...]  # shape of the leaf, which is not empty
    run: int  # elements of the run

    @property
    def axis(self) -> int:
        slices = math.prod(self.leaf) // np.array(self.leaf)
        short = np.flatnonzero(slices <= max(self.run, _CHEAP))
        return int(short[0]) if short.size else int(np.argmax(self.leaf))

    @property
    def slice_size(self) -> int:
        return math.prod(self.leaf) // self.leaf[self.axis]

    @property
    def num_slices(self) -> int:
        most = -(-self.run // self.slice_size) + 1  # the run may begin and end within a slice
        return min(self.leaf[self.axis], most)

    @property
    def size(self) -> int:
        return self.num_slices * self.slice_size

    def place(self, first: jax.Array) -> jax.Array:
        """The slice at which the window begins, for a run that begins at element `first` of the leaf."""
        spare = np.uint32(self.leaf[self.axis] - self.num_slices)
        return jnp.minimum(first // np.uint32(self.slice_size), spare)

    def take(self, x: jax.Array, place: jax.Array) -> jax.Array:
        """The window, slice after slice: [size]."""
        return jnp.moveaxis(self._slices(x, place), self.axis, 0).reshape(-1)

    def replace(self, x: jax.Array, place: jax.Array, values: jax.Array, own: Any) -> jax.Array:
        """x with `values` [size] in place of the window, as far as it belongs to the run.

        Args:
            x: the leaf.
            place: the slice at which the window begins.
            values: the window, slice after slice.
            own: which positions in the window belong to the run, a function of uint32 to bool.
        """
        others = [edge for axis, edge in enumerate(self.leaf) if axis != self.axis]

        def like_leaf(window):
            return jnp.moveaxis(window.reshape(self.num_slices, *others), 0, self.axis)

        x = read_after(values[0], x)
        positions = like_leaf(jnp.arange(self.size, dtype=jnp.uint32))
        window = jnp.where(own(positions), like_leaf(values).astype(x.dtype), self._slices(x, place))
        return lax.dynamic_update_slice_in_dim(x, window, place, self.axis)

    def _slices(self, x: jax.Array, place: jax.Array) -> jax.Array:
        return lax.dynamic_slice_in_dim(x, place, self.num_slices, self.axis)


def select_run(order: Order, block: Block, key: jax.Array, step: jax.Array, like: PyTree) -> Selection:
    """One of R runs that cover the model, as `block` covers all of its elements. The last may be shorter.

    The model's elements are in leaf order, and a leaf's in slices along its window's axis. Windows of all
    leaves are laid over each other in a line as long as the run with room at both ends for what falls outside
    of it. Nothing of the model's size is copied.
    """
    shapes = [leaf.shape or (1,) for leaf in jax.tree.leaves(like)]
    lengths = [math.prod(shape) for shape in shapes]
    (n,) = block.tensor
    check_indexable([(block.tensor, block.num_tiles)])
    run = block.size
    drawn = orders.draw_places(order, typed_key(key), step, np.array([block.num_tiles], np.int32))
    first = drawn[0] * np.uint32(run)
    # The last run is taken from the end, and owns a part of it.
    begin = jnp.minimum(first, np.uint32(n - run))
    windows = {i: _Window(shape, run) for i, shape in enumerate(shapes) if lengths[i]}
    room = max((window.size for window in windows.values()), default=0)
    # Unknown to XLA, which then compiles one kernel for all leaves of a shape.
    offsets = lax.optimization_barrier(
        [jnp.array([at, leaf], jnp.uint32) for leaf, at in enumerate(np.cumsum([0, *lengths[:-1]]))]
    )

    def starts(leaf):
        """Where the window begins: the slice of the leaf, the element of the model, and that of the line."""
        offset, window = offsets[leaf][0], windows[leaf]
        place = window.place(jnp.where(first > offset, first - offset, 0))
        in_model = offset + place * np.uint32(window.slice_size)
        in_line = jnp.where(in_model + room > begin, in_model + room - begin, 0)
        return place, in_model, in_line

    def take(tree):
        line, leaves = jnp.zeros(room + run + room, jnp.float32), jax.tree.leaves(tree)
        for leaf, window in windows.items():
            place, _, in_line = starts(leaf)
            values = window.take(leaves[leaf].reshape(window.leaf), place).astype(jnp.float32)
            line = lax.dynamic_update_slice(line, values, [in_line])
        return jnp.where(jnp.arange(run, dtype=jnp.uint32) >= first - begin, line[room : room + run], 0)

    def replace(tree, message):
        leaves, treedef = jax.tree.flatten(tree)
        line = jnp.pad(message, room)
        for leaf, window in windows.items():
            place, in_model, in_line = starts(leaf)
            values = lax.dynamic_slice(line, [in_line], [window.size])

            def own(positions, in_model=in_model):
                where = in_model + positions
                return (where >= first) & (where < begin + np.uint32(run))

            x = leaves[leaf]
            leaves[leaf] = window.replace(x.reshape(window.leaf), place, values, own).reshape(x.shape)
        return jax.tree.unflatten(treedef, leaves)

    return Selection(take, replace)
