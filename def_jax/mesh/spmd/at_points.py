"""A function of one worker, such as a gradient, run on all of them at once.

It is mapped by `jax.vmap`, which leaves every mesh axis but the workers' to it: its sharding constraints, its
own `jax.shard_map`, its Explicit axes. `vmap` turns convolutions into grouped ones, which are slow, so a
function that has convolutions is mapped by `jax.shard_map` instead, in which constraints name axes within a
worker alone and an inner `jax.shard_map` takes no mesh.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import jaxpr_as_fun
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from def_jax.error_feedback import ErrorFeedbackState, detached_params
from def_jax.mesh.link import link_states
from def_jax.mesh.specs import spec_axes
from def_jax.mesh.spmd.trained import combined
from def_jax.mesh.varying import axis_names
from def_jax.mesh.worker_mesh import WorkerMesh
from def_jax.traffic.traced import inner_programs
from def_jax.types import PyTree

# What JAX says of a PartitionSpec for which there is no mesh.
_WITHOUT_MESH = ('requires a non-empty mesh', 'not under a mesh context')
# And of the types of an inner `jax.shard_map` that `jax.vmap` maps, before JAX 0.10.
_OF_TYPES = ('requires varying manual axes to match', '_psum_invariant')

# And of an array that a `jax.shard_map` reads from around it.
_CLOSES_OVER = ('Closing over inputs to shard_map', 'should match the aval mesh')

__all__ = ['check_arguments', 'detaches', 'divide', 'placed_gradients', 'point', 'run']


def check_arguments(split: tuple[int, ...], keys: tuple[int, ...]) -> None:
    """Raises ValueError unless both are positions of arguments after the first, and disjoint."""
    for name, places in (('split', split), ('keys', keys)):
        if not isinstance(places, tuple) or not all(isinstance(i, int) and i > 0 for i in places):
            raise ValueError(
                f'{name}={places!r} must be a tuple of positions in the arguments of the function, from 1: '
                'argument 0 are the parameters.'
            )
    if both := sorted(set(split) & set(keys)):
        raise ValueError(f'{split=} and {keys=} both name argument {both[0]}: it is divided, or it is a key.')


def point(params: PyTree, state: PyTree) -> PyTree:
    """Where a worker takes its gradient: x + λ·r_k, or x for links without a residual."""
    return detached_params(params, state) if detaches(state) else params


def detaches(state: PyTree) -> bool:
    """Whether an optimizer of that state takes its gradient at detached points."""
    return any(isinstance(link, ErrorFeedbackState) for link in link_states(state))


def run(
    workers: WorkerMesh,
    function: Callable,
    points: PyTree,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    split: tuple[int, ...],
    keys: tuple[int, ...],
) -> PyTree:
    """`function(point, *args, **kwargs)` of every worker, with results stacked.

    Args:
        workers: how the mesh divides into workers.
        function: what one worker does.
        points: stacked over workers.
        args: those of `split` are divided among the workers, those of `keys` folded with the worker's number,
            and the rest, like the first, are the same for all.
        kwargs: the same for all.
        split: positions in `args`, from 1.
        keys: likewise.
    """
    given = dict(enumerate(args))
    if missing := sorted(set(split + keys) - set(given)):
        raise ValueError(
            f'{split=} and {keys=} name argument {missing[0]}, but there are {len(args) - 1} after the '
            'parameters. Pass the batch as an argument of the function instead of closing over it.'
        )
    divided = {i: divide(workers, given[i], f'argument {i}' if len(args) > 2 else 'batch') for i in split}
    numbers = workers.place(jnp.arange(workers.num_workers), P(workers.axis_name))
    same = given | dict.fromkeys(split), kwargs
    arrays = jax.tree.map(functools.partial(_shared, workers), same)

    def worker(mine, arrays):
        point, divided, number = mine
        given, kwargs = combined(same, arrays)
        folded = {i: jax.tree.map(lambda key: _folded(key, number), given[i]) for i in keys}
        return function(point, *(given | divided | folded).values(), **kwargs)

    return _on_workers(workers, worker, (points, divided, numbers), arrays)


def _folded(key: jax.Array, number: jax.Array) -> jax.Array:
    """A worker's key; of an array of keys, such as those of stacked layers, each."""

    def fold(key):
        return jax.random.fold_in(key, number)

    for _ in range(key.ndim - (not jnp.issubdtype(key.dtype, jax.dtypes.prng_key))):
        fold = jax.vmap(fold)
    return fold(key)


def _shared(workers: WorkerMesh, x: Any) -> jax.Array | None:
    """An array where all workers can take it, as an argument of the mapped function; None for others."""
    if not isinstance(x, jax.Array):
        return None
    if workers.explicit and spec_axes(jax.typeof(x).sharding.spec) & set(workers.names):
        return workers.place(x, P())
    return x


