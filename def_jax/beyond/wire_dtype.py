"""Narrow messages: a worker's rounding error stays in its residual and is sent later."""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from def_jax.beyond.base import Option, Step

__all__ = ['WireDtype']


class WireDtype(Option):
    """Sends messages as floats of `wire_dtype`. Only rounding in the all-reduce's sum is lost.

    Raises:
        ValueError: unless `wire_dtype` is a float type of at most 32 bits, or int8, for `Integers`.
    """

    def __init__(self, wire_dtype: DTypeLike):
        try:
            dtype = jnp.dtype(wire_dtype)
            floating = jnp.issubdtype(dtype, jnp.floating)
            well_formed = dtype == jnp.int8 or (floating and dtype.itemsize <= 4)
        except TypeError:
            well_formed = False
        if not well_formed:
            raise ValueError(
                f'{wire_dtype=} must be a float type of at most 32 bits, or int8: float32 (the default), '
                'bfloat16, int8 or float16, or a float8 type if the backend can reduce it.'
            )
        self.wanted, self._dtype = floating and dtype != jnp.float32, dtype

    def encode(self, message: jax.Array, step: Step) -> jax.Array:
        del step
        return message.astype(self._dtype)

    def decode(self, mean: jax.Array, step: Step) -> tuple[jax.Array, Step]:
        return mean.astype(jnp.float32), step
