"""Where the parts of a message lie."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


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
        in_order = sorted(zip(self.begins, range(len(parts)), strict=True))
        ends = [begin for begin, _ in in_order[1:]] + [self.total]
        for (begin, i), end in zip(in_order, ends, strict=False):
            found += [parts[i], jnp.zeros(end - begin - parts[i].size, jnp.float32)]
        return jnp.concatenate([jnp.zeros(0, jnp.float32), *(x for x in found if x.size)])

    def split(self, message: jax.Array, sizes: Sequence[int]) -> list[jax.Array]:
        """Undoes `join`."""
        places = zip(self.begins, sizes, strict=True)
        return [lax.slice_in_dim(message, begin, begin + size) for begin, size in places]