def _on_workers(workers: WorkerMesh, worker: Callable, stacked: PyTree, shared: PyTree) -> PyTree:
    """`worker(mine, shared)` of all workers, with results stacked."""
    axis, size = workers.axis_name, workers.num_workers
    mapped = jax.vmap(worker, in_axes=(0, None), spmd_axis_name=axis, axis_size=size)
    traced = _traced(workers, mapped, (stacked, shared))
    if traced is None or _has_convolutions(traced[0].jaxpr):
        return _by_shard_map(workers, worker, stacked, shared)
    program, shapes = traced
    flat = jaxpr_as_fun(program)(*jax.tree.leaves((stacked, shared)))
    return jax.tree.unflatten(jax.tree.structure(shapes), flat)


def _by_shard_map(workers: WorkerMesh, worker: Callable, stacked: PyTree, shared: PyTree) -> PyTree:
    try:
        return workers.map(worker, (True, False), True)(stacked, shared)
    except (NotImplementedError, ValueError) as error:
        if not any(part in str(error) for part in _CLOSES_OVER):
            raise
        raise ValueError(
            'the function reads an array on the mesh that is none of its arguments. On Explicit axes, one '
            'with convolutions cannot: pass the array as an argument, which all workers share unless split '
            'or keys names it.'
        ) from error


def _traced(workers: WorkerMesh, mapped: Callable, args: tuple[PyTree, ...]) -> Any:
    """The program, and the shapes of its results; None if `jax.vmap` cannot map it on Explicit axes."""
    try:
        return jax.make_jaxpr(mapped, return_shape=True)(*args)
    except Exception as error:
        kind, text = type(error).__name__, str(error)
        if any(part in text for part in _WITHOUT_MESH) and jax.sharding.get_abstract_mesh().empty:
            with jax.sharding.use_abstract_mesh(workers.mesh.abstract_mesh):  # as within a `jax.shard_map`
                return _traced(workers, mapped, args)
        twice = kind == 'DuplicateSpecError' and any(
            f'`{name}`' in text for name in axis_names(workers.axis_name)
        )
        if twice or 'spmd_axis_name' in text:
            raise ValueError(
                f'a sharding constraint of the function names {workers.axis_name!r}, the axis over workers: '
                f'each runs it on its own part, so it may name {sorted(workers.inside)} alone.'
            ) from error
        if jax.__version_info__ < (0, 10) and any(part in text for part in _OF_TYPES):
            raise ValueError(
                'the function has a jax.shard_map, whose types cannot be mapped over workers before JAX 0.10 '
                f'(here {jax.__version__}): pass check_vma=False to it, or update JAX.'
            ) from error
        if kind == 'ShardingTypeError':  # the groups of a convolution, for one
            return None
        raise


def divide(workers: WorkerMesh, batch: PyTree, name: str) -> PyTree:
    """A batch whose leading axis is divided among the workers: [n, ...] becomes [K, n / K, ...].

    Raises:
        ValueError: if an array has no leading axis, or one that K does not divide.
    """
    size = workers.num_workers

    def part(path, x):
        shape = jnp.shape(x)
        if not shape or shape[0] % size:
            raise ValueError(
                f'{name}{jax.tree_util.keystr(path)} has shape {shape}, but its leading axis is divided '
                f'among {size} workers, so that many must divide it: drop or pad a smaller last batch. Leave '
                'what all workers need out of split, or let loss_fn close over it.'
            )
        parts = (size, shape[0] // size, *shape[1:])
        if not workers.explicit:
            free = (P.UNCONSTRAINED,) * len(shape)
            return lax.with_sharding_constraint(
                jnp.reshape(x, parts), NamedSharding(workers.mesh, P(workers.axis_name, *free))
            )
        x = x if isinstance(x, jax.core.Tracer) else workers.place(x, P(workers.axis_name))
        first, *rest = (*jax.typeof(x).sharding.spec, *[None] * len(shape))[: len(shape)]
        axes = first if isinstance(first, tuple) else (first,)
        if axes[: len(workers.names)] != workers.names:
            x, axes, rest = workers.place(x, P(workers.axis_name)), workers.names, []
        within = axes[len(workers.names) :] or None
        to = NamedSharding(workers.mesh, P(workers.axis_name, within, *rest))
        return lax.reshape(x, parts, out_sharding=to)

    return jax.tree_util.tree_map_with_path(part, batch)


def placed_gradients(workers: WorkerMesh, results: PyTree, points: PyTree, specs: PyTree) -> PyTree:
    """The results, of which every part that is like the points is sharded as `specs` says."""
    structure: Any = jax.tree.structure(points)
    shapes = [x.shape for x in jax.tree.leaves(points)]

    def is_gradient(node):
        return (
            jax.tree.structure(node) == structure and [jnp.shape(x) for x in jax.tree.leaves(node)] == shapes
        )

    def place(node):
        return workers.place(node, specs) if is_gradient(node) else node

    return jax.tree.map(place, results, is_leaf=is_gradient)


def _has_convolutions(program: Any) -> bool:
    return any(
        equation.primitive.name == 'conv_general_dilated'
        or any(map(_has_convolutions, inner_programs(equation)))
        for equation in program.eqns
    )
