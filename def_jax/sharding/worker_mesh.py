"""A mesh that is divided into workers, one device each or several, and functions mapped over these."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import optax
from jax import NamedSharding, P, lax
from jax.sharding import AxisType, Mesh

from def_jax.ground.collectives import axis_names
from def_jax.ground.types import PyTree
from def_jax.state.ownership import each
from def_jax.state.specs import check_divisible, check_specs, tree_of_specs


class WorkerMesh:
    """What `def_jax.spmd` and the trainer know of a mesh, whose axes are all Auto or all Explicit.

    Trees of booleans, of which one may stand for a subtree, say what is per-worker: it has a leading axis of
    size K, the number of workers, on the workers' mesh axis.
    """

    def __init__(self, mesh: Mesh, axis_name: str | tuple[str, ...]):
        self.mesh, self.axis_name, self.names = mesh, axis_name, axis_names(axis_name)
        self.explicit = AxisType.Explicit in mesh.axis_types
        self.all_auto = Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * mesh.devices.ndim)
        self.inside = tuple(name for name in mesh.axis_names if name not in self.names)
        self.apart = tuple(name for name in self.names if mesh.shape[name] > 1)  # with several workers
        self.num_workers = math.prod(mesh.shape[name] for name in self.names)

    @property
    def of_devices(self) -> list[int]:
        """The worker of each device, in the mesh's order."""
        places = self.shardings(P(self.axis_name)).devices_indices_map((self.num_workers,))
        return [places[device][0].start or 0 for device in self.mesh.devices.flat]

    def specs(self, param_specs: PyTree, params: PyTree) -> PyTree:
        """The parameters' specs as a pytree like them, after a check that the mesh divides them."""
        if isinstance(params, optax.LookaheadParams):
            raise ValueError(
                'optax.lookahead goes around def_jax.spmd, not into it: optax.lookahead(def_jax.spmd(...), '
                '...). Take gradients at params.fast with opt_state.fast_state.'
            )
        specs = tree_of_specs(param_specs, params, self.axis_name)
        check_divisible(params, specs, self.mesh.shape)
        return specs

    def map(self, function: Callable, own_in: tuple[PyTree, ...], own_out: PyTree) -> Callable:
        """A function of global arrays that runs `function`, which may communicate, on every worker.

        The compiler decides how a worker's devices share the work. `own_in` says for each argument what is
        per-worker, and `own_out` for the result, of which the rest must be the same on all workers.
        """

        def worker(*args):
            unstacked = each(lambda mine, x: lax.squeeze(x, [0]) if mine else x, own_in, args)
            results = function(*unstacked)
            return each(lambda mine, x: lax.expand_dims(x, [0]) if mine else x, own_out, results)

        def over_workers(mine):
            return P(self.axis_name) if mine else P()

        def mapped(*args):
            context = jax.sharding.get_abstract_mesh()
            return jax.shard_map(
                worker,
                mesh=self.all_auto if context == self.all_auto.abstract_mesh else self.mesh,
                axis_names=set(self.names),
                in_specs=jax.tree.map(over_workers, own_in),
                out_specs=jax.tree.map(over_workers, own_out),
                check_vma=False,
            )(*args)

        return mapped

    def auto(self, function: Callable, specs: PyTree) -> Callable:
        """The function with all axes Auto inside, and its results sharded as a tree of specs says.

        On Explicit axes every operation would have to say how its result is sharded, and what optimizers and
        compressors do does not.
        """
        if not self.explicit:
            return lambda *args: self.place(function(*args), specs)
        return jax.sharding.auto_axes(function, axes=self.mesh.axis_names, out_sharding=self.shardings(specs))

    def place(self, tree: PyTree, specs: PyTree) -> PyTree:
        """The arrays with these shardings: moved if they are concrete, wherever they lie."""

        def place(x, to):
            if not isinstance(x, jax.core.Tracer):
                return jax.device_put(x, to)
            return jax.sharding.reshard(x, to) if self.explicit else lax.with_sharding_constraint(x, to)

        return jax.tree.map(place, tree, self.shardings(specs))

    def abstract(self, tree: PyTree, specs: PyTree) -> PyTree:
        """Shapes and dtypes of the arrays, with these shardings."""
        return jax.tree.map(
            lambda x, to: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=to), tree, self.shardings(specs)
        )

    def shardings(self, specs: PyTree) -> PyTree:
        return jax.tree.map(lambda spec: NamedSharding(self.mesh, spec), specs)


def compiled(program: Callable) -> Any:
    """By `jax.jit`, even within `jax.disable_jit`: `jax.shard_map` fails there or compiles each operation.

    `__wrapped__` of the result is what `jax.jit` returns, for its `trace`.
    """
    program = jax.jit(program)

    @functools.wraps(program)
    def run(*args):
        with jax.disable_jit(False):
            return program(*args)

    return run


def check_mesh(mesh: Any, axis_name: str | tuple[str, ...], param_specs: PyTree) -> None:
    """Raises ValueError unless the mesh has these axes over workers, and those that the specs name."""
    if not isinstance(mesh, Mesh):
        raise ValueError(
            f"{mesh=} must be a jax.sharding.Mesh, e.g. jax.make_mesh((2, 4), ('workers', 'shard'))."
        )
    names = set(axis_names(axis_name))
    if not names or names - set(mesh.axis_names):
        raise ValueError(
            f'{axis_name=} must be an axis of the mesh, or a tuple: it has {mesh.axis_names}. Pass to '
            f"def_jax.spmd the optimizer's, e.g. axis_name={mesh.axis_names[0]!r}."
        )
    check_specs(param_specs, axis_name, mesh.axis_names)
    devices = mesh.size // math.prod(mesh.shape[name] for name in names)
    if param_specs is None and devices > 1:
        raise ValueError(
            f"param_specs is missing: a worker has {devices} devices. Pass the parameters' PartitionSpecs "
            'within a worker, e.g. jax.tree.map(lambda x: x.sharding.spec, params); or P(), if each device '
            'holds all parameters, as with plain data parallelism inside.'
        )
    if len(set(mesh.axis_types)) > 1 or AxisType.Manual in mesh.axis_types:
        raise ValueError(
            f'the mesh has axes of types {mesh.axis_types}; make it with all Auto or all Explicit axes: '
            'jax.make_mesh(..., axis_types=(jax.sharding.AxisType.Auto,) * n).'
        )
