"""Steps with NaN or infinity: all workers skip them together."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from def_jax.beyond.base import Option, Step
from def_jax.checks import check_flag
from def_jax.mesh.link import is_link, link_states
from def_jax.mesh.ownership import holds
from def_jax.mesh.shards import Shards
from def_jax.mesh.varying import vary_if_tracked
from def_jax.types import AxisName, PyTree

__all__ = ['Skipping', 'hold_skipped', 'step_taken']


class Skipping(Option):
    """Skips a step in which any worker's update contains NaN or infinity.

    Adds `skipped`, uint32 [], to the state. NaN is signalled in-band, at no extra cost: a worker whose update
    is not finite sends a message of NaN, which all workers see in the mean.

    Raises:
        ValueError: unless `skip_nonfinite` is True or False.
    """

    def __init__(self, skip_nonfinite: bool, axis_name: AxisName, overlap: bool):
        check_flag('skip_nonfinite', skip_nonfinite)
        self.wanted, self._axis_name, self._overlap = bool(skip_nonfinite), axis_name, overlap

    def init(self, params: PyTree) -> dict[str, PyTree]:
        del params
        fields = {'skipped': jnp.zeros((), jnp.uint32)}
        # Whether this worker's last update was left out: the next message tells the others.
        left_out = {'left_out': vary_if_tracked(jnp.zeros((), bool), self._axis_name)}
        return fields | left_out if self._overlap else fields

    def encode(self, message: jax.Array, step: Step) -> jax.Array:
        if self._overlap:  # one NaN says as much; and this message is computed once, and stays in memory
            first = jnp.where(step.before.extra['left_out'], jnp.nan, message[:1])
            return lax.dynamic_update_slice(message, first, [0])
        return jnp.where(_all_finite(step.updates), message, jnp.nan)

    def admit(
        self, updates: PyTree, carried: PyTree, before: Any, after: Any, shards: Shards
    ) -> tuple[PyTree, PyTree, Any]:
        """After a skipped step, only the old residual is pending, and none of the updates.

        With `overlap`, a worker leaves out its own update alone: the others' are in their residuals already.
        """
        if self._overlap:
            finite = shards.all(_all_finite(updates))
            updates = jax.tree.map(lambda u: jnp.where(finite, u, 0), updates)
            return updates, carried, after._replace(extra=after.extra | {'left_out': ~finite})
        finite = after.extra['skipped'] == before.extra['skipped']
        # Selecting between `pending` and the residual would keep both in memory. Selecting the updates fuses
        # with the in-place update of the residual; r + -0.0 is r, bit for bit.
        updates = jax.tree.map(lambda u: jnp.where(finite, u, -0.0), updates)
        carried = jax.tree.map(lambda new, old: jnp.where(finite, new, old), carried, before.residual)
        return updates, carried, after

    def decode(self, mean: jax.Array, step: Step) -> tuple[jax.Array, Step]:
        """If the mean is not finite, sends nothing, and the rest is the block of the old residual."""
        finite = step.shards.all(_all_finite(mean))  # another device of this worker may have seen it
        skipped = step.before.extra['skipped']
        held = step.before._replace(residual=None, extra=step.before.extra | {'skipped': skipped + 1})
        mean, after = optax.tree.where(finite, (mean, step.after), (jnp.zeros_like(mean), held))
        # Computed within the kernel that puts it back, the rest would slow down every element of the tensor.
        # XLA computes nothing into or out of a conditional, and copies no more than the block.
        old = step.selection.take(step.before.residual)
        rest = lax.cond(finite, lambda rest, _: rest, lambda _, old: old, step.rest, old)
        return mean, step._replace(rest=rest, after=after)


def hold_skipped(optimizer: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Wraps an optimizer so that a step skipped by its `error_feedback` leaves the whole state unchanged.

    Without it, a NaN that `skip_nonfinite` keeps out of the parameters stays in the momentum. If a chain
    contains several `error_feedback` links (`optax.multi_transform`), each decides for its own tensors; if
    any of them skips, the state of the other transformations is held.

    Args:
        optimizer: a chain that contains `error_feedback(..., skip_nonfinite=True)`.

    Returns:
        An `optax.GradientTransformationExtraArgs` with the same state.

    Raises:
        ValueError: in `init`, if `optimizer` contains `optax.MultiSteps`, whose accumulator would keep a NaN
            that is held back; in `update`, if no `error_feedback` in the state skips steps.

    >>> import jax.numpy as jnp, optax, def_jax
    >>> optimizer = def_jax.hold_skipped(optax.chain(
    ...     optax.sgd(1.0, momentum=0.9),
    ...     def_jax.error_feedback(def_jax.random_block(1), None, skip_nonfinite=True)))
    >>> state = optimizer.init(jnp.zeros(2))
    >>> updates, state = optimizer.update(jnp.array([jnp.nan, 1.0]), state)
    >>> updates.tolist(), optax.tree.get(state, 'trace').tolist(), int(optax.tree.get(state, 'skipped'))
    ([0.0, 0.0], [0.0, 0.0], 1)
    """
    optimizer = optax.with_extra_args_support(optimizer)

    def init_fn(params):
        state = optimizer.init(params)
        if holds(state, optax.MultiStepsState):
            raise ValueError(
                'hold_skipped: optax.MultiSteps would keep a NaN in its accumulated gradients. Accumulate '
                'gradients before the optimizer, as in docs/how_to/own_optimizer.md.'
            )
        return state

    def update_fn(updates, state, params=None, **extra_args):
        updates, new_state = optimizer.update(updates, state, params, **extra_args)
        taken, alone = step_taken(state, new_state)

        def hold(new, old):  # error_feedback has already chosen, and its count must advance
            # What workers share, such as counts, must advance on all if it does on one.
            if is_link(new) or (alone and not jnp.issubdtype(new.dtype, jnp.floating)):
                return new
            return optax.tree.where(taken, new, old)

        return updates, jax.tree.map(hold, new_state, state, is_leaf=is_link)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def step_taken(before: PyTree, after: PyTree) -> tuple[jax.Array, bool]:
    """Whether a step's update counts, bool [], from the optimizer's states, and whether only for this worker.

    With `overlap`, each worker decides for itself, since the others hear of it in the next step.
    """
    if left_out := _fields(after, 'left_out'):
        return ~jnp.any(jnp.array(left_out)), True
    counts = _fields(before, 'skipped')
    if not counts:
        raise ValueError(
            'hold_skipped: opt_state holds no residual of a def_jax.error_feedback that skips steps. Wrap a '
            'chain that ends in def_jax.error_feedback(..., skip_nonfinite=True).'
        )
    return jnp.all(jnp.array(counts) == jnp.array(_fields(after, 'skipped'))), False


def _fields(opt_state: PyTree, name: str) -> list[jax.Array]:
    extras = [getattr(state, 'extra', {}) for state in link_states(opt_state)]
    return [extra[name] for extra in extras if name in extra]


def _all_finite(tree: PyTree) -> jax.Array:
    """Whether every number in the tree is finite, at memory speed.

    x is finite if the bits of |x|, read as an integer, are below those of infinity. On CPUs, XLA fuses a
    reduction with the computation of x only over a leading axis of at most 32, where it needs no tree of
    partial results; 16 is faster than 8 or 32. A sum, a logical and, or a maximum over more would first write
    all of x to memory.
    """

    def largest(leaf):
        bits = lax.bitcast_convert_type(jnp.abs(leaf.astype(jnp.float32)), jnp.int32)
        rows = bits.reshape(math.gcd(leaf.size, 16), -1)
        return rows.max(axis=0, initial=0).max(initial=0)

    infinity = np.float32(np.inf).view(np.int32)
    return jnp.all(jnp.array([largest(leaf) for leaf in jax.tree.leaves(tree)], jnp.int32) < infinity)
