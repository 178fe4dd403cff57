"""Messages in flight: the network works while the next gradient is computed, for `overlap=True`.

Algorithm 1 adds an update to what waits (line 7), and then sends a block and waits for it (lines 8 to 10).
Here a step ends after line 7, and the next one begins with lines 8 to 10. So what a step sends is known when
it begins, and its all-reduce depends on nothing that the step computes:

    f_k      block of r_k           C as of the step before; in flight while the gradient is computed
    x     += mean_k f_k             lines 9 and 10
    r_k   += u_k - f_k              line 8, and line 7 of the next message

What is in flight stays in r_k until it has arrived. So y = x + mean_k r_k moves by the mean update at every
step (Eq. 8), the detached point x + λ·r_k contains the worker's own message, and the state is that of
Algorithm 1: what is in flight is not stored, but taken from r_k, which nobody has changed since. Only x is
one step behind.
"""

from typing import Any

import jax
import jax.numpy as jnp

from def_jax.ground.barriers import in_memory, materialized, read_after
from def_jax.ground.collectives import varying_axes
from def_jax.ground.types import PyTree
from def_jax.options import Options, pend, send, skipping
from def_jax.options.narrow import settled
from def_jax.wires import Route


def overlapped(
    options: Options, route: Route, updates: PyTree, state: Any, params: PyTree
) -> tuple[PyTree, Any]:
    """The updates of x, and the state after them, as `_algorithm_1` of `error_feedback` returns them."""
    selection = options.select(state, route)
    # What XLA computes in one kernel with something of the gradient waits for it, and so would the message.
    # On TPUs, where a tensor may be sent whole, the block is therefore of another array than the point.
    block = selection.take(in_memory(state.residual, ['tpu']))
    # On GPUs, that of the updates has other indices: those of a key that waits for the block, unless types
    # say that the key must not depend on what varies over workers.
    alike = varying_axes([state.key]) == varying_axes([block])
    key, *_ = materialized((state.key, block) if alike else (state.key,))
    again = options.select(state._replace(key=key), route)
    # In memory, or XLA for GPUs would take the block of all updates again wherever it is used.
    computed = jnp.max(materialized(again.take(updates)), initial=0)
    branches = options.every > 1  # a branch of a conditional cannot wait: the whole conditional would

    def arrive(sent, mean):
        return mean if branches else _late(computed, sent, mean)

    reply = send(options, route, selection, block, updates, state, arrive)
    if options.skip_nonfinite:  # the next message tells the other workers
        finite = skipping.finite_on_all(updates, route.within)
        updates = jax.tree.map(lambda u: jnp.where(finite, u, 0), updates)
        state = state._replace(left_out=~finite)
    mean, rest, missing = settled(route, selection, reply, updates, params, state.missing)
    state = state._replace(missing=missing)
    # What joins the next block is another array than what the reply is about.
    rest = materialized(rest)
    waiting = materialized(again.take(updates) + options.carry(rest))
    residual = selection.replace(pend(updates, options.carry(state.residual)), waiting)
    # Moved before the gradient has read them, the parameters would be copied.
    arrived = _late(computed, block, mean) if branches else mean
    return selection.place(arrived, updates), options.finish(route, state, residual, reply.memory)


def _late(computed: jax.Array, message: jax.Array, mean: jax.Array) -> jax.Array:
    """The mean, used no earlier than a number is computed, until which the message is kept.

    XLA for CPUs gives memory to what comes next in its schedule. Were the message's free as soon as it has
    arrived, or that of its mean, a part of the gradient would be computed there, and wait for the network.
    """
    # Where types say what varies over workers (check_vma=True), x must not depend on what does.
    return mean if varying_axes([computed]) else _used_after(computed, message, mean)


@jax.custom_batching.custom_vmap
def _used_after(computed: jax.Array, message: jax.Array, mean: jax.Array) -> jax.Array:
    return read_after(message, read_after(computed, mean))


@_used_after.def_vmap
def _shared_stays_shared(_, batched, computed, message, mean):
    """Under `jax.vmap`, x has no axis of workers, though what is waited for has one."""
    if not batched[2]:
        return mean, False
    return jax.vmap(_used_after.fun, [0 if b else None for b in batched])(computed, message, mean), True
