"""A link: a transformation that communicates, on whole tensors or on shards, and what it checks of them.

A worker may be several devices, each of which holds a shard of every tensor, and the compiler decides how
they share the work. To cut a block out of a sharded tensor, it would gather the tensor. So a link that cuts
blocks maps itself over the worker's devices, too, and cuts from each shard.
"""

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import NamedSharding
from jax.tree_util import keystr

from def_jax.ground.collectives import (
    Group,
    check_axis_name,
    check_inside,
    check_not_summed,
    divided,
    group_of,
    vary_if_tracked,
)
from def_jax.ground.types import AxisName, PyTree
from def_jax.state.specs import spec_axes, specs_like


def link(
    init: Callable[[PyTree], Any],
    step: Callable[..., tuple[PyTree, Any]],
    axis_name: AxisName,
    state_type: Any,
    *,
    local: Callable[..., tuple[PyTree, PyTree]] | None = None,
    inside: AxisName | int = None,
    by_shards: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """A transformation that runs `step` on every worker, on whole tensors or `by_shards` of each device.

    `step` maps a worker's updates, its state, x, or None where that is unknown, and the `Shards` to what all
    workers apply and the new state, whose property `per_worker` names the fields that differ. `local` maps a
    gradient at the detached point, the state, x, the `Shards` and extra arguments to those updates and the
    new value of the state's field `inner`.
    """
    check_axis_name(axis_name)
    check_inside(inside, axis_name)

    def init_fn(params):
        state = init(params)
        own = {name: vary_if_tracked(getattr(state, name), axis_name) for name in state.per_worker}
        return state._replace(**own)

    def update_fn(updates, state, params=None, **extra_args):
        if not isinstance(state, state_type):
            raise ValueError(
                f'state is a {type(state).__name__}, but must be {state_type.__name__}, as init of the same '
                'link returns it. The state of a chain belongs to the chain.'
            )
        shards = _shards(axis_name, inside)
        check_not_summed(updates, axis_name)

        def one_step(updates, state, params):
            applied, state = step(updates, state, params, shards)
            return optax.tree.cast_like(applied, updates), state

        if local is None:
            if extra_args.get('weight') is not None:
                raise ValueError(
                    f'weight= has no effect on {type(state).__name__}, whose link takes a plain mean over '
                    "workers. Leave it out, and multiply each worker's gradient by K·w_k / Σ w before."
                )
            return shards.run(one_step, updates, state, params, by_shards)
        updates, inner = local(updates, state, params, shards, **extra_args)
        applied, state = shards.run(one_step, updates, state._replace(inner=()), params, by_shards)
        return applied, state._replace(inner=inner)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


class Shards(NamedTuple):
    """Who exchanges a worker's messages, and how its devices share its tensors."""

    workers: AxisName | Group  # the devices at one place in all workers
    within: Group  # a worker's devices
    specs: PyTree = None  # PartitionSpecs like params, of axes of `within`; None unless the compiler shards

    def run(
        self, update: Callable, updates: PyTree, state: PyTree, params: PyTree, by_shards: bool
    ) -> tuple[PyTree, PyTree]:
        """`update(updates, state, params)` on whole tensors or every shard; Explicit axes are Auto inside."""
        if by_shards and self.specs is not None and self.within.names:
            update_specs = self._specs_of(updates)
            specs = (update_specs, specs_like(state, updates, update_specs))
            given = (*specs, None if params is None else update_specs)
            update = jax.shard_map(
                update, axis_names=set(self.within.names), in_specs=given, out_specs=specs, check_vma=False
            )
        shardings = jax.tree.map(lambda x: jax.typeof(x).sharding, (updates, state))
        meshes = [to.mesh for to in jax.tree.leaves(shardings) if to.mesh.explicit_axes]
        if meshes:
            placed = jax.tree.map(lambda to: NamedSharding(meshes[0], to.spec), shardings)
            update = jax.sharding.auto_axes(update, axes=meshes[0].explicit_axes, out_sharding=placed)
        return update(updates, state, params)

    def holders(self, like: PyTree) -> list[Group]:
        """For every tensor, the devices of this worker that hold the same part of it."""
        if self.specs is None or not self.within.names:
            return [self.within] * len(jax.tree.leaves(like))
        held = [spec_axes(spec) for spec in jax.tree.leaves(self._specs_of(like))]
        return [Group(tuple(n for n in self.within.names if n not in axes)) for axes in held]

    def _specs_of(self, tree: PyTree) -> PyTree:
        """The specs of a tree that has all leaves of the parameters or some of them."""
        known = dict(jax.tree.leaves_with_path(self.specs))

        def spec(path, _):
            if path not in known:
                raise ValueError(
                    f'def_jax.spmd: a link got updates{keystr(path)}, which is no leaf of the parameters. '
                    'Transformations before it must keep their structure: no optax.flatten.'
                )
            return known[path]

        return jax.tree.map_with_path(spec, tree)


# Of the worker whose step is traced, if the compiler shards its tensors. No argument: a chain, a wrapper of
# the user's, and a link around another one would all have to pass it on.
_CURRENT: ContextVar[Shards | None] = ContextVar('shards', default=None)


def _shards(axis_name: AxisName, inside: AxisName | int) -> Shards:
    shards = _CURRENT.get()
    if shards is None:
        return Shards(*divided(axis_name, inside))
    if group_of(axis_name) != group_of(shards.workers):
        raise ValueError(
            f'{axis_name=} of a link differs from axis_name={shards.workers!r} of def_jax.spmd. Pass the '
            'same to both.'
        )
    if inside is not None:
        raise ValueError(
            f'{inside=} is for jax.pmap and jax.shard_map. def_jax.spmd knows the devices of a worker from '
            'its mesh: leave inside= out.'
        )
    return shards


@contextlib.contextmanager
def sharded(shards: Shards | None) -> Iterator[None]:
    """Traces links for workers whose devices share tensors like this, whatever wraps the links."""
    token = _CURRENT.set(shards)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def float32_zeros(params: PyTree) -> PyTree:
    """Zeros like the parameters, a residual's first value, after a check that float32 can hold theirs."""
    check_floating(params, 'params')
    return jax.tree.map(lambda x: jnp.zeros_like(x, jnp.float32), params)


def float32_updates(updates: PyTree, like: PyTree) -> PyTree:
    """The updates in float32, after a check that they have the shapes of `like`, a part of the state."""
    check_updates(updates, like)
    check_floating(updates, 'updates')
    return jax.tree.map(lambda u: u.astype(jnp.float32), updates)


_NO_PARAMETER = (
    'Of complex arrays, put optax.contrib.split_real_and_imaginary around the link; leave others to another '
    'optimizer, with optax.multi_transform.'
)


def check_floating(tree: Any, name: str, cure: str = _NO_PARAMETER) -> None:
    """Raises ValueError for leaves that a float32 residual cannot hold, or that cannot take its values."""
    for path, leaf in jax.tree.leaves_with_path(tree):
        kind = getattr(leaf, 'dtype', type(leaf).__name__)
        if not hasattr(leaf, 'dtype') or not jnp.issubdtype(kind, jnp.floating):
            raise ValueError(f'{name}{keystr(path)} is {kind}, but must be a floating-point array. {cure}')
        if jnp.dtype(kind).itemsize < 2:  # JAX adds nothing to these unasked
            must = 'must have 16 bits or more. Keep it in bfloat16, and cast it in the loss.'
            raise ValueError(f'{name}{keystr(path)} is {kind}, but {must}')


def check_updates(updates: Any, residual: Any, name: str = 'updates') -> None:
    """Raises ValueError unless a tree has exactly the residual's structure and shapes; never broadcasts."""
    remedy = (
        'It belongs to other parameters, or is stacked over workers. Pass the state returned by '
        'optimizer.init(params); if workers are stacked, call this inside the mapped function.'
    )
    check_like(name, updates, residual, remedy, 'the residual in opt_state is')


def check_like(name: str, tree: Any, expected: Any, remedy: str, other: str = 'must be') -> None:
    """Raises ValueError unless a tree has the structure and the shapes of `expected`.

    What is below a node that `optax.masked` leaves to others may be there or not.
    """
    given, wanted = (
        {path: jnp.shape(x) for path, x in jax.tree.leaves_with_path(one)} for one in (tree, expected)
    )
    nodes = jax.tree.leaves_with_path(expected, is_leaf=is_masked)
    masked = [path for path, node in nodes if is_masked(node)]
    for path in wanted | given:
        here, there = given.get(path, 'not there'), wanted.get(path, 'not there')
        if here != there and not any(path[: len(start)] == start for start in masked):
            raise ValueError(f'{name}{keystr(path)} is {here}, but {other} {there}. {remedy}')
    structures: Any = [jax.tree.structure(one) for one in (tree, expected)]
    if not masked and structures[0] != structures[1]:
        raise ValueError(f'{name} has the structure {structures[0]}, but {other} {structures[1]}. {remedy}')


def is_masked(node: Any) -> bool:
    """Whether optax.masked leaves what is below a node to others."""
    return isinstance(node, optax.MaskedNode)
