"""What a newcomer receives: the leader's replicated values, and the mean of the others' per-worker ones."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

PyTree = Any

__all__ = ['for_workers', 'give']


def give(valid: jax.Array, leads: jax.Array, state: PyTree, owns: PyTree, axis: str) -> PyTree:
    """Within a mapped function: the state, or what a worker that is not valid receives in its place.

    Args:
        valid: bool [1], whether this worker has a state.
        leads: bool [1], whether its replicated values are those that others receive.
        state: of this worker.
        owns: like the state, which leaves are per-worker.
        axis: the mesh axis over workers.
    """

    def leaf(x, own):
        averages = own and jnp.issubdtype(x.dtype, jnp.floating)
        given = _mean(x, valid, axis) if averages else _copied(x, leads, axis)
        return jnp.where(valid[0], x, given)

    return jax.tree.map(leaf, state, owns)


def for_workers(x: np.ndarray, num_workers: int) -> np.ndarray:
    """The rows of a checkpoint or, for another number of workers, their mean for each."""
    if len(x) == num_workers:
        return x
    mean = x.mean(axis=0, dtype=np.float64) if np.issubdtype(x.dtype, np.inexact) else x[0]
    return np.broadcast_to(np.asarray(mean, x.dtype), (num_workers, *x.shape[1:]))


def _mean(x: jax.Array, valid: jax.Array, axis: str) -> jax.Array:
    total = lax.psum(jnp.where(valid[0], x.astype(jnp.float32), 0), axis)
    return (total / lax.psum(valid[0].astype(jnp.float32), axis)).astype(x.dtype)


def _copied(x: jax.Array, leads: jax.Array, axis: str) -> jax.Array:
    """The leader's values, bit for bit."""
    if x.dtype == jnp.bool_:
        return _copied(x.astype(jnp.uint32), leads, axis).astype(jnp.bool_)
    bits = lax.bitcast_convert_type(x, jnp.dtype(f'uint{8 * x.dtype.itemsize}'))
    wide = bits.astype(jnp.uint32) if x.dtype.itemsize < 4 else bits
    return lax.bitcast_convert_type(lax.psum(jnp.where(leads[0], wide, 0), axis).astype(bits.dtype), x.dtype)
