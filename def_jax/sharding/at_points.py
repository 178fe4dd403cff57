"""A function of one worker, such as a gradient, run on all of them at once.

By 'vmap', which leaves every mesh axis but the workers' to it: its sharding constraints, its own
`jax.shard_map`, its Explicit axes. Or by 'shard_map', which needs no rule for batches and leaves convolutions
ordinary, where vmap groups them by worker; constraints in it name axes within a worker alone, and a
`jax.shard_map` in it takes no mesh.
"""

import warnings
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import NamedSharding, P, lax

from def_jax.error_feedback import ErrorFeedbackState, detached_params
from def_jax.ground.arguments import check_choice, named_leaves
from def_jax.ground.jaxpr import equations
from def_jax.ground.random import is_typed
from def_jax.ground.types import PyTree
from def_jax.sharding.worker_mesh import WorkerMesh
from def_jax.state.link import check_floating
from def_jax.state.ownership import link_states
from def_jax.state.specs import spec_axes

Mapping = Literal['vmap', 'shard_map']
_MAPPINGS = {
    'vmap': 'leaves Explicit axes and a jax.shard_map of a mesh to the function',
    'shard_map': 'takes what has no rule for vmap, such as kernels, and leaves convolutions ordinary',
}
_REMEDIES = {
    'vmap': (
        'Convolutions on Explicit axes, kernels, callbacks and whatever else jax.vmap cannot map need '
        "mapping='shard_map', an argument of at_points and value_and_grad."
    ),
    'shard_map': (
        'It takes arrays such as batch_stats as arguments and must not close over them: for '
        'loss_fn(params, batch, batch_stats), dist.value_and_grad(loss_fn, has_aux=True)(params, opt_state, '
        'batch, batch_stats). A jax.shard_map in it takes no mesh=.'
    ),
}
_GROUPED = (
    'jax.vmap groups the convolutions of this function by worker, which makes them slow and takes several '
    "times the memory. Pass mapping='shard_map' to value_and_grad or at_points of def_jax.spmd."
)


def check_arguments(split: tuple[int, ...], keys: tuple[int, ...], mapping: Mapping) -> None:
    """Raises ValueError unless the mapping is known and both are positions after the first, and disjoint."""
    check_choice('mapping', mapping, _MAPPINGS)
    for name, places in (('split', split), ('keys', keys)):
        if not isinstance(places, tuple) or not all(isinstance(i, int) and i > 0 for i in places):
            raise ValueError(
                f'{name}={places!r} must be a tuple of positions in the arguments of the function, from 1: '
                'argument 0 are the parameters.'
            )
    if both := sorted(set(split) & set(keys)):
        raise ValueError(f'{split=} and {keys=} both name argument {both[0]}: it is divided, or it is a key.')


def without_shared_keys(function: Callable, keys: tuple[int, ...]) -> Callable:
    """A function of params, state and arguments that raises ValueError of typed keys not among `keys`."""

    def checked(params, opt_state, /, *args, **kwargs):
        for name, x in (dict(enumerate(args, start=1)) | kwargs).items():
            if name not in keys and any(map(is_typed, jax.tree.leaves(x))):
                raise ValueError(
                    f'argument {name} holds a PRNG key, of which all workers would draw the same numbers. '
                    'Name its position in keys=, as (2,) for loss_fn(params, batch, key), and it is folded '
                    'with the number of the worker. Where all are to draw the same, call at_points of '
                    'def_jax.spmd with jax.value_and_grad(loss_fn).'
                )
        return function(params, opt_state, *args, **kwargs)

    return checked


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
    mapping: Mapping,
) -> PyTree:
    """`function(point, *args, **kwargs)` of every worker, with stacked points and results."""
    given = dict(enumerate(args, start=1))
    if missing := sorted(set(split + keys) - set(given)):
        raise ValueError(
            f'{split=} and {keys=} name argument {missing[0]}, but there are {len(args)} after the '
            'parameters. Pass the batch as an argument of the function instead of closing over it.'
        )
    divided = {i: divide(workers, given[i], f'argument {i}' if len(args) > 1 else 'batch') for i in split}
    undivided = {i: x for i, x in (given | kwargs).items() if i not in split + keys}
    _check_undivided(workers.num_workers, divided, undivided)
    numbers = workers.place(jnp.arange(workers.num_workers), P(workers.axis_name))
    others = given | dict.fromkeys(split), kwargs

    def shared(x):  # an array where all workers can take it, as an argument of the mapped function
        if not isinstance(x, jax.Array):
            return None
        divided = workers.explicit and spec_axes(jax.typeof(x).sharding.spec) & set(workers.names)
        return workers.place(x, P()) if divided else x

    def worker(mine, arrays):
        point, divided, number = mine
        given, kwargs = jax.tree.map(lambda x, array: x if array is None else array, others, arrays)
        folded = {i: jax.tree.map(lambda key: _folded(key, number), given[i]) for i in keys}
        return function(point, *(given | divided | folded).values(), **kwargs)

    return _on_workers(workers, worker, mapping, (points, divided, numbers), jax.tree.map(shared, others))


