"""Which leaves of an optimizer's state are per-worker: those that `per_worker` of a link's state names."""

from collections.abc import Callable

import jax
import optax
from jax.sharding import PartitionSpec as P

from def_jax.mesh.link import check_nothing_precedes, check_surroundings, link_states, per_worker_leaves
from def_jax.mesh.specs import specs_like, tree_of_specs
from def_jax.types import PyTree

__all__ = [
    'abstract_state',
    'each',
    'own_leaves',
    'state_specs',
]


def own_leaves(optimizer: optax.GradientTransformation, params: PyTree) -> PyTree:
    """Booleans like `optimizer.init(params)`, True where workers differ: what links say of theirs.

    Raises:
        ValueError: if the optimizer contains no link, or something around or before one whose state would
            differ between workers.

    >>> import jax.numpy as jnp, def_jax
    >>> own_leaves(def_jax.ef21(def_jax.random_block(2), None), jnp.zeros(4))
    EF21State(step=False, key=False, local=True, mean=False)
    """
    state = abstract_state(optimizer, params)
    if not link_states(state):
        raise ValueError(
            'the optimizer holds no link that communicates, so its workers would drift apart. Wrap it in '
            'def_jax.error_feedback(..., inner=...), or put def_jax.all_reduce_mean(...) first in the chain.'
        )
    check_surroundings(state, 'def_jax')
    check_nothing_precedes(state)
    return per_worker_leaves(state)


def state_specs(
    optimizer: optax.GradientTransformation,
    params: PyTree,
    param_specs: PyTree = P(),  # noqa: B008
    axis_name: str | tuple[str, ...] = 'workers',
) -> PyTree:
    """PartitionSpecs of an optimizer's state, stacked over workers, for `jax.shard_map` or `jax.jit`.

    Args:
        optimizer: a transformation that contains a link, see `own_leaves`.
        params: a pytree of arrays or of `jax.ShapeDtypeStruct`.
        param_specs: a PartitionSpec for all parameters, or a pytree of them like `params`: how each worker
            shards them over its devices.
        axis_name: the mesh axis over workers, or a tuple of axes.

    Returns:
        A pytree like `optimizer.init(params)`. The specs of leaves that differ between workers start with
        `axis_name`, since workers are stacked along a new leading axis; those of shared leaves do not.

    Raises:
        ValueError: if the optimizer contains no link, a spec names the workers' axis, or `param_specs` has
            another structure than `params`.

    >>> import jax.numpy as jnp, optax, def_jax
    >>> blocks = def_jax.random_block(2)
    >>> specs = state_specs(def_jax.error_feedback(blocks, 'workers', inner=optax.trace(0.9)), jnp.zeros(4))
    >>> tuple(specs.inner.trace), tuple(specs.residual), tuple(specs.step)
    (('workers',), ('workers',), ())
    """
    specs = tree_of_specs(param_specs, params, axis_name)
    state = abstract_state(optimizer, params)

    def stacked(own: bool, spec: P) -> P:
        return P(axis_name, *spec) if own else spec

    return jax.tree.map(stacked, own_leaves(optimizer, params), specs_like(state, params, specs))


def abstract_state(optimizer: optax.GradientTransformation, params: PyTree) -> PyTree:
    """Shapes and dtypes of `optimizer.init(params)`, wherever the parameters lie."""
    return jax.eval_shape(
        optimizer.init, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    )


def each(function: Callable, own: PyTree, *trees: PyTree) -> PyTree:
    """`function(mine, *leaves)` over the leaves of trees, of which `own`, booleans, is a prefix.

    >>> each(lambda mine, x: x if mine else -x, {'a': True, 'b': False}, {'a': [1, 2], 'b': 3})
    {'a': [1, 2], 'b': -3}
    """

    def below(mine, *parts):
        return jax.tree.map(lambda *leaves: function(mine, *leaves), *parts)

    return jax.tree.map(below, own, *trees)
