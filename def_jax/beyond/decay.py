"""A residual that fades: what waits long counts for less."""

from typing import Any

import jax
import jax.numpy as jnp

from def_jax.beyond.base import Option
from def_jax.checks import check_number

PyTree = Any

__all__ = ['Decay']


class Decay(Option):
    """Multiplies the residual by `decay` before the update is added, on line 7.

    Raises:
        ValueError: unless `decay` is a number in [0, 1].
    """

    def __init__(self, decay: float):
        check_number('decay', decay, 0, 1, 'the share of the residual that a step keeps; 1 keeps all')
        self.wanted, self._decay = not isinstance(decay, (int, float)) or decay != 1, decay

    def carry(self, residual: jax.Array, taken: bool | jax.Array) -> jax.Array:
        if taken is True:
            return self._decay * residual
        return jnp.where(taken, self._decay, 1.0) * residual