def _check_undivided(size: int, divided: PyTree, others: dict[Any, Any]) -> None:
    """Warns of an array of as many rows as the batch has that all workers are given whole.

    Where its shape fits a part of the batch, by broadcasting or clamped indices, the loss would be another.
    With a row for each worker it fits whatever the loss does with it: ValueError.
    """
    rows = {size * x.shape[1] for x in jax.tree.leaves(divided) if len(x.shape) > 1}
    for i, x in others.items():
        is_key = is_typed(x) or getattr(x, 'dtype', None) == jnp.uint32
        if not isinstance(x, jax.Array | np.ndarray) or is_key or not rows.intersection(x.shape[:1]):
            continue
        found = (
            f'argument {i} has {x.shape[0]} rows, as the batch has, but is not divided among the workers: '
            'each is given all of it. Pass it within the batch, as a tuple, or name it in split of '
            'at_points. What all workers need, pass in a dict.'
        )
        if x.shape[0] == size:
            raise ValueError(found)
        if size > 1:
            warnings.warn(found, stacklevel=4)


def _folded(key: jax.Array, number: jax.Array) -> jax.Array:
    """A worker's key; of an array of keys, such as those of stacked layers, each."""
    if getattr(key, 'dtype', None) != jnp.uint32 and not is_typed(key):
        raise ValueError(
            f'keys= names an argument with {jnp.shape(key)} of {jnp.result_type(key)}, which is no PRNG key: '
            'name the position of a key from jax.random.key or PRNGKey alone, or of a tree of keys.'
        )
    signature = '()->()' if is_typed(key) else '(n)->(n)'
    return jnp.vectorize(jax.random.fold_in, excluded=(1,), signature=signature)(key, number)


def _on_workers(
    workers: WorkerMesh, worker: Callable, mapping: Mapping, stacked: PyTree, shared: PyTree
) -> PyTree:
    """`worker(mine, shared)` of all workers, with results stacked."""
    axis, size = workers.axis_name, workers.num_workers
    if mapping == 'vmap':
        mapped = jax.vmap(worker, in_axes=(0, None), spmd_axis_name=axis, axis_size=size)
    else:
        mapped = workers.map(worker, (True, False), True)
    context = jax.sharding.get_abstract_mesh()
    # For PartitionSpecs in the function, as within a `jax.shard_map`, where the user has set no mesh.
    with jax.sharding.use_abstract_mesh(workers.mesh.abstract_mesh if context.empty else context):
        try:
            program = jax.jit(mapped)
            if mapping == 'vmap' and _groups(program.trace(stacked, shared).jaxpr, size):
                warnings.warn(_GROUPED, stacklevel=4)  # where the user calls the function
            return program(stacked, shared)
        except Exception as error:
            inside = ', '.join(map(repr, sorted(workers.inside)))
            allowed = f'name only {inside}' if inside else 'not name any axis'
            error.add_note(
                f'def_jax.spmd runs the function on every worker, mapped over {axis!r} by {mapping=}: its '
                f'sharding constraints may {allowed}. ' + _REMEDIES[mapping]
            )
            raise


def _groups(program: Any, size: int) -> bool:
    """Whether a traced program has convolutions in as many groups as there are workers, or a multiple."""
    found = (each.params for each in equations(program) if each.primitive.name == 'conv_general_dilated')
    groups = [max(of['feature_group_count'], of['batch_group_count']) for of in found]
    return size > 1 and any(number % size == 0 for number in groups)


def mean(tree: PyTree, num_workers: int) -> PyTree:
    """The mean of floating-point results over workers."""
    check_floating(tree, 'tree', 'Make a float32 of a count first; leave out seeds and keys.')
    for path, x in named_leaves(tree):
        if x.shape[:1] != (num_workers,):
            raise ValueError(
                f'tree{path} has shape {x.shape}, but its leading axis must be over {num_workers} '
                'workers, as value_and_grad, at_points and map of def_jax.spmd return it.'
            )
    return jax.tree.map(lambda x: x.mean(0), tree)


def divide(workers: WorkerMesh, batch: PyTree, name: str) -> PyTree:
    """A batch whose leading axis is divided among the workers: [n, ...] becomes [K, n / K, ...]."""
    size = workers.num_workers

    def part(path, x):
        shape = jnp.shape(x)
        if not shape or shape[0] % size:
            raise ValueError(
                f'{name}{jax.tree_util.keystr(path)} has shape {shape}, but its leading axis is divided '
                f'among {size} workers: drop or pad a smaller last batch. What all workers need goes after '
                'the batch, and not through split.'
            )
        parts = (size, shape[0] // size, *shape[1:])
        if not workers.explicit:
            free = (P.UNCONSTRAINED,) * len(shape)
            return lax.with_sharding_constraint(
                jnp.reshape(x, parts), NamedSharding(workers.mesh, P(workers.axis_name, *free))
            )
        x = x if isinstance(x, jax.core.Tracer) else workers.place(x, P(workers.axis_name))
        first, *rest = jax.typeof(x).sharding.spec
        axes = first if isinstance(first, tuple) else (first,)
        if axes[: len(workers.names)] != workers.names:
            x, axes, rest = workers.place(x, P(workers.axis_name)), workers.names, []
        within = axes[len(workers.names) :] or None
        to = NamedSharding(workers.mesh, P(workers.axis_name, within, *rest))
        return lax.reshape(x, parts, out_sharding=to)

    divided = jax.tree.map_with_path(part, batch)
    if len(rows := {len(x) for x in jax.tree.leaves(batch)} - {size}) > 1:
        raise ValueError(
            f'{name} holds arrays of {sorted(rows)} rows, and all of them would be divided among {size} '
            'workers. All have as many, or one for each worker. A table that all workers need goes after the '
            'batch; arrays of other sizes that are to be divided are arguments of their own in split of '
            'at_points.'
        )
    return divided
