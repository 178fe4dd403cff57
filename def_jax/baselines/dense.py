"""Dense data parallelism: the mean of the workers' gradients."""

from typing import NamedTuple

import optax

from def_jax.ground.collectives import pmean
from def_jax.ground.types import AxisName
from def_jax.options import weighting
from def_jax.state.link import link

__all__ = ['AllReduceMeanState', 'all_reduce_mean']


class AllReduceMeanState(NamedTuple):
    """State of `all_reduce_mean`: empty. It marks the point in a chain from which the workers agree."""

    @property
    def per_worker(self) -> tuple[str, ...]:
        return ()


def all_reduce_mean(axis_name: AxisName) -> optax.GradientTransformationExtraArgs:
    """Averages the updates over workers, uncompressed: the baseline that `error_feedback` replaces.

    Args:
        axis_name: the axis over workers, a tuple of axes, or None for a single worker.

    Returns:
        An `optax.GradientTransformationExtraArgs` with an empty state. `update(updates, state, weight=w_k)`
        takes the mean weighted by w_k, see `error_feedback`.

    Raises:
        ValueError: if `axis_name` is not a name; in `update`, if it is not bound.

    Source: Eq. 2.

    >>> import jax, jax.numpy as jnp, def_jax
    >>> mean = def_jax.all_reduce_mean('workers')
    >>> average = jax.vmap(lambda g: mean.update(g, mean.init(g))[0], axis_name='workers')
    >>> average(jnp.array([1.0, 3.0])).tolist()
    [2.0, 2.0]
    """

    def step(updates, state, *_):
        return pmean(updates, axis_name), state

    mean = link(lambda params: AllReduceMeanState(), step, axis_name, AllReduceMeanState)

    def update(updates, state, params=None, *, weight=None, **extra_args):
        if weight is not None:
            updates, _ = weighting.shares(weight, axis_name, updates)
        return mean.update(updates, state, params, **extra_args)

    return optax.GradientTransformationExtraArgs(mean.init, update)
