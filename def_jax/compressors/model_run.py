"""One block of the whole model: a run of its flattened elements, moved as its overlap with each leaf."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from def_jax.checks import check_indexable
from def_jax.compressors import orders
from def_jax.compressors.base import Selection, sampled_energy, typed_key
from def_jax.compressors.blocks import Block

PyTree = Any

__all__ = ['select_run']


def select_run(order: str, size: int, key: jax.Array, step: jax.Array, like: PyTree) -> Selection:
    """One of R runs of `size` elements or so that cover the model in leaf order. The last may be shorter.

    A leaf of m elements lends a window of min(m, size) elements that holds its overlap with the run, wherever
    that is. Windows are laid over each other in a line as long as the run with room at both ends for what
    falls outside of it. Nothing of the model's size is copied.
    """
    lengths = [math.prod(leaf.shape) for leaf in jax.tree.leaves(like)]
    n = sum(lengths)
    block = Block.of((n,), size)
    check_indexable([(block.tensor, block.num_tiles)])
    run = block.size
    first = orders.draw_places(order, typed_key(key), step, np.array([block.num_tiles], np.int32))[
        0
    ] * np.uint32(run)
    begin = jnp.minimum(
        first, np.uint32(n - run)
    )  # the last run is taken from the end, and owns a part of it
    room = min(run, max(lengths, default=0))
    windows = [min(m, run) for m in lengths]
    # Unknown to XLA, which then compiles one kernel for all leaves of a shape.
    offsets = lax.optimization_barrier(
        [jnp.array([at, leaf], jnp.uint32) for leaf, at in enumerate(np.cumsum([0, *lengths[:-1]]))]
    )

    def starts(leaf):
        """Where the window begins in the leaf, in the model, and in the line."""
        offset, spare = offsets[leaf][0], np.uint32(lengths[leaf] - windows[leaf])
        in_leaf = jnp.where(first > offset, jnp.minimum(first - offset, spare), 0)
        in_model = offset + in_leaf
        in_line = jnp.where(in_model + room > begin, in_model + room - begin, 0)
        return in_leaf, in_model, in_line

    def take(tree):
        line = jnp.zeros(room + run + room, jnp.float32)
        for leaf, x in enumerate(jax.tree.leaves(tree)):
            in_leaf, _, in_line = starts(leaf)
            window = lax.dynamic_slice(x.reshape(-1), [in_leaf], [windows[leaf]])
            line = lax.dynamic_update_slice(line, window.astype(jnp.float32), [in_line])
        return jnp.where(jnp.arange(run, dtype=jnp.uint32) >= first - begin, line[room : room + run], 0)

    def replace(tree, message):
        leaves, treedef = jax.tree.flatten(tree)
        line = jnp.pad(message, room)

        def placed(leaf, x):
            in_leaf, in_model, in_line = starts(leaf)
            values = lax.dynamic_slice(line, [in_line], [windows[leaf]]).astype(x.dtype)
            where = in_model + jnp.arange(windows[leaf], dtype=jnp.uint32)
            own = (where >= first) & (where < begin + np.uint32(run))
            flat = x.reshape(-1)
            values = jnp.where(own, values, lax.dynamic_slice(flat, [in_leaf], [windows[leaf]]))
            return lax.dynamic_update_slice(flat, values, [in_leaf]).reshape(x.shape)

        return jax.tree.unflatten(treedef, [placed(leaf, x) for leaf, x in enumerate(leaves)])

    energy = sampled_energy([block.num_tiles], lambda message: [message])
    return Selection(take, replace, energy, orders.AGE_SHARES[order])
