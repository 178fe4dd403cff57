"""One step of an optimizer for several gradients, in place of `optax.MultiSteps`, which saves no message."""

import jax
import jax.numpy as jnp
import optax

from def_jax.state.link import float32_zeros


def accumulated(optimizer: optax.GradientTransformation, every: int) -> optax.GradientTransformationExtraArgs:
    """Calls the optimizer with the mean of `every` gradients at every such call; other updates are zero."""

    def init(params):
        return float32_zeros(params), jnp.zeros((), jnp.int32)

    def update(grads, state, params=None):
        mean, n = state
        mean = jax.tree.map(lambda m, g: jnp.where(n, m + (g - m) / (n + 1), g).astype(m.dtype), mean, grads)
        return optax.tree.cast_like(mean, grads), (mean, (n + 1) % every)

    last = optax.conditionally_mask(optimizer, lambda call: call % every == every - 1)
    return optax.chain(optax.GradientTransformation(init, update), last)
