"""A link: a transformation that communicates. What all of them check, and what their states are made of.

A worker may be several devices, each of which holds a shard of every tensor. `def_jax.spmd` maps a step over
workers and leaves it to the compiler how a worker's devices share the work. A block that lies anywhere in a
sharded tensor is the exception: to cut it out, the compiler would gather the tensor. So a link that cuts
blocks maps itself over the worker's devices, too, and cuts from each shard.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jax.tree_util import DictKey, GetAttrKey, keystr

from def_jax.mesh.collectives import OWN_PARAMS, axis_names, check_axis_name, check_not_summed
from def_jax.mesh.specs import spec_axes, specs_like
from def_jax.types import AxisName, PyTree

__all__ = [
    'Shards',
    'check_floating',
    'check_nothing_precedes',
    'check_surroundings',
    'check_updates',
    'current_shards',
    'float32_updates',
    'float32_zeros',
    'in_memory',
    'is_link',
    'is_masked',
    'link',
    'link_states',
    'per_worker_leaves',
    'replicated_leaves',
    'sharded',
]


def link(
    init: Callable[[PyTree], Any],
    step: Callable[[PyTree, Any], tuple[PyTree, Any]],
    axis_name: AxisName,
    state_type: Any = object,
    *,
    local: Callable[..., tuple[PyTree, PyTree]] | None = None,
    point: str = OWN_PARAMS,
    by_shards: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """A transformation that runs `step` on every worker, on whole tensors or on each device's shards.

    Args:
        init: the first state, from the parameters.
        step: maps a worker's updates and state to what all workers apply and its new state.
        axis_name: the axis over workers, a tuple of axes, or None for a single worker.
        state_type: of the state. Its property `per_worker` names the fields that differ between workers.
        local: maps a worker's gradient, the state, the parameters and extra arguments to what `step` is given
            and the new value of the state's field `inner`.
        point: where its users take gradients, for an error.
        by_shards: whether each device of a worker runs it on its own shards; otherwise tensors are whole.

    Raises:
        ValueError: if `axis_name` is not a name; in `update`, if it is not that of `def_jax.spmd`, the state
            is another link's, or updates have been summed over workers.
    """
    check_axis_name(axis_name)

    def one_step(updates, state):
        applied, state = step(updates, state)
        return optax.tree.cast_like(applied, updates), state

    def update_fn(updates, state, params=None, **extra_args):
        if not isinstance(state, state_type):
            raise ValueError(
                f'state is a {type(state).__name__}, but must be {state_type.__name__}, as init of the same '
                'link returns it. The state of a chain belongs to the chain.'
            )
        shards = current_shards()
        shards.check_axis_name(axis_name)
        check_not_summed(updates, axis_name, point)
        run = shards.map if by_shards else shards.whole
        if local is None:
            return run(one_step, updates, state)
        updates, inner = local(updates, state, params, extra_args)
        applied, state = run(one_step, updates, state._replace(inner=()))
        return applied, state._replace(inner=inner)

    return optax.GradientTransformationExtraArgs(init, update_fn)


class Shards(NamedTuple):
    """How a worker's devices share its tensors; the default is a worker of one device."""

    workers: AxisName = None  # the mesh axes over workers
    axes: tuple[str, ...] = ()  # the mesh axes over a worker's devices
    specs: PyTree = P()  # PartitionSpecs like params, which name only `axes`

    def check_axis_name(self, axis_name: AxisName) -> None:
        """Raises ValueError unless a link averages over the workers, and over nothing else."""
        if self.workers is not None and axis_names(axis_name) != axis_names(self.workers):
            raise ValueError(
                f'{axis_name=} of a link differs from axis_name={self.workers!r} of def_jax.spmd, which maps '
                'it over workers. Pass the same to both.'
            )

    def whole(self, update: Callable, updates: PyTree, state: PyTree) -> tuple[PyTree, PyTree]:
        """`update(updates, state)` of a link that sees whole tensors: Explicit axes are Auto inside."""
        shardings = jax.tree.map(lambda x: jax.typeof(x).sharding, (updates, state))
        meshes = [to.mesh for to in jax.tree.leaves(shardings) if to.mesh.explicit_axes]
        if meshes:
            placed = jax.tree.map(lambda to: NamedSharding(meshes[0], to.spec), shardings)
            update = jax.sharding.auto_axes(update, axes=meshes[0].explicit_axes, out_sharding=placed)
        return update(updates, state)

    def map(self, update: Callable, updates: PyTree, state: PyTree) -> tuple[PyTree, PyTree]:
        """`update(updates, state)` of a link, on every shard; `optax.masked` may hide some of the updates."""
        if self.axes:
            update_specs = self._specs_of(updates)
            specs = (update_specs, specs_like(state, updates, update_specs))
            update = jax.shard_map(
                update, axis_names=set(self.axes), in_specs=specs, out_specs=specs, check_vma=False
            )
        return self.whole(update, updates, state)

    def all(self, flag: jax.Array) -> jax.Array:
        """Whether a condition, bool [], holds on all devices of this worker."""
        return lax.pmin(flag.astype(jnp.int32), self.axes) > 0 if self.axes else flag

    def sum(self, x: jax.Array) -> jax.Array:
        """The sum over the devices of this worker."""
        return lax.psum(x, self.axes) if self.axes else x

    def shares(self, like: PyTree) -> list[float]:
        """For every tensor, 1/r if r devices of this worker hold each of its elements."""
        if not self.axes:
            return [1.0] * len(jax.tree.leaves(like))
        held = [spec_axes(spec) for spec in jax.tree.leaves(self._specs_of(like))]
        return [1 / lax.axis_size(tuple(n for n in self.axes if n not in axes)) for axes in held]

    def _specs_of(self, tree: PyTree) -> PyTree:
        """The specs of a tree that has all leaves of the parameters or some of them."""
        known = dict(jax.tree_util.tree_leaves_with_path(self.specs))

        def spec(path, _):
            if path not in known:
                raise ValueError(
                    f'def_jax.spmd: a link got updates{keystr(path)}, which is no leaf of the '
                    'parameters. Under spmd, transformations before it must keep their structure: no '
                    'optax.flatten.'
                )
            return known[path]

        return jax.tree_util.tree_map_with_path(spec, tree)


