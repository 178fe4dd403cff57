"""PartitionSpecs of the parameters, in whatever form they are given, and of what is like the parameters."""

import math
from collections.abc import Collection, Mapping

import jax
import jax.numpy as jnp
from jax import P
from jax.tree_util import keystr

from def_jax.ground.arguments import named_leaves
from def_jax.ground.collectives import axis_names
from def_jax.ground.types import PyTree

_STRUCTURES = (
    'Give every parameter a PartitionSpec, or one to a subtree or to all. If only one of the two trees wraps '
    'its arrays, unwrap it: flax.nnx.as_pure(...) or flax.linen.unbox(...).'
)


def tree_of_specs(param_specs: PyTree, params: PyTree, axis_name: str | tuple[str, ...]) -> PyTree:
    """The parameters' specs as a pytree like `params`, or a ValueError if the two don't match.

    Each of `param_specs`, PartitionSpecs, NamedShardings or None, stands for all parameters below its path:
    one is enough for all, and a box around a parameter does not matter.

    >>> params = {'a': {'w': jnp.ones(4)}, 'b': jnp.ones(2)}
    >>> specs = tree_of_specs({'a': P('shard'), 'b': None}, params, 'workers')
    >>> tuple(specs['a']['w']), tuple(specs['b'])
    (('shard',), ())
    """
    check_specs(param_specs, axis_name)

    def by_name(path):  # whatever kinds of nodes it passes
        return tuple(keystr((entry,), simple=True) for entry in path)

    places = jax.tree.leaves_with_path(with_specs(param_specs))
    specs = {by_name(path): spec for path, spec in places}
    used = set()

    def spec(path, leaf):
        if not hasattr(leaf, 'shape'):
            told = f'params{keystr(path)} is a {type(leaf).__name__}, but must be an array.'
            raise ValueError(f'{told} Of an Equinox module, pass the arrays, by eqx.partition.')
        names = by_name(path)
        starts = [names[:end] for end in range(len(names) + 1) if names[:end] in specs]
        if not starts:
            raise ValueError(f'params{keystr(path)} has no PartitionSpec in param_specs. {_STRUCTURES}')
        used.add(starts[-1])
        return specs[starts[-1]]

    tree = jax.tree.map_with_path(spec, params)
    for path, given in places:
        if spec_axes(given) and by_name(path) not in used:
            raise ValueError(f'param_specs{keystr(path)} is no parameter and holds none. {_STRUCTURES}')
    return tree


def with_specs(param_specs: PyTree) -> PyTree:
    """The tree with PartitionSpecs in place of NamedShardings and None."""
    return jax.tree.map(
        lambda x: P() if x is None else getattr(x, 'spec', x), param_specs, is_leaf=lambda node: node is None
    )


def check_specs(param_specs: PyTree, axis_name: str | tuple[str, ...], known: Collection[str] = ()) -> None:
    """Raises ValueError unless all leaves are specs, of `known` axes if given, none of one over workers."""
    names = set(axis_names(axis_name))
    for spec in jax.tree.leaves(with_specs(param_specs)):
        if not isinstance(spec, P):
            raise ValueError(
                f'{param_specs=} holds {spec!r}, but its leaves must be PartitionSpecs, shardings or None.'
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
        if known and (missing := spec_axes(spec) - set(known)):
            raise ValueError(
                f'{param_specs=} names {sorted(missing)}, but the mesh has {known}. Name its axes, or make '
                'the mesh with more.'
            )


def specs_like(tree: PyTree, params: PyTree, specs: PyTree) -> PyTree:
    """Specs of an optimizer's state: a leaf's are those of the parameter of its shape that ends its path."""
    shapes = {path: leaf.shape for path, leaf in jax.tree.leaves_with_path(params)}
    known = dict(jax.tree.leaves_with_path(specs))

    def spec(path, leaf):
        ends = (path[start:] for start in range(len(path) + 1))
        alike = next((known[end] for end in ends if shapes.get(end) == leaf.shape), P())
        return alike if jnp.issubdtype(leaf.dtype, jnp.floating) else P()  # a key may have a tensor's shape

    return jax.tree.map_with_path(spec, tree)


def check_divisible(params: PyTree, specs: PyTree, mesh_shape: Mapping[str, int]) -> None:
    """Raises ValueError unless the axes that the specs name divide the parameters' dimensions."""
    for (path, leaf), spec in zip(named_leaves(params), jax.tree.leaves(specs), strict=True):
        parts = [math.prod(mesh_shape[axis] for axis in spec_axes(P(names))) for names in spec]
        uneven = any(size % part for size, part in zip(leaf.shape, parts, strict=False))
        if uneven or len(parts) > len(leaf.shape):
            raise ValueError(
                f'params{path} has shape {leaf.shape}, but {spec} cuts {len(parts)} dimensions by {parts}, '
                'of which they must be multiples. Shard another dimension, or pass P() for this parameter.'
            )


def spec_axes(spec: P) -> set[str]:
    """The names of mesh axes in a PartitionSpec.

    >>> sorted(spec_axes(P(('a', 'b'), None, 'c')))
    ['a', 'b', 'c']
    """
    return {name for name in jax.tree.leaves(tuple(spec)) if isinstance(name, str)}
