"""A worker of several devices, each of which holds a shard of every tensor.

`def_jax.spmd` maps a step over workers and leaves it to the compiler how a worker's devices share the work.
A block that lies anywhere in a sharded tensor is the exception: to cut it out, the compiler would gather the
tensor. So a link that cuts blocks maps itself over the worker's devices, too, and cuts from each shard.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from def_jax.compressors.base import Compressor, Selection
from def_jax.mesh.specs import spec_axes, specs_like
from def_jax.mesh.varying import axis_names
from def_jax.types import AxisName, PyTree

__all__ = ['WHOLE', 'Shards', 'Tape']


class Tape:
    """What the links of an optimizer returned in one update, in order, to be returned again in a second.

    `def_jax.spmd` runs what lies before the links at each worker's detached point, and what lies after them
    at x. The two updates share what the links did in the first.
    """

    def __init__(self):
        self.results: list[Any] = []
        self.states: list[Any] = []  # before the update: one may hold several links
        self._again: int | None = None

    def rewind(self, results: list[Any]) -> None:
        """From now on, links return these."""
        self.results, self._again = results, 0

    def run(self, link: Callable[[], Any], state: Any) -> Any:
        """What a link returns; in a second update, what it returned in the first."""
        if self._again is None:
            self.states.append(state)
            self.results.append(link())
            return self.results[-1]
        self._again += 1
        return self.results[self._again - 1]


class Shards(NamedTuple):
    """How a worker's devices share its tensors; the default is a worker of one device.

    `spmd` passes it to the links of a chain as the extra argument `shards` of their `update`.
    """

    workers: AxisName = None  # the mesh axes over workers
    axes: tuple[str, ...] = ()  # the mesh axes over a worker's devices
    specs: PyTree = P()  # PartitionSpecs like params, which name only `axes`
    tape: Tape | None = None  # records what the links return

    def whole(self, update: Callable, updates: PyTree, state: PyTree) -> tuple[PyTree, PyTree]:
        """`update(updates, state)` of a link that sees whole tensors."""
        update = _on_auto_axes(update, updates, state)
        return self.tape.run(lambda: update(updates, state), state) if self.tape else update(updates, state)

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
            ValueError: if `updates` has leaves that are no leaves of the parameters; before JAX 0.10, if the
                link has a traced number.
        """
        if not self.axes:
            return self.whole(update, updates, state)
        update_specs = self._specs_of(updates)
        specs = (update_specs, specs_like(state, updates, update_specs))
        mapped = jax.shard_map(
            update, axis_names=set(self.axes), in_specs=specs, out_specs=specs, check_vma=False
        )
        try:
            return self.whole(mapped, updates, state)
        except ValueError as error:
            if jax.__version_info__ >= (0, 10) or 'should match the aval mesh' not in str(error):
                raise
            raise ValueError(
                f'before JAX 0.10 (here {jax.__version__}), numbers of a link do not reach the shards of a '
                "worker as arrays: with optax.inject_hyperparams, pass static_args=('ratio', 'detach', ...), "
                'or update JAX.'
            ) from error

    def all(self, flag: jax.Array) -> jax.Array:
        """Whether a condition, bool [], holds on all devices of this worker."""
        return lax.pmin(flag.astype(jnp.int32), self.axes) > 0 if self.axes else flag

    def mean(self, x: jax.Array) -> jax.Array:
        """The mean over the devices of this worker."""
        return lax.pmean(x, self.axes) if self.axes else x

    def energy(
        self, compressor: Compressor, selection: Selection, message: jax.Array, like: PyTree
    ) -> jax.Array:
        """`compressor.energy` of all shards together; `like` is the tree of this device's shards."""
        if not self.axes:
            return compressor.energy(message, like)

        # A tensor that r devices hold counts once: each contributes 1/r of its energy.
        def weight(x, spec):
            copies = lax.axis_size(tuple(name for name in self.axes if name not in spec_axes(spec)))
            return jnp.full(x.shape, copies**-0.5, jnp.float32)

        weights = jax.tree.map(weight, like, self._specs_of(like))
        return lax.psum(compressor.energy(message * selection.take(weights), like), self.axes)

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


WHOLE = Shards()


def _on_auto_axes(update: Callable, updates: PyTree, state: PyTree) -> Callable:
    """The update with Explicit axes Auto inside; its results lie as its arguments do."""
    shardings = jax.tree.map(lambda x: jax.typeof(x).sharding, (updates, state))
    meshes = [to.mesh for to in jax.tree.leaves(shardings) if to.mesh.explicit_axes]
    if not meshes:
        return update
    mesh = meshes[0]
    placed = jax.tree.map(lambda to: NamedSharding(mesh, to.spec), shardings)
    return jax.sharding.auto_axes(update, axes=mesh.explicit_axes, out_sharding=placed)
