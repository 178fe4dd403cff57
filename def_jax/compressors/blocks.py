"""Where the block of one tensor can lie, and how it is taken from there and put back."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

__all__ = ['Block']


class Block(NamedTuple):
    """Where one tensor's block can lie. All fields are Python integers, known when the step is traced."""

    view: tuple[int, ...]  # the tensor's own shape, or (n,) where the block wraps around its end
    shape: tuple[int, ...]  # shape of the block within the view
    grid: tuple[int, ...]  # number of starts along each axis
    stride: tuple[int, ...]  # distance of two starts along each axis
    wraps: bool  # whether a block may go on at the tensor's start

    @classmethod
    def of(cls, shape: tuple[int, ...], size: int) -> 'Block':
        n = math.prod(shape)
        if size and n % size:
            # No box of this size tiles the tensor. Starts that stopped at n - size would send the edges
            # less often than the middle, so the tensor is a circle and a block may begin anywhere on it.
            return cls(view=(n,), shape=(size,), grid=(n,), stride=(1,), wraps=True)
        grid, boxes_left = [], n // size if size else 1
        for axis in shape:
            grid.append(math.gcd(axis, boxes_left) if size else 1)
            boxes_left //= grid[-1]
        box = tuple(axis // cuts for axis, cuts in zip(shape, grid, strict=True))
        return cls(view=shape, shape=box, grid=tuple(grid), stride=box, wraps=False)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def circle(self) -> tuple[int, int, int]:
        """Number of starts, how many blocks cover the tensor, and by how many starts those lie apart."""
        starts = math.prod(self.grid)
        return (starts, -(-starts // self.size), self.size) if self.wraps else (starts, starts, 1)

    def take(self, x: jax.Array, start: Sequence[jax.Array]) -> jax.Array:
        x = x.reshape(self.view)
        if not self.wraps:
            return lax.dynamic_slice(x, start, self.shape).reshape(-1)
        begin, past = self._within(start)
        run = jnp.concatenate([lax.dynamic_slice(x, [begin], self.shape), x[: self.size]])
        return lax.dynamic_slice(run, [past], self.shape)

    def replace(self, x: jax.Array, values: jax.Array, start: Sequence[jax.Array]) -> jax.Array:
        """x with `values` in place of the block. A box is all that XLA then writes; where blocks wrap, it
        copies the tensor on CPUs, since its shape is not that of the view."""
        if not self.wraps:
            return lax.dynamic_update_slice(x, values.reshape(self.shape), start)
        begin, past = self._within(start)
        line = x.reshape(self.view)
        at_the_start = jnp.arange(self.size) < past
        rolled = jnp.roll(values, past)
        at_the_end = jnp.where(at_the_start, lax.dynamic_slice(line, [begin], self.shape), rolled)
        line = lax.dynamic_update_slice(line, at_the_end, [begin])
        line = lax.dynamic_update_slice(line, jnp.where(at_the_start, rolled, line[: self.size]), [0])
        return line.reshape(x.shape)

    def _within(self, start: Sequence[jax.Array]) -> tuple[jax.Array, jax.Array]:
        """The last place before or at the start where a whole block fits, and by how many elements the block
        reaches past the end: these are the first elements of the tensor."""
        place = start[0].astype(jnp.int32)  # fewer than 2**31, whatever indexes longer tensors
        past = jnp.maximum(place - (self.view[0] - self.size), 0)
        return place - past, past
