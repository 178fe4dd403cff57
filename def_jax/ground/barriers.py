"""Barriers against XLA: what keeps it from moving, copying or computing again what was meant to stay."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from def_jax.ground.types import PyTree


def in_memory(tree: PyTree, platforms: Sequence[str] = ('cuda', 'rocm')) -> PyTree:
    """The tree, each leaf in memory as it is, on these platforms; on CPUs the barrier would make copies.

    Where a bitcast removes and adds a worker's axis, XLA for GPUs does not see that moments are results. It
    computes them again in every kernel that reads them, and copies the old ones for that. It decodes a
    message of few bits again in the kernel of every tensor.
    """

    def barriers(tree):
        return jax.tree.map(lax.optimization_barrier, tree)

    return lax.platform_dependent(tree, default=lambda tree: tree, **dict.fromkeys(platforms, barriers))


def materialized(tree: PyTree) -> PyTree:
    """The tree, all of it in memory before any of it is read, on every platform.

    XLA neither computes it again in each kernel that reads it, nor moves anything across. Callers say what it
    would do otherwise.
    """
    return lax.optimization_barrier(tree)


def rounded(x: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """float32 numbers that the dtype holds. XLA may skip a rounding that is undone at once; not this one."""
    if dtype.itemsize >= 4:
        return x
    info = jnp.finfo(dtype)
    normal = lax.reduce_precision(x, info.nexp, info.nmant)
    if info.smallest_normal <= jnp.finfo(jnp.float32).smallest_normal:
        return normal
    # Where float16 has subnormal numbers, multiples of the least of them, reduce_precision has zero.
    least = jnp.float32(info.smallest_subnormal)
    multiple = lax.round(x / least, lax.RoundingMethod.TO_NEAREST_EVEN) * least
    return jnp.where(jnp.abs(x) < info.smallest_normal, multiple, normal)


def read_after(values: jax.Array, x: jax.Array) -> jax.Array:
    """x, once `values` of any type are computed: of its shape, or one number for all of it.

    Were x in memory earlier, XLA would write it over what the values are computed from, and save that by a
    copy. A shifted sign bit is less than 2, which XLA does not know.
    """
    bits = values.dtype.itemsize * 8
    computed = (lax.bitcast_convert_type(values, f'uint{bits}') >> (bits - 1)) < 2
    return jnp.where(computed, x, jnp.zeros_like(x))


def part_places(begins: Sequence[int], *after: jax.Array) -> list[jax.Array]:
    """For parts that begin here in a message, each one's index and where it begins, uint32 [2].

    Behind the barrier these are arguments, not constants, of a kernel, which XLA then compiles once for all
    leaves of a shape. XLA for GPUs takes parts at the same places in one kernel, unless their places wait for
    different `after`.
    """
    return lax.optimization_barrier(([jnp.array(pair, jnp.uint32) for pair in enumerate(begins)], after))[0]
