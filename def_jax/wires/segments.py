"""Reductions over the segments of a vector, as gathers and sums of rows.

A scatter would add in any order on GPUs, so that no two runs agree; comparing every element with every
segment is quadratic in the tensors of a model.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

_WIDTH = 64  # elements that are reduced at once


class Segments(NamedTuple):
    """Segments of K vectors of n elements, in levels: the rows of one are the elements of the next."""

    levels: tuple[np.ndarray, ...]  # int [K, rows, width] each; an index past the end stands for nothing

    def table(self, k: int | jax.Array) -> list[jax.Array]:
        """The levels for vector k."""
        return [row_of(level, k) for level in self.levels]


def row_of(table: np.ndarray, index: int | jax.Array) -> jax.Array:
    """A row of a table of constants; of an index that is known, only that row is part of the program."""
    if isinstance(index, int):
        return jnp.asarray(table[index])
    return lax.dynamic_index_in_dim(jnp.asarray(table), index, keepdims=False)


def segments(group: np.ndarray, number: int) -> Segments:
    """The segments of K vectors whose elements belong to these groups, ascending [K, n], all below `number`.

    >>> [level.tolist() for level in segments(np.array([[0, 0, 2]]), 3).levels]
    [[[[0, 1], [3, 3], [2, 3]]]]
    """
    counts = np.stack([np.bincount(row, minlength=number) for row in group])
    levels = []
    while True:
        width = min(_WIDTH, max(1, counts.max()))
        rows = np.maximum(1, -(-counts // width))  # of each group; one that is empty has an empty row
        size = counts.sum(axis=1).max()
        level = np.full((len(counts), rows.sum(axis=1).max(), width), size, np.int32)
        for k, (count, of_group) in enumerate(zip(counts, rows, strict=True)):
            within = np.concatenate([np.arange(n) for n in of_group])  # a row's number in its group
            first = np.repeat(np.cumsum(count) - count, of_group) + within * width
            last = np.repeat(np.cumsum(count), of_group)
            index = first[:, None] + np.arange(width)
            level[k, : len(index)] = np.where(index < last[:, None], index, size)
        levels.append(level)
        if rows.max() == 1:
            return Segments(tuple(levels))
        counts = rows


def reduced(reduce: Callable, table: list[jax.Array], x: jax.Array) -> jax.Array:
    """`reduce`, such as `jnp.sum`, of the elements of each group: [n] to [groups]; 0 for an empty one."""
    for level in table:
        x = reduce(x.at[level].get(mode='fill', fill_value=0), axis=1)
    return x
