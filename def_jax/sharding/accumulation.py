"""One step of an optimizer for several gradients, in place of `optax.MultiSteps`, which saves no message."""

import jax
import jax.numpy as jnp
import optax

from def_jax.state.link import float32_zeros
from def_jax.state.ownership import AccumulatedState


def accumulated(optimizer: optax.GradientTransformation, every: int) -> optax.GradientTransformationExtraArgs:
    """Calls the optimizer once in `every` calls, with the mean of their gradients; other updates are zero.

    With `weight=`, the mean is weighted by those of the calls, and their sum is the weight of the step.
    """

    def sends(call):
        return call % every == every - 1

    last = optax.conditionally_mask(optimizer, sends)

    def init(params):  # the state of a chain, of which what precedes the link is per-worker
        calls, total = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.float32)
        return AccumulatedState(float32_zeros(params), calls, total), last.init(params)

    def update(grads, state, params=None, **extra_args):
        (mean, n, total), of_last = state
        weight = jnp.asarray(extra_args.get('weight', 1), jnp.float32)
        total = jnp.where(n, total, 0) + weight

        def added(m, g):
            old = jnp.where(n, m, 0)
            return jnp.where(weight == 0, old, old + weight * (g - old) / total)

        mean = jax.tree.map(added, mean, grads)
        if 'weight' in extra_args:
            extra_args['weight'] = total
        # By the same count as that of `last`: a state may come from steps of more or fewer calls.
        n = jnp.where(sends(of_last.step), 0, n + 1)
        updates, of_last = last.update(optax.tree.cast_like(mean, grads), of_last, params, **extra_args)
        return updates, (AccumulatedState(mean, n, total), of_last)

    return optax.GradientTransformationExtraArgs(init, update)
