"""The trainer's check that parameters, keys and step counts are the same on all devices."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from def_jax.guards import checksums, leaf_names
from def_jax.mesh.ownership import each
from def_jax.trainer.launch import processes
from def_jax.trainer.launch.exits import EndedError, ExitCode
from def_jax.trainer.state import TrainState
from def_jax.trainer.workers.base import Workers

__all__ = ['ReplicasDifferError', 'make_check']


class ReplicasDifferError(EndedError):
    """The devices hold different copies of replicated values."""

    exit_code = ExitCode.REPLICAS_DIFFER

    def __init__(self, step: int, leaves: list[str], workers: list[int]):
        more = f' and {len(leaves) - 1} more' if len(leaves) > 1 else ''
        super().__init__(
            f'after step {step} the workers do not agree on {leaves[0]}{more}: device(s) '
            f'{", ".join(map(str, workers))} differ from the rest. Run again to resume from one copy. If '
            'the error recurs at the same step, a key or a reduction differs between workers; otherwise, '
            'suspect the memory of these devices.'
        )
        self.step, self.leaves, self.workers = step, leaves, workers


def make_check(workers: Workers, is_per_worker: TrainState) -> Callable[[TrainState, int], None]:
    """Returns a function of a state and its step that raises ReplicasDifferError if copies differ.

    Each device computes checksums of its copies, which alone are sent to the host.
    """

    def shared(state: TrainState) -> Any:
        return each(lambda mine, leaf: None if mine else leaf, is_per_worker, state)

    def own_checksums(state: TrainState) -> jax.Array:
        return checksums(shared(state))

    on_devices = workers.map_devices(own_checksums, (is_per_worker,))

    def check(state: TrainState, step: int) -> None:
        sums = processes.gather(workers.local(on_devices(state)), workers.devices)  # [devices, leaves]
        leaves = jax.tree.leaves(shared(state))
        differs = np.zeros(sums.shape, bool)
        for column, leaf in enumerate(leaves):
            for group in workers.groups(leaf):
                differs[group, column] = _unusual(sums[group, column])
        if differs.any():
            names = leaf_names(shared(state))
            named = [names[column] for column in np.flatnonzero(differs.any(axis=0))]
            raise ReplicasDifferError(step, named, np.flatnonzero(differs.any(axis=1)).tolist())

    return check


def _unusual(sums: np.ndarray) -> np.ndarray:
    """Which checksums of a group of devices differ from what most of them have, bool [devices]."""
    _, ranks = np.unique(sums, return_inverse=True)
    return ranks != np.bincount(ranks).argmax()