_CURRENT: ContextVar[Shards] = ContextVar('shards', default=Shards())  # noqa: B039


def current_shards() -> Shards:
    """How the worker whose step is traced shares its tensors."""
    return _CURRENT.get()


@contextlib.contextmanager
def sharded(shards: Shards) -> Iterator[None]:
    """Traces links for workers whose devices share tensors like this, whatever wraps the links."""
    token = _CURRENT.set(shards)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def is_link(node: Any) -> bool:
    """Whether a node of an optimizer's state belongs to a link."""
    return isinstance(node, tuple) and hasattr(node, 'per_worker')


def link_states(opt_state: PyTree) -> list[Any]:
    """The states of all links in an optimizer's state, in order."""
    return [node for node in jax.tree.leaves(opt_state, is_leaf=is_link) if is_link(node)]


def per_worker_leaves(opt_state: PyTree) -> PyTree:
    """Booleans like the state: True where links say that workers differ, and before a bare link."""

    def flags(node: Any) -> PyTree:
        if is_link(node):
            named = [(GetAttrKey(name),) for name in node.per_worker]
            entries = [(GetAttrKey('extra'), DictKey(name)) for name in node.per_worker]
            return jax.tree_util.tree_map_with_path(
                lambda path, _: path[:1] in named or path[:2] in entries, node
            )
        if not _is_chain(node):
            return False
        bare = max((i for i, part in enumerate(node) if _is_bare(part)), default=0)
        return tuple(
            jax.tree.map(lambda _: True, part) if i < bare and not is_link(part) else per_worker_leaves(part)
            for i, part in enumerate(node)
        )

    return jax.tree.map(flags, opt_state, is_leaf=lambda node: is_link(node) or _is_chain(node))


def replicated_leaves(opt_state: PyTree) -> list[jax.Array]:
    """What must be the same on all workers."""
    leaves, own = jax.tree.leaves(opt_state), jax.tree.leaves(per_worker_leaves(opt_state))
    return [leaf for leaf, mine in zip(leaves, own, strict=True) if not mine]


def check_surroundings(opt_state: PyTree, caller: str) -> None:
    """Raises ValueError if what surrounds or follows a link can't work, as far as its state tells."""
    for node in jax.tree.leaves(opt_state, is_leaf=lambda node: type(node) in _AROUND):
        if type(node) in _AROUND and link_states(node):
            raise ValueError(f'{caller}: the optimizer that communicates is inside {_AROUND[type(node)]}')
    for chain in _chains(opt_state):
        bare = [i for i, part in enumerate(chain) if _is_bare(part)]
        after = jax.tree.leaves(chain[bare[-1] + 1 :] if bare else ())
        if any(jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.ndim for leaf in after):
            raise ValueError(
                f'{caller}: an optimizer stands after def_jax.error_feedback in the chain, so that it is '
                'given updates in place of gradients. Pass it to error_feedback as inner= instead.'
            )


