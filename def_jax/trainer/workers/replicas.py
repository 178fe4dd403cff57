"""The trainer's check that parameters, keys and step counts are the same on all devices."""

import functools

import jax
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from def_jax.ground.arguments import leaf_names
from def_jax.guards import checksums
from def_jax.state.ownership import each
from def_jax.trainer.launch import processes
from def_jax.trainer.launch.exits import EndedError, ExitCode
from def_jax.trainer.state import TrainState
from def_jax.trainer.workers.base import Workers

__all__ = ['ReplicasDifferError', 'check']


class ReplicasDifferError(EndedError):
    """The devices hold different copies of replicated values."""

    exit_code = ExitCode.REPLICAS_DIFFER

    def __init__(self, step: int, leaves: list[str], workers: list[int]):
        more = f' and {len(leaves) - 1} more' if len(leaves) > 1 else ''
        super().__init__(
            f'after step {step} the workers do not agree on {leaves[0]}{more}: device(s) '
            f'{", ".join(map(str, workers))} differ from the rest. Run again to resume from one copy. If '
            'the error recurs at the same step, a key, a reduction or a setting of JAX differs between '
            'workers; otherwise, suspect the memory of these devices.'
        )
        self.step, self.leaves, self.workers = step, leaves, workers


def check(workers: Workers, is_per_worker: TrainState, state: TrainState, step: int) -> None:
    """Raises ReplicasDifferError if copies differ in the state after a step.

    Each device computes checksums of its copies, which alone are sent to the host.
    """
    state = workers.spread(state, is_per_worker)
    shared = each(lambda mine, leaf: None if mine else leaf, is_per_worker, state)
    leaves, devices = tuple(jax.tree.leaves(shared)), workers.devices
    specs = tuple(leaf.sharding.spec for leaf in leaves)
    on_devices = _sums_on_devices(leaves[0].sharding.mesh, specs, leaves)
    sums = processes.gather(workers.local(on_devices), devices)  # [devices, leaves]
    differs = np.zeros(sums.shape, bool)
    for column, leaf in enumerate(leaves):
        parts = leaf.sharding.devices_indices_map(leaf.shape)
        for part in set(map(str, parts.values())):
            group = [row for row, device in enumerate(devices) if str(parts[device]) == part]
            differs[group, column] = _unusual(sums[group, column])
    if differs.any():
        names = leaf_names(shared)
        named = [names[column] for column in np.flatnonzero(differs.any(axis=0))]
        raise ReplicasDifferError(step, named, np.flatnonzero(differs.any(axis=1)).tolist())


@functools.partial(jax.jit, static_argnums=(0, 1))
def _sums_on_devices(mesh: Mesh, specs: tuple[P, ...], leaves: tuple[jax.Array, ...]) -> jax.Array:
    """The checksums of what each device holds, uint32 [devices, leaves]."""

    def device(leaves):
        return checksums(leaves)[None]

    everywhere = P(mesh.axis_names)
    return jax.shard_map(device, mesh=mesh, in_specs=(specs,), out_specs=everywhere, check_vma=False)(leaves)


def _unusual(sums: np.ndarray) -> np.ndarray:
    """Which checksums of a group of devices differ from what most of them have, bool [devices]."""
    _, ranks = np.unique(sums, return_inverse=True)
    return ranks != np.bincount(ranks).argmax()
