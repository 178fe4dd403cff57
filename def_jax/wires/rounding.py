"""Numbers as integers of few bits: the units of groups of tiles, what rounding takes, how bits are packed."""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

UNIT = jnp.bfloat16  # the range of float32 in two bytes
_WIDTH = 64  # elements that are summed at once
_SMALL, _LARGE = 1e-20, 1e30  # between them, a sum of squares has lost nothing to float32's range


def loading(bits: int) -> float:
    """The largest integer times the unit, over the rms, for the least error of Gaussian numbers.

    For signs it is √(2/π); otherwise a fit, within 1 %, to the best uniform quantisers (Max, 1960).

    >>> [round(loading(bits), 2) for bits in (1, 2, 4, 8)]
    [0.8, 1.24, 2.47, 3.93]
    """
    return math.sqrt(2 / math.pi) if bits == 1 else 1.72 * math.sqrt(math.log2(2 * _levels(bits) + 1)) - 0.93


def _levels(bits: int) -> int:
    """The largest integer."""
    return max(1, 2 ** (bits - 1) - 1)


@functools.cache
def loss(bits: int) -> float:
    """D, the share of its squares that rounding takes from a Gaussian part.

    >>> [round(loss(bits), 4) for bits in (1, 2, 4, 8)]
    [0.3634, 0.1902, 0.0129, 0.0001]
    """
    x = (np.arange(200_000) + 0.5) * (8 / 200_000)
    density = np.exp(-x * x / 2)
    unit = loading(bits) / _levels(bits)
    rounded = unit if bits == 1 else unit * np.clip(np.round(x / unit), 0, _levels(bits))
    return float(np.sum(density * (x - rounded) ** 2) / np.sum(density))


def groups(group: np.ndarray, number: int) -> tuple[np.ndarray, ...]:
    """Where the members of each group are, for K vectors of groups, ascending [K, n], all below `number`.

    They come in levels, int [K, rows, width] each, whose rows are summed: the rows of one are the elements of
    the next, until every group has one. An index past the end stands for nothing. On GPUs a scatter would add
    in any order, so that no two runs agree; to compare every element with every group is quadratic in the
    tensors of a model.

    >>> [level.tolist() for level in groups(np.array([[0, 0, 2]]), 3)]
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
            return tuple(levels)
        counts = rows


def units(x: jax.Array, members: list[jax.Array], group: jax.Array, count: jax.Array, bits: int) -> jax.Array:
    """The units of groups of tiles [N, G], [S]; NaN for one that holds NaN or infinity.

    `members` are the levels of `groups` for this vector of tiles; `group`, int [N], is each tile's; `count`,
    [S], says how many elements a group has, zeros aside.
    """

    number = jnp.maximum(count, 1).astype(jnp.float32)

    def over(reduce: Callable, of_tiles: jax.Array) -> jax.Array:
        return _reduced(reduce, members, of_tiles)

    squares = over(jnp.sum, jnp.sum(jnp.square(x), axis=1))

    def relative(x):
        """Relative to the largest of a group, whose own square may overflow or vanish."""
        largest = over(jnp.max, jnp.max(jnp.abs(x), axis=1))
        scale = jnp.where(largest == 0, 1, largest)
        squares = over(jnp.sum, jnp.sum(jnp.square(x / scale[group][:, None]), axis=1))
        return largest * jnp.sqrt(squares / number)

    exact = ((squares > _SMALL) & (squares < _LARGE)) | (count == 0)
    rms = lax.cond(exact.all(), lambda _: jnp.sqrt(squares / number), relative, x)
    return (rms * np.float32(loading(bits) / _levels(bits))).astype(UNIT)


def _reduced(reduce: Callable, table: list[jax.Array], x: jax.Array) -> jax.Array:
    """`reduce`, such as `jnp.sum`, of the elements of each group: [n] to [groups]; 0 for an empty one."""
    for level in table:
        x = reduce(x.at[level].get(mode='fill', fill_value=0), axis=1)
    return x


def rms_of(units: jax.Array, bits: int) -> jax.Array:
    """The rms of what is counted in units, float32 of any shape."""
    return units.astype(jnp.float32) * np.float32(_levels(bits) / loading(bits))


def rounded(x: jax.Array, unit: jax.Array, bits: int) -> tuple[jax.Array, jax.Array]:
    """The nearest integers to float32 [..., T, G], as uint8, counted in units [..., T], and their values."""
    levels, wide = np.float32(_levels(bits)), unit.astype(jnp.float32)[..., None]
    counts = jnp.clip(jnp.round(x * jnp.where(wide > 0, 1 / wide, 0)), -levels, levels) + levels
    codes = (x > 0 if bits == 1 else counts).astype(jnp.uint8)
    return codes, values(codes, unit, bits)


def values(codes: jax.Array, unit: jax.Array, bits: int) -> jax.Array:
    """What codes stand for: float32 [..., T, G]; NaN where the unit is."""
    counts = codes.astype(jnp.float32)
    return (2 * counts - 1 if bits == 1 else counts - _levels(bits)) * unit.astype(jnp.float32)[..., None]


def pack(codes: jax.Array, bits: int) -> jax.Array:
    """uint8 [..., T, G] in uint8 [..., T·b/8, G]: a byte's codes are of tiles apart, for contiguous loads."""
    together = 8 // bits
    planes = codes.reshape(*codes.shape[:-2], together, -1, codes.shape[-1])
    shifted = (planes[..., i, :, :] << np.uint8(i * bits) for i in range(together))
    return functools.reduce(jnp.bitwise_or, shifted)


def unpack(packed: jax.Array, bits: int) -> jax.Array:
    """Undoes `pack`."""
    mask = np.uint8(2**bits - 1)
    planes = [packed >> np.uint8(i * bits) & mask for i in range(8 // bits)]
    return jnp.concatenate(planes, axis=-2)
