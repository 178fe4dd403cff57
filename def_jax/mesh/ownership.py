"""Which leaves of an optimizer's state are per-worker, and which are replicated.

The `per_worker` property of a link's state names the fields that differ between workers. Transformations
before a link in a chain see only local gradients, so their state belongs to one worker; transformations after
it see only values on which all workers agree.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec as P
from jax.tree_util import DictKey, GetAttrKey

from def_jax.mesh.link import is_link, link_states
from def_jax.mesh.specs import specs_like, tree_of_specs
from def_jax.types import PyTree

__all__ = [
    'abstract_state',
    'each',
    'holds',
    'own_leaves',
    'state_specs',
]


def own_leaves(optimizer: optax.GradientTransformation, params: PyTree) -> PyTree:
    """Which leaves of an optimizer's state differ between workers.

    Args:
        optimizer: a transformation that contains a link: `error_feedback`, `ef21` or `all_reduce_mean`.
        params: a pytree of arrays or of `jax.ShapeDtypeStruct`.

    Returns:
        A pytree like `optimizer.init(params)` of Python booleans, True where workers differ.

    Integers and booleans outside the links count as shared: they must not depend on gradients, which differ.

    Raises:
        ValueError: if the optimizer contains no link, or `optax.apply_if_finite`, whose counts depend on
            gradients.

    >>> import jax.numpy as jnp, def_jax
    >>> own_leaves(def_jax.ef21(def_jax.random_block(2), None), jnp.zeros(4))
    EF21State(step=False, key=False, local=True, mean=False)
    """
    state = abstract_state(optimizer, params)
    if not link_states(state):
        raise ValueError(
            'the optimizer holds no link that communicates, so its workers would drift apart. Add '
            'def_jax.error_feedback(...) at the end of the chain, or def_jax.all_reduce_mean(...) at '
            'its start.'
        )
    if holds(state, optax.ApplyIfFiniteState):
        raise ValueError(
            'optax.apply_if_finite decides on each worker for itself, so workers would drift apart. Pass '
            'skip_nonfinite=True to def_jax.error_feedback instead: it skips the step on all of them.'
        )
    # Floating-point scalars may differ too: some optimizers estimate step sizes from local gradients.
    flags = jax.tree.map(lambda x: jnp.issubdtype(x.dtype, jnp.floating), state)
    return _own(flags)


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
    >>> chain = optax.chain(optax.trace(0.9), def_jax.error_feedback(def_jax.random_block(2), 'workers'))
    >>> specs = state_specs(chain, jnp.zeros(4))
    >>> tuple(specs[0].trace), tuple(specs[1].residual), tuple(specs[1].step)
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


def holds(opt_state: PyTree, kind: type) -> bool:
    """Whether a state of this type is anywhere in an optimizer's state."""
    nodes = jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, kind))
    return any(isinstance(node, kind) for node in nodes)


def each(function: Callable, own: PyTree, *trees: PyTree) -> PyTree:
    """`function(mine, *leaves)` over the leaves of trees, of which `own`, booleans, is a prefix.

    >>> each(lambda mine, x: x if mine else -x, {'a': True, 'b': False}, {'a': [1, 2], 'b': 3})
    {'a': [1, 2], 'b': -3}
    """

    def below(mine, *parts):
        return jax.tree.map(lambda *leaves: function(mine, *leaves), *parts)

    return jax.tree.map(below, own, *trees)


def _own(node: PyTree) -> PyTree:
    """Flags as given outside chains, False after the last link of a chain, as declared within a link."""
    if is_link(node):
        named = [GetAttrKey(name) for name in node.per_worker]
        entries = [(GetAttrKey('extra'), DictKey(name)) for name in node.per_worker]
        return jax.tree_util.tree_map_with_path(lambda path, _: path[0] in named or path[:2] in entries, node)
    if isinstance(node, bool):
        return node
    if isinstance(node, (optax.InjectHyperparamsState, optax.InjectStatefulHyperparamsState)):
        # Set by schedules and by hand, never by gradients.
        return jax.tree.map(lambda _: False, node)._replace(inner_state=_own(node.inner_state))
    if type(node) is tuple and any(links := [bool(link_states(part)) for part in node]):
        last = len(links) - 1 - links[::-1].index(True)
        shared = [jax.tree.map(lambda _: False, part) for part in node[last + 1 :]]
        return (*map(_own, node[: last + 1]), *shared)
    children, treedef = jax.tree.flatten(node, is_leaf=lambda child: child is not node)
    return jax.tree.unflatten(treedef, [_own(child) for child in children])
