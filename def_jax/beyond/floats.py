"""Messages of floats: a worker's rounding error stays in its residual and is sent later."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from def_jax.beyond.base import Step, Wire

__all__ = ['Floats', 'check_wire_dtype']


class Floats(Wire):
    """Sends messages as floats of one type. Only rounding in the all-reduce's sum is lost."""

    def __init__(self, dtype: DTypeLike):
        self._dtype = dtype

    def round(self, block: jax.Array, step: Step) -> jax.Array:
        del step
        if self._dtype == jnp.float32:
            return block
        # XLA may skip rounding that is undone at once; the barrier forbids it.
        return lax.optimization_barrier(block.astype(self._dtype)).astype(jnp.float32)

    def pack(self, message: jax.Array, step: Step) -> jax.Array:
        del step
        return message.astype(self._dtype)

    def unpack(self, mean: jax.Array, step: Step) -> tuple[jax.Array, Step]:
        return mean.astype(jnp.float32), step


def check_wire_dtype(wire_dtype: Any) -> jnp.dtype:
    """The dtype; raises ValueError unless it is a float type of at most 32 bits, or int8, for `Integers`."""
    try:
        dtype = jnp.dtype(wire_dtype)
        well_formed = dtype == jnp.int8 or (jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize <= 4)
    except TypeError:
        well_formed = False
    if not well_formed:
        raise ValueError(
            f'{wire_dtype=} must be a float type of at most 32 bits, or int8: float32 (the default), '
            'bfloat16, int8 or float16, or a float8 type if the backend can reduce it.'
        )
    return dtype
