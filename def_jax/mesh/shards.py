"""A worker of several devices, each of which holds a shard of every tensor.

`def_jax.spmd` maps a step over workers and leaves it to the compiler how a worker's devices share the work.
A block that lies anywhere in a sharded tensor is the exception: to cut it out, the compiler would gather the
tensor. So a link that cuts blocks maps itself over the worker's devices, too, and cuts from each shard.
"""

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from def_jax.mesh.specs import spec_axes, specs_like
from def_jax.mesh.varying import axis_names
from def_jax.types import AxisName, PyTree

__all__ = ['Shards', 'current_shards', 'sharded']


class Shards(NamedTuple):
    """How a worker's devices share its tensors; the default is a worker of one device."""

    workers: AxisName = None  # the mesh axes over workers
    axes: tuple[str, ...] = ()  # the mesh axes over a worker's devices
    specs: PyTree = P()  # PartitionSpecs like params, which name only `axes`

    def whole(self, update: Callable, updates: PyTree, state: PyTree) -> tuple[PyTree, PyTree]:
        """`update(updates, state)` of a link that sees whole tensors."""
        return _on_auto_axes(update, updates, state)(updates, state)

    def check_axis_name(self, axis_name: AxisName) -> None:
        """Raises ValueError unless a link averages over the workers, and over nothing else."""
        if self.workers is not None and axis_names(axis_name) != axis_names(self.workers):
            raise ValueError(
                f'{axis_name=} of a link differs from axis_name={self.workers!r} of def_jax.spmd, which maps '
                'it over workers. Pass the same to both.'
            )

    def map(self, update: Callable, updates: PyTree, state: PyTree) -> tuple[PyTree, PyTree]:
        """`update(updates, state)` of a link, on every shard.

        Args:
            update: what the link does with tensors that one device holds whole.
            updates: like params; leaves may be missing, where `optax.masked` hides them.
            state: the link's state.

        Raises:
            ValueError: if `updates` has leaves that are no leaves of the parameters.
        """
        if not self.axes:
            return self.whole(update, updates, state)
        update_specs = self._specs_of(updates)
        specs = (update_specs, specs_like(state, updates, update_specs))
        mapped = jax.shard_map(
            update, axis_names=set(self.axes), in_specs=specs, out_specs=specs, check_vma=False
        )
        return self.whole(mapped, updates, state)

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
                    f'def_jax.spmd: a link got updates{jax.tree_util.keystr(path)}, which is no leaf of the '
                    'parameters. Under spmd, transformations before it must keep their structure: no '
                    'optax.flatten.'
                )
            return known[path]

        return jax.tree_util.tree_map_with_path(spec, tree)


_WHOLE = Shards()
_CURRENT: ContextVar[Shards] = ContextVar('shards', default=_WHOLE)


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


def _on_auto_axes(update: Callable, updates: PyTree, state: PyTree) -> Callable:
    """The update with Explicit axes Auto inside; its results lie as its arguments do."""
    shardings = jax.tree.map(lambda x: jax.typeof(x).sharding, (updates, state))
    meshes = [to.mesh for to in jax.tree.leaves(shardings) if to.mesh.explicit_axes]
    if not meshes:
        return update
    mesh = meshes[0]
    placed = jax.tree.map(lambda to: NamedSharding(mesh, to.spec), shardings)
    return jax.sharding.auto_axes(update, axes=mesh.explicit_axes, out_sharding=placed)
