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
import numpy as np
from jax import lax

from def_jax.ground.types import PyTree
from def_jax.wires.layouts import Layout


class Selection(NamedTuple):
    """The coordinates that one step sends: C(x) = place(take(x), x)."""

    take: Callable[[PyTree], jax.Array]  # tree -> message, float32 [M]
    # tree x, message -> x - C(x) + the message at its place
    replace: Callable[[PyTree, jax.Array], PyTree]
    scale: float = 1.0  # what `take` multiplies the coordinates by

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
        f'{compressor=} must be a compressor such as def_jax.random_block(ratio=64). Wrap a function of your '
        'own in def_jax.compressors.Compressor(select, parts).'
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


# The generator is named and not JAX's default: under vmap the 'rbg' generators draw other numbers for each
# entry of the batch, so that workers with equal keys would choose different blocks.
_GENERATOR = 'threefry2x32'


def shared_key(seed: int | jax.Array) -> jax.Array:
    """The key, uint32 [2], that every worker makes from the same seed."""
    return jax.random.key_data(jax.random.key(seed, impl=_GENERATOR))


def typed_key(key: jax.Array) -> jax.Array:
    return jax.random.wrap_key_data(key, impl=_GENERATOR)


def draw(key: jax.Array, path: Sequence[Any], counts: jax.Array, index: Any = 0) -> jax.Array:
    """Element `index` of `jax.random.randint` below each count, uint32, of a key into which `path` is folded.

    Splitting the key and making its bits are folds, too, so a single loop computes all, and XLA compiles one
    threefry.
    """
    half = np.arange(2, dtype=np.uint32).reshape(2, *[1] * max(map(np.ndim, [*path, counts, index])))
    high, low = words(fold(key, [*path, half, index], counts.shape))
    counts = jnp.broadcast_to(counts, low.shape)  # users may have forbidden to promote ranks
    wrapped = jnp.uint32(2**16) % counts
    wrapped = wrapped * wrapped % counts
    return (high % counts * wrapped + low % counts) % counts


def fold(key: jax.Array, path: Sequence[Any], shape: Sequence[int] = ()) -> jax.Array:
    """Typed keys: all of `path`, uint32, folded into the key one after the other, broadcast."""
    shape = jnp.broadcast_shapes(key.shape, shape, *map(jnp.shape, path))
    rows = jnp.stack([jnp.broadcast_to(jnp.asarray(data, jnp.uint32), shape).reshape(-1) for data in path])
    fold_in = jax.vmap(jax.random.fold_in)
    keys, _ = lax.scan(
        lambda keys, data: (fold_in(keys, data), None), jnp.broadcast_to(key, shape).reshape(-1), rows
    )
    return keys.reshape(shape)


def words(keys: jax.Array) -> jax.Array:
    """The 32 random bits of a key, as threefry makes them of two words."""
    pair = jax.random.key_data(keys)
    return pair[..., 0] ^ pair[..., 1]


def message_size(compressor: Compressor, params: PyTree) -> int:
    """Number of elements B of the message that one worker sends for `params`; nothing is computed.

    Bytes are more than B·bits / 8: in few bits every tensor adds a unit of two bytes to each chunk, and parts
    are filled up to whole tiles, which counts where the model is small or the workers are many.
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
