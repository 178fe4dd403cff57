"""What a step sends: as it is traced, here; as it is compiled, in `hlo` and `crossing`."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from def_jax.ground.collectives import axis_names
from def_jax.ground.jaxpr import equations, inner_programs
from def_jax.ground.types import AxisName, PyTree
from def_jax.traffic.nodes import Groups, Operation

_OPERATIONS: dict[str, Operation] = {
    'psum': 'all-reduce',
    'psum_invariant': 'all-reduce',
    'all_gather': 'all-gather',
    'all_gather_invariant': 'all-gather',
    'all_to_all': 'all-to-all',
    'reduce_scatter': 'reduce-scatter',
    'ppermute': 'collective-permute',
}


class Message(NamedTuple):
    """What one collective takes from a worker."""

    operation: Operation
    bytes: int
    groups: Groups = ()  # of the mesh's devices

    def as_all_reduce(self, num_workers: int) -> float:
        """Bytes of the all-reduce that passes as many over a worker's link, where all go around in rings.

        >>> Message('all-gather', 100).as_all_reduce(8)  # seven times, and an all-reduce almost twice
        400.0
        """
        if self.operation == 'all-reduce':
            return self.bytes
        passed = {'all-gather': num_workers - 1, 'collective-permute': 1}
        return self.bytes * passed.get(self.operation, 1 - 1 / num_workers) / (2 - 2 / num_workers)


class Traffic(NamedTuple):
    """The messages of one update."""

    always: tuple[Message, ...]  # sent at every step
    branches: tuple[tuple[tuple[Message, ...], ...], ...]  # for each conditional, what each branch sends

    @property
    def messages(self) -> tuple[Message, ...]:
        """Those of every step, and those of all branches."""
        return self.always + tuple(m for branches in self.branches for sent in branches for m in sent)


def traffic(
    optimizer: optax.GradientTransformation,
    params: PyTree,
    axis_name: AxisName,
    mesh: Mapping[str, int] | None = None,
) -> Traffic:
    """The messages of one update, traced on a mesh of these sizes; nothing is computed.

    By default there are two workers along the first axis. Axes that the mesh lacks have one worker. Only the
    length of integer messages depends on K. Messages of nested conditionals count as sent in the outer one's
    branch. An exchange of integers runs once along every axis, and counts once for each.

    >>> import jax.numpy as jnp, def_jax
    >>> traffic(def_jax.baselines.top_k(8, 'workers'), jnp.zeros(64), 'workers').always
    (Message(operation='all-gather', bytes=32, groups=()),)
    """
    mesh = mesh or dict.fromkeys(axis_names(axis_name)[:1], 2)
    program, _, _ = traced(optimizer, params, axis_name, mesh)
    return traffic_of(program, axis_name, mesh)


def traced(
    optimizer: optax.GradientTransformation, params: PyTree, axis_name: AxisName, mesh: Mapping[str, int]
) -> tuple[Any, tuple, tuple]:
    """One update on a mesh of these sizes as a program; its gradients, state and parameters; its results."""
    optimizer = optax.with_extra_args_support(optimizer)

    def update(grads, state, params):  # with the loss, which some optimizers want
        return optimizer.update(grads, state, params, value=0.0)

    axes = [*mesh.items(), *((name, 1) for name in axis_names(axis_name) if name not in mesh)]
    arguments = params, jax.eval_shape(optimizer.init, params), params
    program, results = jax.make_jaxpr(update, axis_env=axes, return_shape=True)(*arguments)
    return program.jaxpr, arguments, results


def traffic_of(program: Any, axis_name: AxisName, mesh: Mapping[str, int]) -> Traffic:
    """The messages over an axis, or a tuple of axes, of a program traced on a mesh of these sizes.

    What neighbours on an axis exchange stays within a worker, see `inside` of `error_feedback`.
    """
    axes = set(axis_names(axis_name))
    always: list[Message] = []
    branches: list[tuple[tuple[Message, ...], ...]] = []
    for equation in program.eqns:
        inner = [traffic_of(part, axis_name, mesh) for part in inner_programs(equation)]
        if (name := equation.primitive.name) == 'cond':
            sent = tuple(part.messages for part in inner)
            branches += [sent] if any(sent) else []
        elif name not in _OPERATIONS:
            always += [message for part in inner for message in part.always]
            branches += [branch for part in inner for branch in part.branches]
        elif (
            axes & set(along := axis_names(equation.params.get('axes') or equation.params['axis_name']))
            and equation.params.get('axis_size') != 1  # of a gather along one of several names
            and _neighbours(equation) == 1
        ):
            size = sum(x.aval.size * x.aval.dtype.itemsize for x in equation.invars)
            groups = _groups(mesh, along, equation.params.get('axis_index_groups'))
            always.append(Message(_OPERATIONS[name], size, groups))
    return Traffic(tuple(always), tuple(branches))


def devices_per_worker(program: Any) -> int:
    """How many neighbours on an axis exchange data among themselves: the devices of a worker."""
    return max(map(_neighbours, equations(program)), default=1)


def _neighbours(equation: Any) -> int:
    """How many of them a collective is for; 1 if it is for others."""
    groups = equation.params.get('axis_index_groups') or ()
    alone = all(max(group) - min(group) == len(group) - 1 for group in groups)
    return len(groups[0]) if groups and alone else 1


def _groups(mesh: Mapping[str, int], along: Sequence[str], index_groups: Groups | None) -> Groups:
    """The devices that exchange data along axes of a mesh, or in groups of their indices there."""
    rows = devices_along(mesh, along)
    groups = [row[list(group)] for row in rows for group in index_groups or [range(rows.shape[1])]]
    return tuple(tuple(group.tolist()) for group in groups) if len(groups) > 1 else ()


def devices_along(mesh: Mapping[str, int], along: Sequence[str]) -> np.ndarray:
    """The devices of a mesh, a row for each place on its other axes."""
    names = [name for name in along if name in mesh]
    devices = np.arange(math.prod(mesh.values())).reshape(tuple(mesh.values()))
    moved = np.moveaxis(devices, list(map(list(mesh).index, names)), range(-len(names), 0))
    return moved.reshape(-1, math.prod(mesh[name] for name in names))
