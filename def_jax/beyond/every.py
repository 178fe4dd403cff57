"""Local steps: one message every H steps, with no communication in between."""

import jax
import jax.numpy as jnp
from jax import lax

from def_jax.beyond.base import Option, Send
from def_jax.checks import check_integer
from def_jax.compressors.base import Selection

__all__ = ['Every']


class Every(Option):
    """Sends a message every `every` steps; in between, updates accumulate in the residual and x is constant.

    The collective is in a branch of a conditional that only sending steps take. What goes in and out is the
    block alone, which a waiting step puts back as it is: XLA copies what both branches of a conditional
    return. The number of messages sent selects the blocks, so a round of blocks is a round of messages.

    Raises:
        ValueError: unless `every` is an integer in [1, 2**31).

    Source: with `identity()` and λ = 1 this is local SGD (Stich, 2019): x + r_k is worker k's model.
    """

    conditional = True

    def __init__(self, every: int):
        check_integer('every', every, 1, 'the number of steps per message')
        self.wanted, self._every = every > 1, every

    def messages(self, step: jax.Array) -> jax.Array:
        return step // self._every

    def wrap(self, send: Send, selection: Selection) -> Send:
        del selection

        def wait(block, state):
            nothing = jnp.zeros(block.shape, block.dtype)  # of a type that all workers share
            return nothing, state._replace(step=state.step + 1, residual=block)

        def send_or_wait(block, state):
            due = (state.step + 1) % self._every == 0
            return lax.cond(due, send, wait, block, state._replace(residual=None))

        return send_or_wait
