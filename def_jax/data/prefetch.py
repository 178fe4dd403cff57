"""Batches made ready and placed on the devices while these are busy with the steps before."""

import collections
import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

__all__ = ['ahead', 'make_place']


@contextlib.contextmanager
def ahead(batches: Iterator[Any], place: Callable[[Any], Any], depth: int = 2) -> Iterator[Iterator[Any]]:
    """The placed batches, in their order, made by one thread up to `depth` of them before they are asked for.

    Args:
        batches: an iterator; an error in it is raised where its batch is asked for.
        place: what the thread does with a batch, e.g. puts it on the devices.
        depth: how many batches wait at most.

    Returns:
        A context manager that gives an iterator. On leaving it the thread has ended.

    >>> with ahead(iter('abc'), str.upper) as batches:
    ...     list(batches)
    ['A', 'B', 'C']
    """
    end = object()

    def make() -> Any:
        batch = next(batches, end)
        return batch if batch is end else place(batch)

    with ThreadPoolExecutor(max_workers=1, thread_name_prefix='batches') as pool:
        waiting = collections.deque(pool.submit(make) for _ in range(depth))

        def placed() -> Iterator[Any]:
            while (batch := waiting.popleft().result()) is not end:
                waiting.append(pool.submit(make))
                yield batch

        try:
            yield placed()
        finally:
            for future in waiting:
                future.cancel()


def make_place(devices: Sequence[jax.Device], axis_name: str) -> Callable[[Any], Any]:
    """Returns a function that puts a batch where pmap over `devices` wants it, the leading axis over devices.

    Of several processes each gives its own rows.

    >>> place = make_place(jax.devices()[:1], 'workers')
    >>> place({'label': np.zeros((1, 3))})['label'].shape
    (1, 3)
    """
    sharding = NamedSharding(Mesh(np.array(devices), (axis_name,)), PartitionSpec(axis_name))
    return lambda batch: jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)
