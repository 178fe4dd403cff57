"""Quantities from the convergence analysis, measured on a running optimizer by dense all-reduces.

Legend, in addition to that of `error_feedback`: e_t is the mean of the workers' errors e_k = -r_k, σ² the
variance of a worker's gradient, and M² the squared norm of the full gradient (Assumptions 3.1 and 3.2).
"""

import jax
import jax.numpy as jnp
import optax

from def_jax.error_feedback import check_alone, feedback_states
from def_jax.ground.collectives import Group, num_workers, pmean
from def_jax.ground.types import AxisName, PyTree

__all__ = ['error_statistics', 'gradient_statistics']


def error_statistics(opt_state: PyTree, axis_name: AxisName) -> dict[str, jax.Array]:
    """Norms of the workers' errors, and the distances of EF's and DEF's gradient points from y.

    Args:
        opt_state: worker k's optimizer state, see `detached_params`.
        axis_name: see `error_feedback`.

    Returns:
        float32 scalars, the same on all workers except the last:
        `mean_error`, ‖e_t‖² = ‖x - y‖², the distance of EF; `error`, mean_k ‖e_k‖²; `distance`,
        mean_k ‖x - λe_k - y‖², Eq. 9 at the current λ; `detach_optimum`, λ*(t) = ‖e_t‖² /
        mean_k ‖e_k‖², which minimises Eq. 9; `detach_optimum_own`, λ*(k, t) = ⟨e_t, e_k⟩ / ‖e_k‖², the
        best λ for this worker alone. The optima are 0 while all errors are zero.

    Raises:
        ValueError: if `opt_state` holds no residual, or `axis_name` is not bound.

    Source: Section 3.2, Eq. 9.

    >>> import jax, jax.numpy as jnp, def_jax
    >>> state = def_jax.error_feedback(def_jax.random_block(2), None, detach=0.5).init(jnp.zeros(2))
    >>> state = state._replace(residual=jnp.array([3.0, 4.0]))
    >>> {name: float(value) for name, value in error_statistics(state, None).items()}
    {'mean_error': 25.0, 'error': 25.0, 'distance': 6.25, 'detach_optimum': 1.0, 'detach_optimum_own': 1.0}
    """
    states = feedback_states(opt_state, 'error_statistics')
    check_alone(states, axis_name, 'error_statistics')
    residuals = [state.residual for state in states]
    detached = [optax.tree.scale(state.detach, state.residual) for state in states]
    means = pmean(residuals, axis_name)
    mean_error, own_error = _square(means), _square(residuals)
    error, distance = pmean((own_error, _square(optax.tree.sub(means, detached))), axis_name)
    return {
        'mean_error': mean_error,
        'error': error,
        'distance': distance,
        'detach_optimum': _ratio(mean_error, error),
        'detach_optimum_own': _ratio(optax.tree.vdot(means, residuals), own_error),
    }


def gradient_statistics(grads: PyTree, axis_name: AxisName | Group) -> dict[str, jax.Array]:
    """Unbiased estimates of σ² and M² from the gradients of K workers at the same point.

    With g the workers' mean, E‖g_k‖² = σ² + M² and E‖g‖² = σ²/K + M².

    Args:
        grads: worker k's gradient, at the same point as all other workers' and on its own data; if it is
            several devices, the mean over these.
        axis_name: the axis over workers, at least two.

    Returns:
        float32 scalars, the same on all workers: `variance`, σ², and `second_moment`, M², which may be
        negative.

    Raises:
        ValueError: if `axis_name` is None or not bound, or there is only one worker.

    Source: Assumptions 3.1 and 3.2; Section 4.1 reports σ² ≈ 0.3 M².

    >>> import jax, jax.numpy as jnp
    >>> measure = jax.vmap(lambda g: gradient_statistics(g, 'workers'), axis_name='workers')
    >>> {name: float(value[0]) for name, value in measure(jnp.array([1.0, 3.0])).items()}
    {'second_moment': 3.0, 'variance': 2.0}
    """
    grads = optax.tree.cast(grads, jnp.float32)
    mean = pmean(grads, axis_name)
    workers = num_workers(axis_name)
    if workers < 2:
        raise ValueError(f'{axis_name=} has one worker; the variance between workers needs at least two.')
    norm = _square(mean)
    variance = workers / (workers - 1) * (pmean(_square(grads), axis_name) - norm)
    return {'variance': variance, 'second_moment': norm - variance / workers}


def _square(tree: PyTree) -> jax.Array:
    return optax.tree.norm(tree, squared=True)


def _ratio(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    return jnp.where(denominator > 0, numerator / jnp.where(denominator > 0, denominator, 1), 0)
