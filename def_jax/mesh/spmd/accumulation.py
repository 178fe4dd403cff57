"""Several gradients for a message: what `optax.MultiSteps` does, decided for all workers at once."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from def_jax.types import PyTree


class AccumulationState(NamedTuple):
    """State of `accumulated`."""

    calls: jax.Array  # int32 [], gradients since the last message
    grads: Any  # their mean; per-worker
    inner_state: PyTree  # of the optimizer


class _Gradients(NamedTuple):
    tree: PyTree  # like params

    @property
    def per_worker(self) -> tuple[str, ...]:
        return ('tree',)


def accumulated(optimizer: optax.GradientTransformation, every: int) -> optax.GradientTransformationExtraArgs:
    """Calls the optimizer with the mean of `every` gradients at every such call; other updates are zero."""
    inner = optax.with_extra_args_support(optimizer)

    def init(params):
        return AccumulationState(
            jnp.zeros((), jnp.int32), _Gradients(optax.tree.zeros_like(params)), inner.init(params)
        )

    def update(grads, state, params=None, **extra_args):
        grads = jax.tree.map(lambda kept, g: kept + (g - kept) / (state.calls + 1), state.grads.tree, grads)

        def step(grads, inner_state):
            updates, inner_state = inner.update(grads, inner_state, params, **extra_args)
            return updates, inner_state, optax.tree.zeros_like(grads)

        def wait(grads, inner_state):
            return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), grads), inner_state, grads

        last = state.calls == every - 1
        updates, inner_state, grads = lax.cond(last, step, wait, grads, state.inner_state)
        return updates, AccumulationState((state.calls + 1) % every, _Gradients(grads), inner_state)

    return optax.GradientTransformationExtraArgs(init, update)
