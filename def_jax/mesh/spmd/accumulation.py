"""Several gradients for a message: what `optax.MultiSteps` does, decided for all workers at once."""

from collections.abc import Callable

import jax
import optax
from jax import lax

from def_jax.types import PyTree

__all__ = ['update']


def update(
    send: Callable, every: int, grads: PyTree, state: optax.MultiStepsState, zeros: PyTree
) -> tuple[PyTree, optax.MultiStepsState]:
    """One call: at every `every`-th, the optimizer's step with the mean gradient, else nothing is sent.

    Args:
        send: maps gradients and the optimizer's state to updates and its new state.
        every: calls per step.
        grads: stacked over workers.
        state: of `optax.MultiSteps`.
        zeros: updates that change nothing.
    """
    count = state.mini_step
    grads = jax.tree.map(lambda kept, grad: kept + (grad - kept) / (count + 1), state.acc_grads, grads)
    last = count == every - 1

    def step(inner):
        return (*send(grads, inner), optax.tree.zeros_like(grads))

    updates, inner, kept = lax.cond(last, step, lambda inner: (zeros, inner, grads), state.inner_opt_state)
    return updates, state._replace(
        mini_step=(count + 1) % every,
        gradient_step=state.gradient_step + last,
        inner_opt_state=inner,
        acc_grads=kept,
    )
