"""Guards for every mapping, and for `jax.pmap` first, whose copies nobody compares."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from def_jax.error_feedback import feedback_states
from def_jax.mesh.collectives import axis_names, check_axis_name, num_workers, psum
from def_jax.mesh.link import replicated_leaves
from def_jax.mesh.replication import assert_replicated, checksums
from def_jax.options.skipping import all_finite as finite_here
from def_jax.types import AxisName, PyTree

__all__ = ['all_finite', 'debug']


def all_finite(tree: PyTree, axis_name: AxisName) -> jax.Array:
    """Whether every number of every worker's tree is finite, bool [], the same on all workers.

    A verdict from a worker's own gradient, as `jnp.isfinite(loss)`, differs between workers; if it decides
    which parameters are kept, their copies drift apart. It costs an all-reduce of one number. To skip steps
    with NaN, pass `skip_nonfinite=True` to `error_feedback`, which needs none.

    Args:
        tree: arrays, such as worker k's gradient.
        axis_name: the axis over workers, a tuple of axes, or None for a single worker.

    Raises:
        ValueError: if `axis_name` is not bound.

    >>> import jax, jax.numpy as jnp, def_jax
    >>> verdict = jax.vmap(lambda g: def_jax.all_finite(g, 'workers'), axis_name='workers')
    >>> verdict(jnp.array([1.0, jnp.nan])).tolist()
    [False, False]
    """
    check_axis_name(axis_name)
    return psum(1 - finite_here(tree).astype(jnp.int32), axis_name) == 0


def debug(params: PyTree, opt_state: PyTree, axis_name: AxisName) -> None:
    """Raises, from the second step on, if copies of x differ or all workers have one residual.

    Call it in the mapped step, after the update, while a trainer is being wired; it costs a pass over the
    model and an all-reduce of a few numbers. Copies of x differ if something that workers do not exchange
    decides about x, such as another seed. Residuals agree if gradients are averaged before the update, by a
    `pmean` that was left in, or if all workers are given the same data: everything is then sent whole, or
    nothing is gained from several workers.

    Args:
        params: x, after the update.
        opt_state: worker k's optimizer state, after the update.
        axis_name: the axis over workers.

    Raises:
        ValueError: see above, from a host callback, see `assert_replicated`; at once if `opt_state` holds no
            residual or `axis_name` is not bound.

    >>> import jax, jax.numpy as jnp, def_jax
    >>> optimizer = def_jax.error_feedback(def_jax.random_block(4), 'workers')
    >>> def step(gradient):
    ...     state = optimizer.init(jnp.zeros(8))
    ...     for _ in range(2):
    ...         updates, state = optimizer.update(gradient, state)
    ...     def_jax.debug(updates, state, 'workers')
    >>> jax.vmap(step, axis_name='workers')(jnp.arange(16.0).reshape(2, 8))  # two workers that differ
    >>> try:
    ...     jax.vmap(step, axis_name='workers')(jnp.ones((2, 8)))
    ... except ValueError as error:
    ...     print(str(error)[:43])
    all 2 workers have the same residual, which
    """
    check_axis_name(axis_name)
    assert_replicated((params, replicated_leaves(opt_state)), axis_name)
    states = feedback_states(opt_state, 'debug')
    sums = checksums([state.residual for state in states])
    largest = lax.pmax(jnp.concatenate([sums, ~sums]), axis_names(axis_name))
    agree = jnp.all(largest[: len(sums)] == ~largest[len(sums) :])
    anything = jnp.any(jnp.array([jnp.any(r != 0) for r in jax.tree.leaves([s.residual for s in states])]))
    workers, due = num_workers(axis_name), states[0].step >= 2

    def raise_if(agree: np.ndarray) -> None:
        if agree:
            raise ValueError(
                f'all {workers} workers have the same residual, which sums different gradients: these are '
                'averaged before the update, or all workers are given the same data. Take out jax.lax.pmean '
                'of the gradients, and axis_name= or pmap_axis_name= of the helpers that compute them.'
            )

    if workers > 1:
        jax.debug.callback(raise_if, agree & anything & due)
