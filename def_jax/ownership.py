"""Which leaves of an optimizer's state are a worker's own, and which all workers share.

A *link* is the transformation of a chain that communicates. Its state says in `per_worker` which of its
fields are a worker's own. What comes before a link in a chain has seen local gradients only, so what it
keeps is a worker's own; what comes after it has seen what all workers agree on.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec as P

PyTree = Any

__all__ = ['is_link', 'link_states', 'own_leaves', 'state_specs']


def is_link(node: Any) -> bool:
    """Whether a node of an optimizer's state belongs to a link that communicates."""
    return isinstance(node, tuple) and hasattr(node, 'per_worker')


def link_states(opt_state: PyTree) -> list[Any]:
    """The states of all links in an optimizer's state, in its order."""
    return [node for node in jax.tree.leaves(opt_state, is_leaf=is_link) if is_link(node)]


def own_leaves(optimizer: optax.GradientTransformation, params: PyTree) -> PyTree:
    """Which leaves of an optimizer's state differ between workers.

    Args:
        optimizer: a transformation that holds a link: `error_feedback`, `ef21` or `all_reduce_mean`.
        params: a pytree of arrays or of `jax.ShapeDtypeStruct`.

    Returns:
        A pytree like `optimizer.init(params)` of Python booleans.

    Raises:
        ValueError: if no link communicates.

    >>> import jax.numpy as jnp, def_jax
    >>> own_leaves(def_jax.ef21(def_jax.random_block(2), None), jnp.zeros(4))
    EF21State(step=False, key=False, local=True, mean=False)
    """
    state = jax.eval_shape(optimizer.init, params)
    if not link_states(state):
        raise ValueError(
            'the optimizer holds no link that communicates, so its workers would drift apart. Add '
            'def_jax.error_feedback(...) at the end of the chain, or def_jax.all_reduce_mean(...) at '
            'its start.'
        )
    # Floating-point scalars count as own, too: some optimizers estimate step sizes from local gradients.
    flags = optax.tree_map_params(
        optimizer, lambda _: True, state, transform_non_params=lambda x: jnp.issubdtype(x.dtype, jnp.floating)
    )
    return _own(flags)


def state_specs(
    optimizer: optax.GradientTransformation,
    params: PyTree,
    param_specs: PyTree = P(),  # noqa: B008
    axis_name: str | tuple[str, ...] = 'workers',
) -> PyTree:
    """PartitionSpecs of an optimizer's state whose workers are stacked, for `jax.shard_map` or `jax.jit`.

    Args:
        optimizer: a transformation that holds a link, see `own_leaves`.
        params: a pytree of arrays or of `jax.ShapeDtypeStruct`.
        param_specs: a PartitionSpec for all parameters, or a pytree of them like `params`: how a worker
            shards
            them among its own devices.
        axis_name: the mesh axis over workers, or a tuple of axes.

    Returns:
        A pytree like `optimizer.init(params)`. What is a worker's own has `axis_name` in front, since
        workers are stacked along a new leading axis; what all workers share has not.

    Raises:
        ValueError: if no link communicates, or a spec names the workers' axis.

    >>> import jax.numpy as jnp, optax, def_jax
    >>> chain = optax.chain(optax.trace(0.9), def_jax.error_feedback(def_jax.random_block(2), 'workers'))
    >>> specs = state_specs(chain, jnp.zeros(4))
    >>> specs[0].trace, specs[1].residual, specs[1].step
    (PartitionSpec('workers',), PartitionSpec('workers',), PartitionSpec())
    """
    names = (axis_name,) if isinstance(axis_name, str) else tuple(axis_name)
    for spec in jax.tree.leaves(param_specs, is_leaf=_is_spec):
        if used := set(names) & set(jax.tree.leaves(tuple(spec))):
            raise ValueError(
                f'{param_specs=} names {sorted(used)}, the axis over workers, but all workers hold the same '
                'parameters. Name only axes within a worker.'
            )
    if _is_spec(param_specs):
        param_specs = jax.tree.map(lambda _: param_specs, params)
    state = jax.eval_shape(optimizer.init, params)
    specs = optax.tree_map_params(
        optimizer,
        lambda _, spec: spec,
        state,
        param_specs,
        transform_non_params=lambda _: P(),
    )

    def stacked(own: bool, spec: P) -> P:
        return P(axis_name, *spec) if own else spec

    return jax.tree.map(stacked, own_leaves(optimizer, params), specs)


def _is_spec(node: Any) -> bool:
    return isinstance(node, P)


def _own(node: PyTree) -> PyTree:
    """Flags as they are outside of chains; False behind the last link of a chain; a link's by declaration."""
    if is_link(node):
        fields = {
            name: jax.tree.map(lambda _, own=name in node.per_worker: own, field)
            for name, field in node._asdict().items()
        }
        return node._replace(**fields)
    if type(node) is tuple and any(links := [bool(link_states(part)) for part in node]):
        last = len(links) - 1 - links[::-1].index(True)
        shared = [jax.tree.map(lambda _: False, part) for part in node[last + 1 :]]
        return (*map(_own, node[: last + 1]), *shared)
    if not link_states(node):
        return node
    children, treedef = jax.tree.flatten(node, is_leaf=lambda child: child is not node)
    return jax.tree.unflatten(treedef, [_own(child) for child in children])
