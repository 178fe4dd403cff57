"""Weights of the workers' updates: unequal batches, losses by the token, a worker with nothing to add."""

import jax
import jax.numpy as jnp

from def_jax.ground.collectives import num_workers, psum, vary_if_tracked
from def_jax.ground.types import AxisName, PyTree
from def_jax.options.skipping import hold


def weighted(
    weight: jax.Array, axis_name: AxisName, updates: PyTree, after: PyTree, before: PyTree
) -> tuple[PyTree, PyTree]:
    """Worker k's updates times K·w_k / Σ w, and the state of its optimizer.

    So y moves by the weighted mean of the updates (Eq. 8). With weight 0 a worker adds nothing, whatever its
    gradient is, and its moments stay as they were. If all weights are 0, no worker adds anything.
    """
    weight = jnp.asarray(weight, jnp.float32)
    if weight.ndim:
        raise ValueError(f"weight has shape {weight.shape}, but must be a scalar: this worker's own.")
    total = psum(vary_if_tracked(weight, axis_name), axis_name)
    factor = num_workers(axis_name) * weight / jnp.where(total > 0, total, 1)
    adds = weight > 0

    def leaf(u):
        return jnp.where(adds, u * factor.astype(u.dtype), jnp.zeros_like(u))

    return jax.tree.map(leaf, updates), hold(adds, after, before, counts=False)
