"""The state of a run, and which parts of it are per-worker."""

from typing import NamedTuple

import flax.struct
import jax
import optax

from def_jax.ground.types import PyTree
from def_jax.state.ownership import own_leaves

__all__ = ['PerWorker', 'TrainState', 'per_worker']


@flax.struct.dataclass
class TrainState:
    """Everything that a run carries from step to step; [K, ...] may be [devices, virtual workers, ...]."""

    step: PyTree  # int32 []
    key: PyTree  # uint32 [2], for augmentation
    params: PyTree  # x
    batch_stats: PyTree  # [K, ...]
    opt_state: PyTree  # [K, ...] where it differs between workers


class PerWorker(NamedTuple):
    """State outside the library's links, any of which may differ between workers."""

    state: PyTree

    @property
    def per_worker(self) -> tuple[str, ...]:
        return ('state',)


def per_worker(optimizer: optax.GradientTransformation, variables: PyTree) -> TrainState:
    """Which parts of a TrainState are per-worker, as booleans: what `Workers.map` is told of every step.

    No dict, as pmap hashes them: one that holds anything per-worker is per-worker as a whole.
    """

    def part(node: PyTree) -> bool:
        return any(jax.tree.leaves(node))

    own = own_leaves(optimizer, variables['params'])
    opt_state = jax.tree.map(part, own, is_leaf=lambda node: isinstance(node, (bool, dict)))
    has_statistics = bool(jax.tree.leaves(variables['batch_stats']))
    return TrainState(step=False, key=False, params=False, batch_stats=has_statistics, opt_state=opt_state)
