"""What keeps XLA for GPUs from computing a tensor again in every kernel that reads it."""

from collections.abc import Sequence

import jax
from jax import lax

from def_jax.types import PyTree

__all__ = ['in_memory']


def in_memory(tree: PyTree, platforms: Sequence[str] = ('cuda', 'rocm')) -> PyTree:
    """The tree, each leaf in memory as it is, on these platforms.

    Where a bitcast removes and adds a worker's axis, XLA for GPUs does not see that moments are results. It
    computes them again in every kernel that reads them, and copies the old ones for that. On CPUs the barrier
    itself would make copies.
    """
    return lax.platform_dependent(tree, default=_same, **dict.fromkeys(platforms, _barriers))


def _barriers(tree: PyTree) -> PyTree:
    return jax.tree.map(lax.optimization_barrier, tree)


def _same(tree: PyTree) -> PyTree:
    return tree
