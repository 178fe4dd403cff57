"""The live processes, and their mesh."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from def_jax.ground.types import PyTree
from def_jax.sharding import Spmd

Incarnations = tuple[tuple[int, int], ...]  # process and incarnation, of each that lives

__all__ = [
    'SHARD_AXIS',
    'Group',
    'Incarnations',
    'changes',
    'divided',
    'everywhere',
    'grouped',
    'name_of',
    'names',
]

SHARD_AXIS = 'shard'


@dataclasses.dataclass(frozen=True)
class Group:
    """The live processes, as all of them see them."""

    incarnations: Incarnations
    failures: int  # meetings of these that failed though nobody died
    name: str  # follows from both
    dist: Spmd
    rows: list[int]  # the workers of this process
    local: list[jax.Device]  # its devices, in the mesh's order
    processes: list[int]  # of the workers, in the mesh's order

    @property
    def num_workers(self) -> int:
        return self.dist.num_workers

    @staticmethod
    def fetched(x: jax.Array | np.ndarray) -> np.ndarray:
        """What the first device of this process has of an array."""
        return np.asarray(x.addressable_shards[0].data if isinstance(x, jax.Array) else x)

    def sharding(self, *spec: Any) -> NamedSharding:
        return NamedSharding(self.dist.mesh, P(*spec))


def name_of(incarnations: Incarnations, failures: int) -> str:
    return f'def_jax/{hashlib.sha256(repr((incarnations, failures)).encode()).hexdigest()}'


def grouped(
    incarnations: Incarnations,
    failures: int,
    workers: int,
    shards: int,
    axis_name: str,
    make_dist: Callable[[Mesh], Spmd],
) -> Group:
    """The mesh of processes. It follows from what all of them know, so all have the same."""
    alive = [process for process, _ in incarnations]
    devices = {p: [device for device in jax.devices() if device.process_index == p] for p in alive}
    size, name = workers * shards, name_of(incarnations, failures)
    if (fewest := min(map(len, devices.values()))) < size:
        raise ValueError(
            f'workers={workers} of shards={shards} need {size} devices, but a process has {fewest}.'
        )
    if devices[alive[0]][0].platform == 'cpu':
        # gloo keeps its communicators by the order of devices, also those with a process that has died, or
        # with a collective that some have left.
        chance = np.random.default_rng(int(name.rpartition('/')[2], 16))
        alive = [alive[place] for place in chance.permutation(len(alive))]
        for process in alive:
            first = size * int(chance.integers(len(devices[process]) // size))
            devices[process] = devices[process][first:]
    grid = np.array([devices[process][:size] for process in alive]).reshape(-1, shards)
    mesh = Mesh(grid, (axis_name, SHARD_AXIS), axis_types=(AxisType.Auto,) * 2)
    processes = [device.process_index for device in grid[:, 0]]
    rows = [row for row, process in enumerate(processes) if process == jax.process_index()]
    local = [device for row in rows for device in grid[row]]
    return Group(incarnations, failures, name, make_dist(mesh), rows, local, processes)


def changes(before: Group, now: Group, shares: Iterable[tuple[tuple[int, int], float]]) -> Iterator[str]:
    """Lines about who died and who came; `shares` are the norms of what each worker has in y."""
    then, today = dict(before.incarnations), dict(now.incarnations)
    died = [process for process, n in then.items() if today.get(process) != n]
    came = [process for process, n in today.items() if then.get(process) != n]
    count = f'{before.num_workers} -> {now.num_workers} workers'
    if died:
        own = [norm for (process, n), norm in shares if process in died and then.get(process) == n]
        lost = [f'{norm:.3g}' for norm in own]
        yield (
            f'{names(died)} died, {count}; y loses a residual of norm {" and ".join(lost) or "0"}; '
            f'{names(then.keys() - set(died))} went on'
        )
    if came:
        yield f'{names(came)} joined, {count}'


def everywhere(group: Group, tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: lax.with_sharding_constraint(x, group.sharding()), tree)


def divided(group: Group, rows: np.ndarray) -> jax.Array:
    """An array of all workers, of which these are the rows of this process's.

    A worker's devices share its rows where these divide, and each has all of them otherwise.
    """
    axis, shards = group.dist.axis_name, group.dist.mesh.shape[SHARD_AXIS]
    shared = len(rows) // len(group.rows) % shards == 0
    sharding = group.sharding((axis, SHARD_AXIS) if shared else axis)
    return jax.make_array_from_process_local_data(sharding, rows)


def names(processes: Iterable[int]) -> str:
    found = sorted(set(processes))
    return f'process{"es" if len(found) > 1 else ""} {", ".join(map(str, found))}'
