"""What a newcomer receives: the leader's replicated values, and the mean of the others' per-worker ones.

The mean is that of `state.regrouping`, which a checkpoint of another number of workers takes, too; here it is
over those who live.
"""

import jax
import jax.numpy as jnp
from jax import lax

from def_jax.ground.types import PyTree

__all__ = ['give']


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
        return jnp.where(valid[0], x, _mean(x, valid, axis) if own else _copied(x, leads, axis))

    return jax.tree.map(leaf, state, owns)


def _mean(x: jax.Array, valid: jax.Array, axis: str) -> jax.Array:
    if jnp.issubdtype(x.dtype, jnp.integer):  # a count, which is the others'
        return lax.pmax(jnp.where(valid[0], x, jnp.iinfo(x.dtype).min), axis)
    total = lax.psum(jnp.where(valid[0], x.astype(jnp.float32), 0), axis)
    return (total / lax.psum(valid[0].astype(jnp.float32), axis)).astype(x.dtype)


def _copied(x: jax.Array, leads: jax.Array, axis: str) -> jax.Array:
    """The leader's values, bit for bit."""
    if x.dtype == jnp.bool_:
        return _copied(x.astype(jnp.uint32), leads, axis).astype(jnp.bool_)
    bits = lax.bitcast_convert_type(x, jnp.dtype(f'uint{8 * x.dtype.itemsize}'))
    wide = bits.astype(jnp.uint32) if x.dtype.itemsize < 4 else bits
    return lax.bitcast_convert_type(lax.psum(jnp.where(leads[0], wide, 0), axis).astype(bits.dtype), x.dtype)
