"""1-bit Adam: dense Adam first; then the second moment is frozen, and momenta travel as signs."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from def_jax.baselines.signs import exchange_signs
from def_jax.ground.arguments import check_integer, check_number
from def_jax.ground.collectives import pmean
from def_jax.ground.types import AxisName, PyTree
from def_jax.state.link import float32_updates, float32_zeros, link

__all__ = ['OneBitAdamState', 'onebit_adam']


class OneBitAdamState(NamedTuple):
    """State of `onebit_adam`. The residual differs between workers; the other fields do not."""

    step: jax.Array  # uint32 [], number of updates so far
    mu: PyTree  # like params, float32: the momentum
    nu: PyTree  # like params, float32: the second moment, frozen after `freeze_after` steps
    residual: PyTree  # like params, float32: what worker k's momentum lost to compression

    @property
    def per_worker(self) -> tuple[str, ...]:
        return ('residual',)


def onebit_adam(
    axis_name: AxisName, *, freeze_after: int = 100, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8
) -> optax.GradientTransformation:
    """Adam whose messages shrink to one bit an element once its second moment is frozen.

    For `freeze_after` steps the gradients are averaged in full and both moments are updated. Then worker k
    adds its gradient to the replicated momentum, m_k = b1·m + (1 - b1)·g_k, and sends the sign of every
    element of m_k plus its residual, with the root mean square of each tensor; the mean of these is the next
    m. As in the authors' code, the moments are not corrected for bias, and a parameter that had no gradient
    before the freeze does not move. Their exchange has two phases, with a server that compresses the mean
    again; here it is one all-gather, so the mean is exact and the received bytes grow with the number of
    workers.

    Make it the first link of a chain, with the gradient taken at the parameters, and let
    `optax.scale_by_learning_rate` follow, without another momentum.

    Args:
        axis_name: the axis over workers, a tuple of axes, or None for a single worker.
        freeze_after: the number of dense steps at the start; the authors use 15 to 20% of a run.
        b1: decay of the momentum, in [0, 1).
        b2: decay of the second moment, in [0, 1).
        eps: added to the denominator.

    Returns:
        An `optax.GradientTransformation` with state `OneBitAdamState`, like `optax.scale_by_adam`.

    Raises:
        ValueError: if an argument is out of range; in `update`, if `axis_name` is not bound.

    References:
        Tang et al., `1-bit Adam: Communication Efficient Large-Scale Training with Adam's Convergence Speed
        <https://arxiv.org/abs/2102.02888>`_, 2021, Algorithm 1.

    >>> import jax.numpy as jnp, def_jax
    >>> link = def_jax.baselines.onebit_adam(None, freeze_after=1)
    >>> state = link.init(jnp.zeros(2))
    >>> for _ in range(2):
    ...     updates, state = link.update(jnp.array([1.0, -2.0]), state)
    >>> bool(state.mu[0] == -state.mu[1])  # both have the magnitude of their tensor
    True
    """
    check_integer('freeze_after', freeze_after, 1, 'the dense steps before the second moment is frozen')
    check_number('b1', b1, 0, 1, 'decay of the momentum', below=True)
    check_number('b2', b2, 0, 1, 'decay of the second moment', below=True)
    check_number('eps', eps, 0, 1, 'added to the denominator')

    def init(params):
        mu, nu, residual = (float32_zeros(params) for _ in range(3))
        return OneBitAdamState(jnp.zeros((), jnp.uint32), mu, nu, residual)

    def step(updates, state, *_):
        grads = float32_updates(updates, state.residual)

        def dense():
            mean = pmean(grads, axis_name)
            mu = optax.tree.update_moment(mean, state.mu, b1, 1)
            nu = optax.tree.update_moment(mean, state.nu, b2, 2)
            # Adding g's zeros marks the residual as varying over workers, like the other branch.
            return mu, nu, optax.tree.add(state.residual, optax.tree.zeros_like(grads))

        def compressed():
            own = jax.tree.map(lambda m, g, r: b1 * m + (1 - b1) * g + r, state.mu, grads, state.residual)
            mu, sent = exchange_signs(own, axis_name, lambda x: jnp.sqrt(jnp.mean(x**2)))
            return mu, state.nu, jax.tree.map(jnp.subtract, own, sent)

        mu, nu, residual = lax.cond(state.step < freeze_after, dense, compressed)
        # A sign has the magnitude of its tensor even where there has been no gradient, as at a pixel that is
        # always black. The authors' code has a mask for such parameters; they stay where they are.
        update = jax.tree.map(lambda m, v: jnp.where(v == 0, 0, m / (jnp.sqrt(v) + eps)), mu, nu)
        return update, OneBitAdamState(state.step + 1, mu, nu, residual)

    return link(init, step, axis_name, OneBitAdamState)
