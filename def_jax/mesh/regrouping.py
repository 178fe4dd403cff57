"""The state of a run with another number of workers."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from def_jax.mesh.ownership import each
from def_jax.types import PyTree

__all__ = ['num_stacked', 'regroup']


def regroup(tree: PyTree, own: PyTree, before: tuple[int, ...], after: tuple[int, ...]) -> PyTree:
    """Gives every worker the mean of what the old workers had.

    So x stays where it is, and y up to the rounding of a float32 mean. The differences from the mean are
    lost; they add up to zero. If the number of workers is the same, all values are, bit for bit.

    Args:
        tree: arrays of JAX or of NumPy.
        own: booleans like `tree`, or a prefix of it: which arrays are per-worker.
        before: their leading axes, [K] or e.g. [devices, virtual workers].
        after: those that they shall have.

    >>> regroup({'step': np.uint32(3), 'm': np.array([[1.0], [3.0]])}, {'step': False, 'm': True}, (2,), (3,))
    {'m': array([[2.],
           [2.],
           [2.]]), 'step': np.uint32(3)}
    """
    same = math.prod(before) == math.prod(after)

    def leaf(mine, x):
        if not mine:
            return x
        shape = (*after, *x.shape[len(before) :])
        if same:
            return x.reshape(shape)
        library, wide = (jnp, np.float32) if isinstance(x, jax.Array) else (np, np.float64)
        mean = x.mean(tuple(range(len(before))), dtype=wide).astype(x.dtype)
        return library.broadcast_to(mean, shape)

    return each(leaf, own, tree)


def num_stacked(tree: PyTree, own: PyTree, otherwise: int) -> int:
    """The number of workers over which a tree is stacked, by its first per-worker array, if it has one."""
    arrays = zip(jax.tree.leaves(tree), jax.tree.leaves(own), strict=False)
    return next((np.shape(x)[0] for x, mine in arrays if mine and np.ndim(x)), otherwise)
