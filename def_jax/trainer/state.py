"""The state of a run, and which parts of it are per-worker."""

from typing import Any

import flax.struct
import jax
import optax

from def_jax.mesh.ownership import own_leaves

PyTree = Any

__all__ = ['TrainState', 'worker_axes']


@flax.struct.dataclass
class TrainState:
    """Everything that a run carries from step to step.

    Values that are the same on all workers are stored once: the step, the key, the parameters, and the
    optimizer's step and key. Values that differ have a leading axis of K workers, or axes [devices, virtual
    workers]: BatchNorm's statistics, the momentum, the residual. If a worker is several devices, its matrices
    and their moments are divided among these.
    """

    step: PyTree  # int32 []
    key: PyTree  # uint32 [2], for augmentation
    params: PyTree  # x
    batch_stats: PyTree  # [K, ...]
    opt_state: PyTree  # [K, ...] where it differs between workers


def worker_axes(optimizer: optax.GradientTransformation, variables: PyTree) -> TrainState:
    """The worker axis of each part of a TrainState, 0 or None: in_axes and out_axes of every step.

    A single value stands for a whole tree like the parameters. With several processes pmap hashes the axes,
    so they contain no dict: one that holds anything per-worker is per-worker as a whole.
    """
    own = own_leaves(optimizer, variables['params'])

    def axis(node: PyTree) -> int | None:
        return 0 if any(jax.tree.leaves(node)) else None

    opt_axes = jax.tree.map(axis, own, is_leaf=lambda node: isinstance(node, (bool, dict)))
    stats_axis = axis(jax.tree.map(lambda _: True, variables['batch_stats']))
    return TrainState(step=None, key=None, params=None, batch_stats=stats_axis, opt_state=opt_axes)
