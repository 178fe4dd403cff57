"""SAEF's averaging: every P steps, the residuals are replaced by their mean over workers."""

from typing import Any

import optax
from jax import lax

from def_jax.mesh.collectives import pmean
from def_jax.types import AxisName, PyTree

__all__ = ['averaged']


def averaged(period: int, axis_name: AxisName, before: Any, after: Any) -> Any:
    """The state after a step, with averaged residuals if the step is a multiple of the period."""

    def mean(residual: PyTree) -> PyTree:
        # Adding 0·r marks the mean as varying over workers, like the other branch, as shard_map requires.
        return optax.tree.add_scale(pmean(residual, axis_name), 0, residual)

    # A step dropped by `skip_nonfinite` does not count, so it must not repeat an average.
    due = (after.step % period == 0) & (after.step != before.step)
    return after._replace(residual=lax.cond(due, mean, lambda r: r, after.residual))