def check_nothing_precedes(opt_state: PyTree) -> None:
    """Raises ValueError if per-worker state stands before a link in a chain, where nothing declares it so."""
    for chain in _chains(opt_state):
        last = max(i for i, part in enumerate(chain) if is_link(part))
        before = [part for part in chain[:last] if not is_link(part)]
        if any(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(before)):
            raise ValueError(
                'a transformation with a state of its own precedes the link in the chain. Its state differs '
                'between workers, as their gradients do: pass it to def_jax.error_feedback as inner=, e.g. '
                'error_feedback(..., inner=optax.sgd(0.1, momentum=0.9)). After def_jax.all_reduce_mean and '
                'other links of gradients, put it behind the link.'
            )


_AROUND: dict[type, str] = {
    optax.ApplyIfFiniteState: 'optax.apply_if_finite, which decides on each worker for itself: workers would '
    'wait for each other forever. Pass skip_nonfinite=True to def_jax.error_feedback instead: it skips the '
    'step on all of them.',
    optax.MultiStepsState: 'optax.MultiSteps, which communicates at every step and may skip some on one '
    'worker alone. Pass every=... to def_jax.error_feedback, or accumulate gradients before the optimizer; '
    'def_jax.spmd has accumulate=.',
}


def _is_chain(node: Any) -> bool:
    return type(node) is tuple and any(map(is_link, node))


def _chains(opt_state: PyTree) -> list[Any]:
    return [node for node in jax.tree.leaves(opt_state, is_leaf=_is_chain) if _is_chain(node)]


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


_NO_PARAMETER = 'Keep it out of the parameters, or leave it to another optimizer with optax.masked.'


def check_floating(tree: Any, name: str, cure: str = _NO_PARAMETER) -> None:
    """Raises ValueError for leaves that a float32 residual cannot hold, or that cannot take its values."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        dtype, where = getattr(leaf, 'dtype', None), f'{name}{keystr(path)}'
        if dtype is not None and jnp.issubdtype(dtype, jnp.complexfloating):
            raise ValueError(
                f'{where} is {dtype}, but residuals are float32 and would lose its imaginary part. Store '
                'real and imaginary parts as two real arrays.'
            )
        if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(
                f'{where} is {dtype or type(leaf).__name__}, but must be a floating-point array. {cure}'
            )


def check_updates(updates: Any, residual: Any, name: str = 'updates') -> None:
    """Raises ValueError unless a tree has exactly the residual's structure and shapes; never broadcasts."""
    given, kept = (
        {path: jnp.shape(x) for path, x in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in (updates, residual)
    )
    for path, shape in kept.items():
        if given.get(path) != shape:
            raise ValueError(
                f'{name}{keystr(path)} is {given.get(path, "missing")}, but the residual in opt_state is '
                f'{shape}: it belongs to other parameters, or is stacked over workers. Pass the state '
                'returned by optimizer.init(params); if workers are stacked, call this inside the mapped '
                'function.'
            )
    places = jax.tree_util.tree_leaves_with_path(residual, is_leaf=is_masked)
    masked = [path for path, node in places if is_masked(node)]
    for path in given.keys() - kept.keys():
        if not any(path[: len(start)] == start for start in masked):
            raise ValueError(
                f'{name}{keystr(path)} has no residual in opt_state, which belongs to other parameters. Pass '
                'the state returned by optimizer.init(params).'
            )


def is_masked(node: Any) -> bool:
    """Whether optax.masked leaves what is below a node to others."""
    return isinstance(node, optax.MaskedNode)


def in_memory(tree: PyTree, platforms: Sequence[str] = ('cuda', 'rocm')) -> PyTree:
    """The tree, each leaf in memory as it is, on these platforms.

    Where a bitcast removes and adds a worker's axis, XLA for GPUs does not see that moments are results. It
    computes them again in every kernel that reads them, and copies the old ones for that. It decodes a
    message of few bits again in the kernel of every tensor. On CPUs the barrier itself would make copies.
    """
    return lax.platform_dependent(tree, default=_same, **dict.fromkeys(platforms, _barriers))


def _barriers(tree: PyTree) -> PyTree:
    return jax.tree.map(lax.optimization_barrier, tree)


def _same(tree: PyTree) -> PyTree:
    return tree
