"""A link: a transformation that communicates. What all of them check, and what their states are made of."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import DictKey, GetAttrKey

from def_jax.checks import check_floating, check_state, check_updates
from def_jax.mesh.collectives import check_axis_name
from def_jax.mesh.shards import current_shards
from def_jax.mesh.varying import OWN_PARAMS, check_not_summed
from def_jax.types import AxisName, PyTree

__all__ = [
    'check_nothing_precedes',
    'check_surroundings',
    'float32_updates',
    'float32_zeros',
    'is_link',
    'link',
    'link_states',
    'per_worker_leaves',
    'replicated_leaves',
]


def link(
    init: Callable[[PyTree], Any],
    step: Callable[[PyTree, Any], tuple[PyTree, Any]],
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
        The transformation. Updates keep their dtypes.

    Raises:
        ValueError: if `axis_name` is not a name; in `update`, if it is not that of `def_jax.spmd`, the state
            is another link's, or updates have been summed over workers.
    """
    check_axis_name(axis_name)

    def update_fn(updates, state, params=None, **extra_args):
        del params, extra_args
        check_state(state, state_type)
        shards = current_shards()
        shards.check_axis_name(axis_name)
        check_not_summed(updates, axis_name, point)

        def one_step(updates, state):
            applied, state = step(updates, state)
            return optax.tree.cast_like(applied, updates), state

        return (shards.map if by_shards else shards.whole)(one_step, updates, state)

    return optax.GradientTransformationExtraArgs(init, update_fn)


def is_link(node: Any) -> bool:
    """Whether a node of an optimizer's state belongs to a link."""
    return isinstance(node, tuple) and hasattr(node, 'per_worker')


def link_states(opt_state: PyTree) -> list[Any]:
    """The states of all links in an optimizer's state, in order."""
    return [node for node in jax.tree.leaves(opt_state, is_leaf=is_link) if is_link(node)]


def per_worker_leaves(opt_state: PyTree) -> PyTree:
    """Booleans like the state: True where links say that workers differ, and before a bare link."""

    def everywhere(mine: bool, tree: PyTree) -> PyTree:
        return jax.tree.map(lambda _: mine, tree)

    def flags(node: Any) -> PyTree:
        if is_link(node):
            named = [(GetAttrKey(name),) for name in node.per_worker]
            entries = [(GetAttrKey('extra'), DictKey(name)) for name in node.per_worker]
            return jax.tree_util.tree_map_with_path(
                lambda path, _: path[:1] in named or path[:2] in entries, node
            )
        if not _is_chain(node):
            return False
        bare = [i for i, part in enumerate(node) if _is_bare(part)]
        return tuple(
            everywhere(True, part) if bare and i < bare[-1] and not is_link(part) else per_worker_leaves(part)
            for i, part in enumerate(node)
        )

    return jax.tree.map(flags, opt_state, is_leaf=lambda node: is_link(node) or _is_chain(node))


def replicated_leaves(opt_state: PyTree) -> list[jax.Array]:
    """What must be the same on all workers."""
    leaves, own = jax.tree.leaves(opt_state), jax.tree.leaves(per_worker_leaves(opt_state))
    return [leaf for leaf, mine in zip(leaves, own, strict=True) if not mine]


def check_surroundings(opt_state: PyTree, caller: str) -> None:
    """Raises ValueError if what surrounds or follows a link can't work, as far as its state tells."""
    for kind, cure in _AROUND.items():
        nodes = jax.tree.leaves(opt_state, is_leaf=functools.partial(_is, kind))
        if any(isinstance(node, kind) and link_states(node) for node in nodes):
            raise ValueError(f'{caller}: the optimizer that communicates is inside {cure}')
    for node in jax.tree.leaves(opt_state, is_leaf=_is_chain):
        bare = [i for i, part in enumerate(node) if _is_bare(part)] if _is_chain(node) else []
        after = node[bare[-1] + 1 :] if bare else ()
        if any(jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.ndim for leaf in jax.tree.leaves(after)):
            raise ValueError(
                f'{caller}: an optimizer stands after def_jax.error_feedback in the chain, so that it is '
                'given updates in place of gradients. Pass it to error_feedback as inner= instead.'
            )


def check_nothing_precedes(opt_state: PyTree) -> None:
    """Raises ValueError if per-worker state stands before a link in a chain, where nothing declares it so."""
    for node in jax.tree.leaves(opt_state, is_leaf=_is_chain):
        links = [i for i, part in enumerate(node) if is_link(part)] if _is_chain(node) else [0]
        before = [part for part in (node[: links[-1]] if links[-1] else ()) if not is_link(part)]
        if any(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(before)):
            raise ValueError(
                'a transformation with a state of its own precedes the link in the chain. Its state differs '
                'between workers, as their gradients do: pass it to def_jax.error_feedback as inner=, e.g. '
                'error_feedback(..., inner=optax.sgd(0.1, momentum=0.9)). After def_jax.all_reduce_mean and '
                'other links of gradients, put it behind the link.'
            )


_AROUND = {
    optax.ApplyIfFiniteState: 'optax.apply_if_finite, which decides on each worker for itself: workers would '
    'wait for each other forever. Pass skip_nonfinite=True to def_jax.error_feedback instead: it skips the '
    'step on all of them.',
    optax.MultiStepsState: 'optax.MultiSteps, which communicates at every step and may skip some on one '
    'worker alone. Pass every=... to def_jax.error_feedback, or accumulate gradients before the optimizer; '
    'def_jax.spmd has accumulate=.',
}


def _is(kind: type, node: Any) -> bool:
    return isinstance(node, kind)


def _is_chain(node: Any) -> bool:
    return type(node) is tuple and any(map(is_link, node))


def _is_bare(node: Any) -> bool:
    """Whether a node is the state of a link whose optimizer is what precedes it in the chain."""
    return is_link(node) and isinstance(getattr(node, 'inner', None), optax.EmptyState)


def float32_zeros(params: PyTree) -> PyTree:
    """Zeros like the parameters, a residual's first value, after a check that float32 can hold theirs."""
    check_floating(params, 'params')
    return jax.tree.map(lambda x: jnp.zeros_like(x, jnp.float32), params)


def float32_updates(updates: PyTree, like: PyTree) -> PyTree:
    """The updates in float32, after a check that they have the shapes of `like`, a part of the state."""
    check_updates(updates, like)
    check_floating(updates, 'updates')
    return jax.tree.map(lambda u: u.astype(jnp.float32), updates)
