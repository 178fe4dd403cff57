"""Prepares batches while the devices are busy with earlier steps."""

import collections
import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

__all__ = ['ahead']


@contextlib.contextmanager
def ahead(batches: Iterator[Any], place: Callable[[Any], Any], depth: int = 2) -> Iterator[Iterator[Any]]:
    """The placed batches, in order, prepared by a thread that runs up to `depth` batches ahead.

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
