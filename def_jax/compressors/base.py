"""Linear compressors: which coordinates of a pytree travel in one step.

A compressor C of the paper is a `Compressor`. Called with key, step and shapes it returns a `Selection`:
`take` packs the coordinates that C keeps into one message, `replace` puts a message in their place. The
choice depends on the shared key, the step and the shapes, never on the values nor on the worker: hence
C(a) + C(b) = C(a + b) (Assumption 3.3), the messages of all workers line up, and one all-reduce of the
message averages C over the workers without sending an index.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from def_jax.ground.types import PyTree
from def_jax.wires.layouts import Layout


class Selection(NamedTuple):
    """The coordinates that one step sends: C(x) = place(take(x), x)."""

    take: Callable[[PyTree], jax.Array]  # tree -> message, float32 [M]
    # tree x, message -> x - C(x) + the message at its place
    replace: Callable[[PyTree, jax.Array], PyTree]

    def place(self, message: jax.Array, like: PyTree) -> PyTree:
        """The message at its place in zeros of `like`'s shapes and dtypes."""
        return self.replace(jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like), message)


class Part(NamedTuple):
    """The block of one tensor, or of several, as a part of the message."""

    size: int  # in elements
    weight: float  # times its squared norm is an unbiased estimate of the tensor's


@dataclasses.dataclass(frozen=True)
class Compressor:
    """A linear compressor C. Call it with the shared key, the step and a tree to get its `Selection`."""

    # shared key, step, like, where the parts lie in the message
    select: Callable[[jax.Array, jax.Array, PyTree, Layout], Selection]
    parts: Callable[[PyTree], Sequence[Part]]  # like -> what a message holds, one part after the other
    # The residual's mean squared age and mean age, as shares of those of the block that is sent; those of
    # independent draws. See `orders.AGE_SHARES`.
    age_shares: tuple[float, float] = (1.0, 1.0)
    scales: bool = False  # whether coordinates are sent otherwise than as they are

    def __call__(
        self, key: jax.Array, step: jax.Array, like: PyTree, layout: Layout | None = None
    ) -> Selection:
        return self.select(key, step, like, Layout.dense(self.sizes(like)) if layout is None else layout)

    def sizes(self, like: PyTree) -> list[int]:
        """The elements of every part of a message."""
        return [part.size for part in self.parts(like)]


def check_compressor(compressor: Any) -> None:
    """Raises ValueError unless it is a `Compressor`, as opposed to a function that makes one."""
    if isinstance(compressor, Compressor):
        return
    if getattr(compressor, '__module__', '').startswith('def_jax.'):
        name = compressor.__name__
        raise ValueError(
            f'compressor={name} must be called first: pass what {name}(...) returns, such as '
            'def_jax.random_block(ratio=64).'
        )
    raise ValueError(
        f'{compressor=} must be a compressor such as def_jax.random_block(ratio=64). An optimizer goes into '
        'inner=. Wrap a function of your own in def_jax.compressors.Compressor(select, parts).'
    )


def check_indexable(tensors: Iterable[tuple[tuple[int, ...], int]]) -> None:
    """Raises ValueError if 32 bits cannot index tensors of these shapes and numbers of blocks.

    JAX would silently wrap such an index.
    """
    for shape, blocks in tensors:
        if blocks >= 2**31 or max(shape, default=0) >= 2**32:
            raise ValueError(
                f'a tensor of {shape=} has {blocks} blocks or elements to choose from; there must be fewer '
                'than 2**31, and of an axis fewer than 2**32. Choose a smaller ratio, or split the tensor.'
            )


def message_size(compressor: Compressor, params: PyTree) -> int:
    """Number of elements B of the message that one worker sends for `params`; nothing is computed.

    Bytes are more than B·bits / 8: in few bits a chunk has a unit of two bytes for each piece of a tensor in
    it, and parts are filled up to whole tiles, which counts where the model is small or the workers are many.
    `python -m def_jax.communication` tells the bytes of a program.

    Args:
        compressor: any compressor.
        params: a pytree of arrays or of `jax.ShapeDtypeStruct`; of workers of several devices, one device's
            shards.

    >>> import jax.numpy as jnp, def_jax
    >>> params = {'w': jnp.ones((512, 10)), 'b': jnp.ones(10)}
    >>> message_size(def_jax.random_block(64), params)
    81
    """
    return sum(compressor.sizes(params))
