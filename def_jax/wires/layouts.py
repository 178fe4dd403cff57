"""Where the parts of a message lie, and what each device of a worker sends of it.

A worker of several devices may shard a tensor, so that each device has a part of its own to send, or hold it
on many. Parts with the same holders lie together in the message, in a stretch of S equal sections, of which
each holder sends one: the S-th of what S devices hold alike. Once the means have arrived, the holders gather
the whole.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from def_jax.ground.collectives import Group, all_gather, axis_index, num_workers

ALONE = Group(())  # holds a part that no other device of its worker holds


class Layout(NamedTuple):
    """Where the parts of a message lie, in any order. What lies between them is zero, and ignored."""

    begins: tuple[int, ...]  # of the parts
    total: int  # elements of the message

    @classmethod
    def dense(cls, sizes: Sequence[int]) -> 'Layout':
        """Parts of these sizes, one after the other."""
        ends = np.cumsum([0, *sizes], dtype=np.int64).tolist()
        return cls(tuple(ends[:-1]), ends[-1])

    def join(self, parts: Sequence[jax.Array]) -> jax.Array:
        """The message, float32 [total], of its parts."""
        found: list[jax.Array] = []
        # Of parts that begin at the same place, all but the last are empty.
        in_order = sorted(zip(self.begins, (part.size for part in parts), range(len(parts)), strict=True))
        ends = [begin for begin, _, _ in in_order[1:]] + [self.total]
        for (begin, size, i), end in zip(in_order, ends, strict=False):
            found += [parts[i], jnp.zeros(end - begin - size, jnp.float32)]
        return jnp.concatenate([jnp.zeros(0, jnp.float32), *(x for x in found if x.size)])

    def split(self, message: jax.Array, sizes: Sequence[int]) -> list[jax.Array]:
        """Undoes `join`."""
        places = zip(self.begins, sizes, strict=True)
        return [lax.slice_in_dim(message, begin, begin + size) for begin, size in places]


class Stretch(NamedTuple):
    """Parts of a message with the same holders."""

    holders: Group
    size: int  # S, their number
    parts: tuple[int, ...]  # their numbers, ascending


def stretches(holders: Sequence[Group]) -> tuple[Stretch, ...]:
    """The stretches of a message, from the holders of each of its parts."""
    found: dict[Group, list[int]] = {}
    for i, group in enumerate(holders):
        found.setdefault(group, []).append(i)
    return tuple(Stretch(group, num_workers(group), tuple(parts)) for group, parts in found.items())


class Division(NamedTuple):
    """The stretches of a message and the length of a section in each, in elements or in rows of them."""

    stretches: tuple[Stretch, ...]
    lengths: tuple[int, ...]

    @classmethod
    def of(cls, stretches: tuple[Stretch, ...], sizes: Sequence[int]) -> 'Division':
        """For parts of these sizes, one after the other within a stretch."""
        return cls(stretches, tuple(-(-sum(sizes[i] for i in s.parts) // s.size) for s in stretches))

    @property
    def begins(self) -> tuple[int, ...]:
        """Of the stretches in the message, and its length."""
        ends = [0]
        for stretch, length in zip(self.stretches, self.lengths, strict=True):
            ends.append(ends[-1] + stretch.size * length)
        return tuple(ends)

    @property
    def is_divided(self) -> bool:
        return any(stretch.size > 1 for stretch in self.stretches)

    def layout(self, sizes: Sequence[int]) -> Layout:
        """Where parts of these sizes lie in the message."""
        begins = [0] * len(sizes)
        for stretch, begin in zip(self.stretches, self.begins, strict=False):
            for i in stretch.parts:
                begins[i] = begin
                begin += sizes[i]
        return Layout(tuple(begins), self.begins[-1])

    def combination(self) -> int | jax.Array:
        """The number of this device's sections, below `combinations`."""
        number: int | jax.Array = 0
        for stretch in self.stretches:
            if stretch.size > 1:
                number = number * stretch.size + axis_index(stretch.holders)
        return number

    @property
    def combinations(self) -> int:
        return math.prod(stretch.size for stretch in self.stretches)

    def section(self, message: jax.Array) -> jax.Array:
        """What this device sends of a message [length of all, ...]: one section of every stretch."""
        if not self.is_divided:
            return message
        found = []
        for stretch, length, begin in zip(self.stretches, self.lengths, self.begins, strict=False):
            place = begin + length * axis_index(stretch.holders) if stretch.size > 1 else begin
            found.append(lax.dynamic_slice_in_dim(message, place, length))
        return jnp.concatenate(found)

    def whole(self, section: jax.Array) -> jax.Array:
        """Undoes `section` of all holders: they gather what the others have."""
        if not self.is_divided:
            return section
        found, begin = [], 0
        for stretch, length in zip(self.stretches, self.lengths, strict=True):
            here = lax.slice_in_dim(section, begin, begin + length)
            gathered = all_gather(here, stretch.holders) if stretch.size > 1 else here
            found.append(gathered.reshape(-1, *section.shape[1:]))
            begin += length
        return jnp.concatenate(found)
