"""Random numbers from shared keys, for any number of keys at once: JAX's threefry, bit for bit.

On CPUs, `jax.random.fold_in` is a loop of eighty kernels: a third of a step of a small model.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

# The generator is named and not JAX's default: under vmap the 'rbg' generators draw other numbers for each
# entry of the batch, so that workers with equal keys would choose different blocks.
_GENERATOR = 'threefry2x32'
_ROTATIONS = (13, 15, 26, 6), (17, 29, 16, 24)

Key = tuple[jax.Array, jax.Array]  # the two words of one key or of an array of keys, uint32


def shared_key(seed: int | jax.Array) -> jax.Array:
    """The key, uint32 [2], that every worker makes from the same seed."""
    return jax.random.key_data(jax.random.key(seed, impl=_GENERATOR))


def typed_key(key: jax.Array) -> jax.Array:
    """A key, uint32 [2], as `jax.random` takes it."""
    return jax.random.wrap_key_data(key, impl=_GENERATOR)


def is_typed(x: Any) -> bool:
    """Whether x is an array of typed keys, as of `jax.random.key`, which NumPy can't hold."""
    return hasattr(x, 'dtype') and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def fold(key: Key, path: Sequence[Any]) -> Key:
    """Keys: all of `path`, uint32, folded into the key one after the other, broadcast."""
    shape = jnp.broadcast_shapes(*map(jnp.shape, [*key, *path]))  # users may have forbidden to promote ranks
    rows = jnp.stack([jnp.broadcast_to(jnp.asarray(data, jnp.uint32), shape) for data in path])
    start = jnp.broadcast_to(key[0], shape), jnp.broadcast_to(key[1], shape)
    # A loop, or XLA would compute each fold again in every kernel that follows.
    return lax.scan(_folded, start, rows)[0]


def _folded(key: Key, data: jax.Array) -> tuple[Key, None]:
    """Source: Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", 2011 (Threefry-2x32-20)."""
    schedule = *key, key[0] ^ key[1] ^ np.uint32(0x1BD11BDA)
    x, y = key[0], key[1] + data
    for i in range(5):
        for rotation in _ROTATIONS[i % 2]:
            x = x + y
            y = x ^ (y << np.uint32(rotation) | y >> np.uint32(32 - rotation))
        x = x + schedule[(i + 1) % 3]
        y = y + (schedule[(i + 2) % 3] + np.uint32(i + 1))
    return (x, y), None


def words(key: Key) -> jax.Array:
    """The 32 random bits of keys, as `jax.random.bits` makes them."""
    return key[0] ^ key[1]


def draw(key: Key, path: Sequence[Any], counts: jax.Array, index: Any = 0) -> jax.Array:
    """Element `index` of `jax.random.randint` below each count, uint32, with `path` folded into the key."""
    # Splitting a key and making its bits are folds, too.
    shape = jnp.broadcast_shapes(key[0].shape, *map(np.shape, [*path, counts, index]))
    half = np.arange(2, dtype=np.uint32).reshape(2, *[1] * len(shape))
    high, low = words(fold(key, [*path, half, index]))
    counts = jnp.broadcast_to(counts, jnp.broadcast_shapes(counts.shape, low.shape))
    wrapped = np.uint32(2**16) % counts
    wrapped = wrapped * wrapped % counts
    return (high % counts * wrapped + low % counts) % counts
