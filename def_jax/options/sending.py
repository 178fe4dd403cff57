"""Line 9 with its options: what becomes of a block between a worker's pending updates and the parameters."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from def_jax.compressors.base import Selection
from def_jax.mesh.link import Shards, float32_updates
from def_jax.options import Options, detach_estimate, every, outer, skipping
from def_jax.options.base import Send
from def_jax.types import PyTree
from def_jax.wires import exchange
from def_jax.wires.floats import Arrive

__all__ = ['Step', 'pend', 'send']


def pend(updates: PyTree, carried: PyTree) -> PyTree:
    """Line 7 in float32, after a check that nothing is broadcast or lost."""
    return jax.tree.map(jnp.add, float32_updates(updates, carried), carried)


class Step(NamedTuple):
    """A step of Algorithm 1 in progress."""

    updates: PyTree  # worker k's, from the inner optimizer
    before: Any  # the state before the step, an `ErrorFeedbackState`
    pending: PyTree  # like params, float32: p_k
    selection: Selection  # the coordinates that C keeps
    shards: Shards  # of what this device holds a part


def send(
    options: Options, block: jax.Array, step: Step, arrive: Arrive = lambda sent, mean: mean
) -> tuple[jax.Array, Any]:
    """The mean block, float32 [M], and the state after it, with the block's rest as its residual.

    `every` and `outer` wrap the exchange; they see the block in place of the trees.

    Args:
        options: of the link.
        block: float32 [M].
        step: in progress.
        arrive: see `wires.exchange`.
    """
    sending: Send = functools.partial(_send, options, step, arrive)
    if options.outer is not None:
        sending = outer.with_block(options.outer, step.selection, sending)
    if options.every > 1:
        sending = every.now_and_then(options.every, sending)
    return sending(block, step.before)


def _send(
    options: Options, step: Step, arrive: Arrive, block: jax.Array, before: Any
) -> tuple[jax.Array, Any]:
    detach = jnp.asarray(options.first_detach, jnp.float32)
    after = before._replace(step=before.step + 1, detach=detach, residual=None)
    message = skipping.marked(block, step.updates, before) if options.skip_nonfinite else block
    sizes = options.compressor.sizes(step.pending)
    weights = _weights(options, step) if options.estimates_detach else None
    mean, rest, energy = exchange(message, sizes, options.axis_name, options.bits, weights, arrive)
    if energy is not None:
        after = detach_estimate.learned(step.shards.sum(energy), after)
    arrived = mean
    if options.outer is not None:
        mean, after = outer.applied(options.outer, mean, after)
    if options.skip_nonfinite:
        old = step.selection.take(step.before.residual)
        finite = step.shards.all(
            skipping.all_finite(arrived)
        )  # another device of this worker may have seen it
        mean, rest, after = skipping.undone(finite, old, mean, rest, before, after)
    return mean, after._replace(residual=rest)


def _weights(options: Options, step: Step) -> jax.Array:
    """Factors of the parts' squares: they scale a block to its tensor, once for all devices that hold it."""
    parts, shares = options.compressor.parts(step.pending), step.shards.shares(step.pending)
    return jnp.array([part.weight * share for part, share in zip(parts, shares, strict=True)], jnp.float32)
