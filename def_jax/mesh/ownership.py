"""Which leaves of an optimizer's state are per-worker, and which are replicated.

A *link* is a transformation that communicates. The `per_worker` property of its state names the fields that
differ between workers. Transformations before a link in a chain see only local gradients, so their state
belongs to one worker; transformations after it see only values on which all workers agree.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec as P
from jax.tree_util import DictKey, GetAttrKey, keystr

from def_jax.mesh.shards import is_spec, spec_axes, specs_like
from def_jax.mesh.varying import axis_names

PyTree = Any

_STRUCTURES = (
    'Give every parameter a PartitionSpec, or one to a subtree or to all. If only one of the two trees wraps '
    'its arrays, unwrap it: flax.nnx.as_pure(...) or flax.linen.unbox(...).'
)

__all__ = [
    'abstract_state',
    'check_specs',
    'holds',
    'is_link',
    'link_states',
    'own_leaves',
    'spec_leaves',
    'state_specs',
    'tree_of_specs',
    'with_specs',
]


def is_link(node: Any) -> bool:
    """Whether a node of an optimizer's state belongs to a link that communicates."""
    return isinstance(node, tuple) and hasattr(node, 'per_worker')


def link_states(opt_state: PyTree) -> list[Any]:
    """The states of all links in an optimizer's state, in order."""
    return [node for node in jax.tree.leaves(opt_state, is_leaf=is_link) if is_link(node)]


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


def tree_of_specs(param_specs: PyTree, params: PyTree, axis_name: str | tuple[str, ...]) -> PyTree:
    """The parameters' specs as a pytree like `params`.

    Args:
        param_specs: PartitionSpecs, NamedShardings or None, which is `P()`. Each stands for all parameters
            below its path, so that one is enough for all, and a box around a parameter does not matter.
        params: a pytree of arrays or of `jax.ShapeDtypeStruct`.
        axis_name: the mesh axis over workers, or a tuple of axes.

    Raises:
        ValueError: if a parameter has no spec, a spec no parameter, or `check_specs` refuses one.

    >>> params = {'a': {'w': jnp.ones(4)}, 'b': jnp.ones(2)}
    >>> specs = tree_of_specs({'a': P('shard'), 'b': None}, params, 'workers')
    >>> tuple(specs['a']['w']), tuple(specs['b'])
    (('shard',), ())
    """
    check_specs(param_specs, axis_name)
    places = jax.tree_util.tree_leaves_with_path(with_specs(param_specs), is_leaf=is_spec)
    specs = {_names(path): spec for path, spec in places}
    used = set()

    def spec(path, _):
        names = _names(path)
        starts = [names[:end] for end in range(len(names) + 1) if names[:end] in specs]
        if not starts:
            raise ValueError(f'params{keystr(path)} has no PartitionSpec in param_specs. {_STRUCTURES}')
        used.add(starts[-1])
        return specs[starts[-1]]

    tree = jax.tree_util.tree_map_with_path(spec, params)
    for path, given in places:
        if spec_axes(given) and _names(path) not in used:
            raise ValueError(f'param_specs{keystr(path)} is no parameter and holds none. {_STRUCTURES}')
    return tree


def with_specs(param_specs: PyTree) -> PyTree:
    """The tree with PartitionSpecs in place of NamedShardings and None."""

    def spec(leaf):
        return P() if leaf is None else getattr(leaf, 'spec', leaf)

    return jax.tree.map(spec, param_specs, is_leaf=_is_spec_leaf)


def spec_leaves(param_specs: PyTree) -> list[Any]:
    return jax.tree.leaves(with_specs(param_specs), is_leaf=is_spec)


def _is_spec_leaf(node: Any) -> bool:
    return node is None or is_spec(node) or isinstance(node, jax.sharding.Sharding)


def _names(path: tuple[Any, ...]) -> tuple[str, ...]:
    """A path by names, whatever kinds of nodes it passes."""
    return tuple(keystr((entry,), simple=True) for entry in path)


def check_specs(param_specs: PyTree, axis_name: str | tuple[str, ...]) -> None:
    """Raises ValueError unless all leaves are specs and none names an axis over workers."""
    names = set(axis_names(axis_name))
    for spec in spec_leaves(param_specs):
        if not is_spec(spec):
            raise ValueError(
                f'{param_specs=} holds {spec!r}, but its leaves must be PartitionSpecs, NamedShardings or '
                'None.'
            )
        if P.UNCONSTRAINED in spec:
            raise ValueError(
                f'{param_specs=} has P.UNCONSTRAINED, but blocks are cut from shards that are known. Name an '
                'axis or None for every dimension.'
            )
        if used := names & spec_axes(spec):
            raise ValueError(
                f'{param_specs=} names {sorted(used)}, the axis over workers, but all workers hold the same '
                'parameters. Name only axes within a worker.'
            )


def abstract_state(optimizer: optax.GradientTransformation, params: PyTree) -> PyTree:
    """Shapes and dtypes of `optimizer.init(params)`, wherever the parameters lie."""
    return jax.eval_shape(
        optimizer.init, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    )


def holds(opt_state: PyTree, kind: type) -> bool:
    """Whether a state of this type is anywhere in an optimizer's state."""
    nodes = jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, kind))
    return any(isinstance(node, kind) for node in nodes)


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
