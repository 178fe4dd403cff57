"""Local steps: one message every H steps, with no communication in between."""

import jax
import jax.numpy as jnp
from jax import lax

from def_jax.types import Send


def now_and_then(every: int, send: Send) -> Send:
    """Sends every `every` steps; in between, updates accumulate in the residual and x is constant.

    The collective is in a branch of a conditional. What goes in and out is the block alone, which a waiting
    step puts back as it is: XLA copies what both branches return.

    Source: with `identity()` and λ = 1 this is local SGD (Stich, 2019): x + r_k is worker k's model.
    """

    def wait(block, state):
        nothing = jnp.zeros(block.shape, block.dtype)  # of a type that all workers share
        return nothing, state._replace(step=state.step + 1, residual=block)

    def send_or_wait(block: jax.Array, state):
        due = (state.step + 1) % every == 0
        return lax.cond(due, send, wait, block, state._replace(residual=None))

    return send_or_wait
