"""Weights of the workers' updates: unequal batches, losses by the token, a worker with nothing to add."""

from typing import Any

import jax
import jax.numpy as jnp

from def_jax.ground.collectives import (
    Group,
    check_not_summed,
    group_of,
    num_workers,
    pmean,
    psum,
    vary_if_tracked,
)
from def_jax.ground.types import AxisName, PyTree
from def_jax.options.skipping import hold


def averaged(within: Group, grads: PyTree, weight: jax.Array | None) -> tuple[PyTree, jax.Array | None]:
    """The mean of the gradients of a worker's devices, and the worker's weight."""
    if within.members is None:
        check_not_summed(grads, within.names, inside=True)
    if weight is not None:
        grads, weight = shares(weight, within, grads)
    return pmean(grads, within), weight


def weighted(
    weight: jax.Array, axis_name: AxisName, updates: PyTree, after: PyTree, before: PyTree
) -> tuple[PyTree, PyTree]:
    """Worker k's updates times K·w_k / Σ w, and the state of its optimizer.

    So y moves by the weighted mean of the updates (Eq. 8). With weight 0 a worker adds nothing, whatever its
    gradient is, and its moments stay as they were. If all weights are 0, no worker adds anything.
    """
    updates, _ = shares(weight, axis_name, updates)
    return updates, hold(jnp.asarray(weight) > 0, after, before, counts=False)


def shares(weight: Any, axes: AxisName | Group, tree: PyTree) -> tuple[PyTree, jax.Array]:
    """The tree times K·w_k / Σ w, zero where w_k is, and Σ w, float32 []."""
    weight = jnp.asarray(weight, jnp.float32)
    if weight.ndim:
        raise ValueError(f"weight has shape {weight.shape}, but must be a scalar: this worker's own.")
    weight = jnp.where(weight >= 0, weight, jnp.nan)  # as of no tokens: NaN in x is noticed
    total = psum(vary_if_tracked(weight, group_of(axes).names), axes)
    factor = num_workers(axes) * weight / jnp.where(total == 0, 1, total)

    def leaf(x):
        wide = jnp.promote_types(x.dtype, jnp.float32)  # a rounded factor would bias every step alike
        return jnp.where(weight == 0, jnp.zeros_like(x), (x * factor.astype(wide)).astype(x.dtype))

    return jax.tree.map(leaf, tree), total
