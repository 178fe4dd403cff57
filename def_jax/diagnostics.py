"""Quantities from the convergence analysis, measured on a running optimizer.

Measuring costs dense all-reduces: do it every so many steps, not at every step. Legend, in addition to that
of `error_feedback`: e_t is the mean of the workers' errors e_k = -r_k, σ² the variance of a worker's
gradient, and M² the squared norm of the full gradient (Assumptions 3.1 and 3.2).
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from def_jax.checks import check_number
from def_jax.collectives import AxisName, check_axis_name, num_workers, pmean
from def_jax.compressors import Compressor, message_size
from def_jax.error_feedback import feedback_states

PyTree = Any

__all__ = ['compression_delta', 'convergence_bound', 'error_statistics', 'gradient_statistics']


def error_statistics(opt_state: PyTree, axis_name: AxisName) -> dict[str, jax.Array]:
    """Norms of the workers' errors, and the distances of EF's and DEF's gradient points from y.

    Args:
        opt_state: worker k's optimizer state, which contains that of `error_feedback`.
        axis_name: the axis over workers, as given to `error_feedback`.

    Returns:
        float32 scalars, the same on all workers except the last:
        `mean_error`, ‖e_t‖²; `error`, mean_k ‖e_k‖²; `distance_ef`, mean_k ‖x - y‖² = ‖e_t‖², and
        `distance`, mean_k ‖x - λe_k - y‖², Eq. 9 at the current λ; `detach_optimum`, λ*(t) = ‖e_t‖² /
        mean_k ‖e_k‖², which minimises Eq. 9; `detach_optimum_own`, λ*(k, t) = ⟨e_t, e_k⟩ / ‖e_k‖², the
        best λ for this worker alone. The optima are 0 while all errors are zero.

    Raises:
        ValueError: if `opt_state` holds no residual, or `axis_name` is not bound.

    Source: Section 3.2, Eq. 9.

    >>> import jax, jax.numpy as jnp, def_jax
    >>> state = def_jax.error_feedback(def_jax.random_block(2), None, detach=0.5).init(jnp.zeros(2))
    >>> state = state._replace(residual=jnp.array([3.0, 4.0]))
    >>> {name: float(value) for name, value in error_statistics(state, None).items()}
    {'mean_error': 25.0, 'error': 25.0, 'distance_ef': 25.0, 'distance': 6.25, 'detach_optimum': 1.0, \
'detach_optimum_own': 1.0}
    """
    check_axis_name(axis_name)
    residuals = [(state.detach, state.residual) for state in feedback_states(opt_state, 'error_statistics')]
    mean_error = error = distance = inner = own_error = jnp.float32(0)
    for detach, residual in residuals:
        mean = pmean(residual, axis_name)
        own = _square(residual)
        mean_error += _square(mean)
        own_error += own
        inner += optax.tree.vdot(mean, residual)
        distance += _square(jax.tree.map(lambda m, r, detach=detach: m - detach * r, mean, residual))
    error, distance = pmean((own_error, distance), axis_name)
    return {
        'mean_error': mean_error,
        'error': error,
        'distance_ef': mean_error,
        'distance': distance,
        'detach_optimum': _ratio(mean_error, error),
        'detach_optimum_own': _ratio(inner, own_error),
    }


def gradient_statistics(grads: PyTree, axis_name: AxisName) -> dict[str, jax.Array]:
    """Unbiased estimates of σ² and M² from the gradients of K workers at the same point.

    With g the workers' mean, E‖g_k‖² = σ² + M² and E‖g‖² = σ²/K + M².

    Args:
        grads: worker k's gradient, at the same point as all other workers' and on its own data.
        axis_name: the axis over workers, of which there must be at least two.

    Returns:
        float32 scalars, the same on all workers: `variance`, σ², and `second_moment`, M², whose estimate may
        be negative if M² is small.

    Raises:
        ValueError: if `axis_name` is None or not bound, or there is only one worker.

    Source: Assumptions 3.1 and 3.2; Section 4.1 reports σ² ≈ 0.3 M².

    >>> import jax, jax.numpy as jnp
    >>> measure = jax.vmap(lambda g: gradient_statistics(g, 'workers'), axis_name='workers')
    >>> {name: float(value[0]) for name, value in measure(jnp.array([1.0, 3.0])).items()}
    {'second_moment': 3.0, 'variance': 2.0}
    """
    check_axis_name(axis_name)
    mean = pmean(grads, axis_name)
    workers = num_workers(axis_name)
    if workers < 2:
        raise ValueError(f'{axis_name=} has one worker; the variance between workers needs at least two.')
    norm = _square(mean)
    variance = workers / (workers - 1) * (pmean(_square(grads), axis_name) - norm)
    return {'variance': variance, 'second_moment': norm - variance / workers}


def compression_delta(compressor: Compressor, params: PyTree) -> float:
    """The compressor's δ in Assumption 4.2: the fraction B / d of the elements sent per step.

    Args:
        compressor: a compressor that selects some of the elements, such as `random_block`.
        params: a pytree of arrays or of `jax.ShapeDtypeStruct`.

    Returns:
        δ in (0, 1].

    >>> import jax.numpy as jnp, def_jax
    >>> compression_delta(def_jax.random_block(4), jnp.zeros(8))
    0.25
    """
    return message_size(compressor, params) / sum(leaf.size for leaf in jax.tree.leaves(params))


def convergence_bound(
    *,
    initial_gap: float,
    learning_rate: float,
    num_steps: int,
    smoothness: float,
    variance: float,
    second_moment: float,
    num_workers: int,
    detach: float,
    delta: float,
) -> float:
    """The bound of Theorem 4.3 on the mean of E‖∇F(y_t)‖² over steps.

    Args:
        initial_gap: F(y_0) - F(y*).
        learning_rate: η, at most 1 / (4L).
        num_steps: T.
        smoothness: L.
        variance: σ².
        second_moment: M².
        num_workers: K.
        detach: λ in [0, 1].
        delta: δ of the compressor, in (0, 1]; at 1 everything is sent and the last term vanishes.

    Returns:
        The right-hand side of Eq. 17.

    Raises:
        ValueError: if an argument is out of range.

    Source: Theorem 4.3, Eq. 17.

    >>> bound = dict(initial_gap=1.0, learning_rate=0.01, num_steps=10**4, smoothness=1.0, variance=1.0,
    ...              second_moment=3.0, num_workers=16, delta=1 / 64)
    >>> convergence_bound(detach=0.9, **bound) < convergence_bound(detach=0.0, **bound)
    True
    """
    check_number('smoothness', smoothness, 1e-30, math.inf, 'L > 0')
    check_number(
        'learning_rate', learning_rate, 0, 1 / (4 * smoothness), 'η ≤ 1/(4L), as the theorem requires'
    )
    check_number('num_steps', num_steps, 1, math.inf, 'T')
    check_number('num_workers', num_workers, 1, math.inf, 'K')
    check_number('detach', detach, 0, 1, 'λ')
    check_number('delta', delta, 1e-30, 1, 'δ > 0')
    descent = 4 * initial_gap / (learning_rate * num_steps)
    noise = 2 * learning_rate * smoothness * variance / num_workers
    if delta == 1:
        return descent + noise
    inverse = 1 / num_workers
    spread = (1 - inverse) * inverse * variance + (inverse - detach) ** 2 * variance
    spread += 2 * (1 - detach) ** 2 * second_moment
    shrink = (math.sqrt((1 - delta / 2) / (1 - delta)) - 1) ** 2
    return descent + noise + 4 * (learning_rate * smoothness) ** 2 * spread / shrink


def _square(tree: PyTree) -> jax.Array:
    return optax.tree.norm(tree, squared=True)


def _ratio(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    return jnp.where(denominator > 0, numerator / jnp.where(denominator > 0, denominator, 1), 0)
