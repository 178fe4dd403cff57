"""Local steps: one message every H steps, with no communication in between."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from def_jax.beyond.base import Option, Pending, Update

PyTree = Any

__all__ = ['Every']


class Every(Option):
    """Sends a message every `every` steps; in between, updates accumulate in the residual and x is constant.

    The collective is in a branch of a conditional that only sending steps take. The number of messages sent
    selects the blocks, so a round of blocks is a round of messages.

    Raises:
        ValueError: unless `every` is an integer in [1, 2**31).

    Source: with `identity()` and λ = 1 this is local SGD (Stich, 2019): x + r_k is worker k's model.
    """

    def __init__(self, every: int):
        if not isinstance(every, int) or isinstance(every, bool) or not 1 <= every < 2**31:
            raise ValueError(f'{every=} must be an integer in [1, 2**31): the number of steps per message.')
        self.wanted, self._every = every > 1, every

    def wrap(self, update: Update, pend: Pending) -> Update:
        def send(updates, state, params):
            updates, after = update(updates, state._replace(step=state.step // self._every), params)
            return updates, after._replace(step=state.step + 1)

        def wait(updates, state, params):
            del params
            nothing = jax.tree.map(lambda u: jnp.zeros(u.shape, u.dtype), updates)  # of a type that all share
            return nothing, state._replace(step=state.step + 1, residual=pend(updates, state.residual))

        def send_or_wait(updates, state, params=None):
            due = (state.step + 1) % self._every == 0
            return lax.cond(due, send, wait, updates, state, params)

        return send_or_wait
