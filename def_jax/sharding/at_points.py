"""A function of one worker, such as a gradient, run on all of them at once.

It is mapped by `jax.vmap`, which leaves every mesh axis but the workers' to it: its sharding constraints, its
own `jax.shard_map`, its Explicit axes. `vmap` turns convolutions into grouped ones, which are slow, so with
these it is `jax.shard_map`, in which constraints name axes within a worker alone and an inner one takes no
mesh.
"""

import contextlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import NamedSharding, P, lax

from def_jax.error_feedback import ErrorFeedbackState, detached_params
from def_jax.ground.jaxpr import equations
from def_jax.ground.types import PyTree
from def_jax.sharding.worker_mesh import WorkerMesh
from def_jax.state.ownership import link_states
from def_jax.state.specs import spec_axes


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
    """`function(point, *args, **kwargs)` of every worker, with stacked points and results."""
    given = dict(enumerate(args, start=1))
    if missing := sorted(set(split + keys) - set(given)):
        raise ValueError(
            f'{split=} and {keys=} name argument {missing[0]}, but there are {len(args)} after the '
            'parameters. Pass the batch as an argument of the function instead of closing over it.'
        )
    divided = {i: divide(workers, given[i], f'argument {i}' if len(args) > 1 else 'batch') for i in split}
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

    return _on_workers(workers, worker, (points, divided, numbers), jax.tree.map(shared, others))


def _folded(key: jax.Array, number: jax.Array) -> jax.Array:
    """A worker's key; of an array of keys, such as those of stacked layers, each."""
    signature = '()->()' if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else '(n)->(n)'
    return jnp.vectorize(jax.random.fold_in, excluded=(1,), signature=signature)(key, number)


def _on_workers(workers: WorkerMesh, worker: Callable, stacked: PyTree, shared: PyTree) -> PyTree:
    """`worker(mine, shared)` of all workers, with results stacked."""
    axis, size = workers.axis_name, workers.num_workers
    mapped = jax.jit(jax.vmap(worker, in_axes=(0, None), spmd_axis_name=axis, axis_size=size))
    by_shard_map = jax.jit(workers.map(worker, (True, False), True))
    context = jax.sharding.get_abstract_mesh()
    try:
        # For PartitionSpecs in the function, as within a `jax.shard_map`, where the user has set no mesh.
        with jax.sharding.use_abstract_mesh(workers.mesh.abstract_mesh if context.empty else context):
            traced = equations(mapped.trace(stacked, shared).jaxpr.jaxpr)
            if not any(equation.primitive.name == 'conv_general_dilated' for equation in traced):
                return mapped(stacked, shared)
    except Exception as error:
        with contextlib.suppress(Exception):
            if workers.explicit:  # where vmap can't map a convolution at all
                return by_shard_map(stacked, shared)
        error.add_note(
            f'def_jax.spmd runs the function on every worker, mapped over {axis!r}: its sharding constraints '
            f'may name {sorted(workers.inside) or "no axis"} alone.'
        )
        if workers.explicit:
            error.add_note(
                'On Explicit axes, a function with convolutions takes arrays such as batch_stats as '
                'arguments and must not close over them: for loss_fn(params, batch, batch_stats), '
                'dist.value_and_grad(loss_fn, has_aux=True)(params, opt_state, batch, batch_stats).'
            )
        raise
    return by_shard_map(stacked, shared)


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
