"""SAEF's averaging: every P steps, the residuals are replaced by their mean over workers."""

from typing import Any

import optax
from jax import lax

from def_jax.beyond.base import Option
from def_jax.checks import check_integer
from def_jax.mesh.collectives import pmean
from def_jax.types import AxisName, PyTree

__all__ = ['Averaging']


class Averaging(Option):
    """Averages the residuals over workers with a dense all-reduce every `average_every` steps.

    Raises:
        ValueError: unless `average_every` is an integer in [0, 2**31).
    """

    def __init__(self, average_every: int, axis_name: AxisName):
        check_integer('average_every', average_every, 0, 'a number of steps, 0 for never')
        self.wanted = average_every > 0
        self._period, self._axis_name = average_every, axis_name

    def finish(self, before: Any, after: Any) -> Any:
        # A step dropped by `skip_nonfinite` does not count, so it must not repeat an average.
        due = (after.step % self._period == 0) & (after.step != before.step)
        return after._replace(residual=lax.cond(due, self._mean, lambda r: r, after.residual))

    def _mean(self, residual: PyTree) -> PyTree:
        # Adding 0·r marks the mean as varying over workers, like the other branch, as shard_map requires.
        return optax.tree.add_scale(pmean(residual, self._axis_name), 0, residual)
