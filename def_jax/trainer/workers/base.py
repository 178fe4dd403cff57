"""What steps, evaluation and checkpoints ask of the workers, whichever way these lie on devices."""

import abc
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from def_jax.ground.random import is_typed
from def_jax.ground.types import PyTree
from def_jax.state.link import Shards
from def_jax.trainer.launch import processes

__all__ = ['AXIS', 'Workers']

AXIS = 'workers'  # the mapped axis over workers, or over the devices that host several


class Workers(abc.ABC):
    """The workers of a run on its devices.

    Per-worker values have leading axes `shape`, one row for each place along the first; replicated ones have
    none. A tree of booleans, of which one may stand for a whole subtree, says which is which.
    """

    devices: list[jax.Device]  # those of all processes, row by row
    heads: list[jax.Device]  # the first device of each row
    shape: tuple[int, ...]  # the leading axes of everything that differs between workers
    axis_name: str | tuple[str, ...] = AXIS  # the mapped axis over workers, or a tuple of axes
    _batch_sharding: NamedSharding

    @property
    def rows(self) -> list[int]:
        """The indices of this process's rows."""
        return processes.rows(self.heads)

    @property
    def local_shape(self) -> tuple[int, ...]:
        """`shape` for this process's rows: the leading axes of its batches and of what `local` returns."""
        return (len(self.rows), *self.shape[1:])

    @property
    def devices_per_row(self) -> int:
        return len(self.devices) // len(self.heads)

    @abc.abstractmethod
    def map(
        self, function: Callable, is_per_worker: tuple[PyTree, ...], is_per_worker_out: PyTree, donate=()
    ) -> Callable:
        """Compiles a function that runs on every worker, with collectives over `axis_name`.

        `is_per_worker` has a tree of booleans for each argument, `is_per_worker_out` is that of the result,
        and `donate` the positions of arguments whose memory the result may take over.
        """

    def one_worker(self, function: Callable) -> Callable:
        """A function of one worker, without collectives, for use inside `map`."""
        return function

    def place(self, batch: PyTree) -> PyTree:
        """This process's part of a batch, NumPy arrays with leading axes `local_shape`, on its devices."""
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(self._batch_sharding, x), batch)

    def settled(self, outputs: PyTree) -> PyTree:
        """What `map` returned; on CPUs, once it is ready: collectives ahead can starve each other."""
        return jax.block_until_ready(outputs) if self.devices[0].platform == 'cpu' else outputs

    def local(self, x: jax.Array) -> np.ndarray:
        """This process's rows of an array that is stacked over workers, rows or devices."""
        if x.is_fully_addressable:
            return np.asarray(x)
        rows = {shard.index[0].start or 0: shard.data for shard in x.addressable_shards}
        return np.concatenate([np.asarray(rows[start]) for start in sorted(rows)])

    def fetch(self, tree: PyTree) -> PyTree:
        """Replicated values, whole, as NumPy arrays."""
        return jax.device_get(tree)

    def spread(self, tree: PyTree, is_per_worker: PyTree) -> PyTree:
        """The rows of all processes as global arrays with leading axes `shape`, without copying."""
        del is_per_worker
        return tree

    @abc.abstractmethod
    def own_rows(self, tree: PyTree, like: PyTree, is_per_worker: PyTree) -> PyTree:
        """The inverse of `spread`, for its results and for NumPy arrays; placed like `like`."""

    @staticmethod
    def is_whole(x: Any) -> bool:
        """Whether an array was restored with the rows of all processes: in NumPy, or as typed keys."""
        return isinstance(x, np.ndarray) or (is_typed(x) and len(x.sharding.device_set) == 1)

    def abstract(self, tree: PyTree, is_per_worker: PyTree) -> PyTree:
        """Shapes and dtypes as `map` lowers them: with shardings, if their axes do not tell them."""
        del is_per_worker
        return tree

    # --- What a worker's devices share ---

    def shards(self, params: PyTree) -> Shards | None:
        """How a worker's devices share the parameters, see `state.link.sharded`; None if it is one device."""
        del params
        return None

    def lay_out(self, tree: PyTree) -> PyTree:
        """Within `map`: values like the parameters, on the devices that hold these."""
        return tree

    def lay_out_examples(self, batch: PyTree) -> PyTree:
        """Within `map`: a part of a worker's batch, divided among its devices."""
        return batch

    def part(self, params: PyTree) -> PyTree:
        """Shapes and dtypes of what a device holds of a worker's parameters."""
        return params
