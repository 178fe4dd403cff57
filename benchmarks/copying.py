"""One device in place of eight workers: collectives that only copy, so that the rest of an exchange is timed.

What a worker does to a message of few bits, packing and unpacking, depends on the number of workers: it adds
up everybody's numbers of its chunk. A network's time is not part of it.
"""

import contextlib
from collections.abc import Iterator
from unittest import mock

import jax
import jax.numpy as jnp
from jax import lax

from def_jax import wires
from def_jax.wires import few_bits

__all__ = ['as_one_of']


@contextlib.contextmanager
def as_one_of(workers: int) -> Iterator[None]:
    """Within it, an optimizer whose axis is None is traced as that of one of so many workers."""

    def all_gather(row: jax.Array, axis_name: None) -> jax.Array:
        del axis_name
        return lax.optimization_barrier(jnp.broadcast_to(row[None], (workers, *row.shape)))

    replaced = {
        'all_to_all': lambda rows, axis_name: lax.optimization_barrier(rows),
        'all_gather': all_gather,
        'axis_index': lambda axis_name: jnp.int32(workers // 2),
    }
    with (
        mock.patch.multiple(few_bits, **replaced),
        mock.patch.object(wires, 'num_workers', lambda axis_name: workers),
    ):
        yield
