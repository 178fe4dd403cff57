"""A decaying residual: the longer an update waits, the less it counts."""

import jax

from def_jax.beyond.base import Option
from def_jax.checks import check_number
from def_jax.types import PyTree

__all__ = ['Decay']


class Decay(Option):
    """Multiplies the residual by `decay` before the update is added in line 7.

    Raises:
        ValueError: unless `decay` is a number in [0, 1].
    """

    def __init__(self, decay: float):
        check_number('decay', decay, 0, 1, 'the fraction of the residual kept per step; 1 keeps all')
        self.wanted, self._decay = not isinstance(decay, (int, float)) or decay != 1, decay

    def carry(self, residual: PyTree) -> PyTree:
        return jax.tree.map(lambda r: self._decay * r, residual)
