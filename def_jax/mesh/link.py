"""A link: a transformation that communicates. What all of them check, and what their states are made of."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from def_jax.checks import check_floating, check_state, check_updates
from def_jax.mesh.collectives import check_axis_name
from def_jax.mesh.shards import WHOLE, Shards
from def_jax.mesh.varying import OWN_PARAMS, check_not_summed
from def_jax.types import AxisName, PyTree

__all__ = ['float32_updates', 'float32_zeros', 'is_link', 'link', 'link_states']


def link(
    init: Callable[[PyTree], Any],
    step: Callable[[PyTree, Any, Shards], tuple[PyTree, Any]],
    axis_name: AxisName,
    state_type: type = object,
    *,
    point: str = OWN_PARAMS,
    by_shards: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """A transformation that runs `step` on every worker, on whole tensors or on each device's shards.

    Args:
        init: the first state, from the parameters.
        step: maps a worker's updates and state to what all workers apply and its new state.
        axis_name: the axis over workers, a tuple of axes, or None for a single worker.
        state_type: of the state. Its property `per_worker` names the fields that differ between workers.
        point: where its users take gradients, for an error.
        by_shards: whether a worker of several devices runs it on each of them, on that device's shards;
            otherwise the compiler divides the work, and tensors are whole.

    Returns:
        The transformation. Updates keep their dtypes. `def_jax.spmd` passes the extra argument `shards`.

    Raises:
        ValueError: if `axis_name` is not a name; in `update`, if it is not that of `def_jax.spmd`, the state
            is another link's, or updates have been summed over workers.
    """
    check_axis_name(axis_name)

    def update_fn(updates, state, params=None, *, shards: Shards = WHOLE, **extra_args):
        del params, extra_args
        check_state(state, state_type)
        shards.check_axis_name(axis_name)
        check_not_summed(updates, axis_name, point)

        def one_step(updates, state):
            applied, state = step(updates, state, shards)
            return optax.tree.cast_like(applied, updates), state

        return (shards.map if by_shards else shards.whole)(one_step, updates, state)

    return optax.GradientTransformationExtraArgs(init, update_fn)


def is_link(node: Any) -> bool:
    """Whether a node of an optimizer's state belongs to a link."""
    return isinstance(node, tuple) and hasattr(node, 'per_worker')


def link_states(opt_state: PyTree) -> list[Any]:
    """The states of all links in an optimizer's state, in order."""
    return [node for node in jax.tree.leaves(opt_state, is_leaf=is_link) if is_link(node)]


def float32_zeros(params: PyTree) -> PyTree:
    """Zeros like the parameters, a residual's first value, after a check that float32 can hold theirs."""
    check_floating(params, 'params')
    return jax.tree.map(lambda x: jnp.zeros_like(x, jnp.float32), params)


def float32_updates(updates: PyTree, like: PyTree) -> PyTree:
    """The updates in float32, after a check that they have the shapes of `like`, a part of the state."""
    check_updates(updates, like)
    check_floating(updates, 'updates')
    return jax.tree.map(lambda u: u.astype(jnp.float32), updates)
