"""Messages of few bits: a reduce-scatter and an all-gather of small integers, and nothing is lost.

A ring all-reduce is a reduce-scatter followed by an all-gather. Both send b-bit integers here:

1. Each worker rounds its message to integers, in a unit of its own for every part (tensor); except its own
   chunk, the k-th of worker k, which never travels.
2. An all-to-all brings worker k the k-th chunk of everybody's integers, with their units.
3. Worker k takes the mean of these and its own chunk in float32 and rounds it again.
4. An all-gather brings everybody all rounded chunks.

What the first rounding takes from a message stays with its worker. What the second takes from chunk k only
worker k knows: it keeps K times that, so the workers' mean of `mean + rest` is still the mean of their
messages, and y = x + mean_k r_k moves by the mean update at every step (Eq. 8). No state is needed. Were the
own chunk rounded at first, too, the K-fold rest would pass a coarse rounding again and again. A worker
sends (K - 1)/K of B·b/8 bytes twice, as a ring all-reduce of B numbers of b bits would, and two bytes for a
unit.

Related: quantised reduce-scatter and all-gather with blockwise units in ZeRO++ (Wang et al., 2023) and
SDP4Bit (Jia et al., 2024); error kept on both sides of a server in DoubleSqueeze (Tang et al., 2019) and
1-bit Adam (Tang et al., 2021); few bits of a random subset with error feedback in CocktailSGD (Wang et al.,
2023).
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from def_jax.ground.barriers import in_memory
from def_jax.ground.collectives import Group, all_gather, all_to_all, axis_index, pmean
from def_jax.ground.types import Arrive
from def_jax.wires.division import ALONE, Division, Stretch
from def_jax.wires.layouts import Layout
from def_jax.wires.segments import Segments, reduced, row_of, segments

_WASTE = 0.01  # the share of a message that may be zeros between its parts, unless it is small
_LEAST, _MOST = 4, 512  # elements of a tile
_UNIT = jnp.bfloat16  # the range of float32 in two bytes
_UNROLLED = 8  # workers whose integers are added in one kernel
_SMALL, _LARGE = 1e-20, 1e30  # between them, a sum of squares has lost nothing to float32's range
_TPU_TILE = 1024  # bytes: XLA for TPUs turns a gather of other rows into an all-reduce, of twice the bytes


class Code(NamedTuple):
    """How numbers are rounded: to an odd number of integers, or to an even one of odd multiples of a unit."""

    levels: int
    together: int  # of them share a byte

    @property
    def base(self) -> int:
        return 3 if self.together == 5 else 2 ** (8 // self.together)

    @property
    def largest(self) -> int:
        """The largest value, in units."""
        return self.levels - 1 if self.levels % 2 == 0 else self.levels // 2

    @property
    def loading(self) -> float:
        """The largest value over the rms, for the least error of Gaussian numbers (Max, 1960)."""
        known = {2: math.sqrt(2 / math.pi), 4: 1.4935}
        return known.get(self.levels, 1.72 * math.sqrt(math.log2(self.levels)) - 0.93)

    @property
    def loss(self) -> float:
        """D, the share of its squares that rounding takes from a Gaussian part."""
        return _loss(self)


@functools.cache
def _loss(code: Code) -> float:
    x = (np.arange(200_000) + 0.5) * (8 / 200_000)
    density = np.exp(-x * x / 2)
    unit = code.loading / code.largest
    if code.levels % 2:
        rounded = np.clip(np.round(x / unit), 0, code.largest)
    else:
        rounded = np.clip(2 * np.floor(x / unit / 2) + 1, 1, code.largest)
    return float(np.sum(density * (x - unit * rounded) ** 2) / np.sum(density))


_SIGNS, _TERNARY, _TRITS, _FOUR = Code(2, 8), Code(3, 4), Code(3, 5), Code(4, 4)
# Of a message, and of the mean that comes back. Those of no number of bits are under trial.
CODES = {
    1: (_SIGNS, _SIGNS),
    2: (_TERNARY, _TERNARY),
    3: (_TRITS, _TRITS),
    4: (Code(15, 2), Code(15, 2)),
    5: (_SIGNS, _TERNARY),
    6: (_TERNARY, _SIGNS),
    7: (_FOUR, _FOUR),
    8: (Code(255, 1), Code(255, 1)),
    9: (_SIGNS, _TRITS),
}
WIDTH = {3: 1.6, 5: 1.5, 6: 1.5, 7: 2, 9: 1.3}


def loss(bits: int) -> float:
    return CODES[bits][0].loss


class Plan(NamedTuple):
    """How a message is divided among workers: everything that is known when a step is traced.

    A part begins with a tile of its own, so that a tile has one unit. What a device sends, its section, has a
    chunk of T tiles for every worker; chunk k holds S pieces of parts at most. A worker of several devices
    has C different sections. Parts are numbered as they lie in the message.
    """

    bits: int
    sizes: tuple[int, ...]  # of the parts, in elements
    order: tuple[int, ...]  # of the parts in the message
    layout: Layout  # of the parts in the message, in which they were before
    division: Division  # of the message, in tiles
    tile: int  # G, elements of a tile
    counts: np.ndarray  # int [C, parts]: how many elements of each part a section has
    pieces: np.ndarray  # int [C, K, S]: the part of each piece of a chunk; 0 where there are fewer
    held: np.ndarray  # int [C, K, S]: how many elements of its part a piece has
    piece: np.ndarray  # int [C, K, T]: the piece of each tile of a chunk
    filled: np.ndarray  # int [C, K, T]: how many elements of the tile belong to its part; the rest are zeros
    part: np.ndarray  # int [C, K, T]: the part of each tile
    of_parts: Segments  # the tiles of each part, section by section
    of_pieces: Segments  # the tiles of each piece, chunk by chunk

    @property
    def codes(self) -> tuple[Code, Code]:
        return CODES[self.bits]

    @property
    def workers(self) -> int:
        return self.part.shape[1]

    @property
    def shape(self) -> tuple[int, int, int]:
        """[K, T, G]: chunks of a section, tiles, elements."""
        return (*self.part.shape[1:], self.tile)

    def of_chunk(self, section: int | jax.Array, k: jax.Array) -> list[jax.Array]:
        """`pieces`, `held`, `piece` and `filled` of a section's chunk k."""
        tables = self.pieces, self.held, self.piece, self.filled
        return [row_of(x.reshape(-1, x.shape[-1]), section * self.workers + k) for x in tables]


def plan(sizes: tuple[int, ...], workers: int, bits: int, stretches: tuple[Stretch, ...] = ()) -> Plan:
    """The plan for parts of these sizes; by default, a worker is one device.

    >>> found = plan((5, 3), workers=2, bits=4)
    >>> found.shape, found.layout.begins, found.pieces.tolist(), found.filled.tolist()
    ((2, 2, 4), (0, 8), [[[0], [1]]], [[[4, 1], [3, 0]]])
    """
    return _planned(sizes, workers, bits, stretches or (Stretch(ALONE, 1, tuple(range(len(sizes)))),))


@functools.cache
def _planned(sizes: tuple[int, ...], workers: int, bits: int, stretches: tuple[Stretch, ...]) -> Plan:
    together = math.lcm(*(code.together for code in CODES[bits]))  # tiles whose integers share bytes
    # On average half a tile is empty at the end of a part, and half of `together` tiles at that of a chunk.
    sections = max(stretch.size for stretch in stretches)
    room = 2 * _WASTE * sum(sizes) / (len(sizes) + workers * sections * together)
    tile = min(_MOST, 2 ** math.floor(math.log2(max(_LEAST, room))))
    counts = [-(-size // tile) for size in sizes]
    division = Division.of(stretches, counts)
    tiles = max(1, -(-sum(division.lengths) // (workers * together))) * together
    # What fills up the last chunk is the end of the last stretch.
    others = division.lengths[:-1]
    division = division._replace(lengths=(*others, workers * tiles - sum(others)))
    order = tuple(i for stretch in stretches for i in stretch.parts)
    part, filled = _tiles(sizes, counts, tile, division, order)
    chosen = _sections(division)
    part, filled = (x[chosen].reshape(-1, tiles) for x in (part, filled))
    piece: Any = np.cumsum(np.diff(part, axis=1, prepend=part[:, :1]) > 0, axis=1)
    pieces = np.zeros((len(part), piece.max() + 1), int)
    np.put_along_axis(pieces, piece, part, axis=1)
    held = np.zeros_like(pieces)
    np.add.at(held, (np.arange(len(part))[:, None], piece), filled)
    in_section = np.zeros((len(chosen), len(sizes)), int)
    np.add.at(in_section, (np.repeat(np.arange(len(chosen)), workers)[:, None], pieces), held)
    begins = division.layout(counts)
    layout = Layout(tuple(begin * tile for begin in begins.begins), begins.total * tile)
    of_parts = segments(part.reshape(len(chosen), -1), len(sizes))
    of_pieces = segments(piece, pieces.shape[1])
    shape = len(chosen), workers, -1
    return Plan(
        bits=bits,
        sizes=sizes,
        order=order,
        layout=layout,
        division=division,
        tile=tile,
        counts=in_section,
        pieces=pieces.reshape(shape),
        held=held.reshape(shape),
        piece=piece.reshape(shape),
        filled=filled.reshape(shape),
        part=part.reshape(shape),
        of_parts=of_parts,
        of_pieces=of_pieces,
    )


def _tiles(
    sizes: Sequence[int], counts: Sequence[int], tile: int, division: Division, order: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """The part of each tile of a message, as numbered in it, and how many of its elements belong to that."""
    total = division.begins[-1]
    part, filled = np.zeros(total, int), np.zeros(total, int)
    begins = division.layout(counts).begins
    for number, i in enumerate(order):
        part[begins[i] :] = number  # what is behind a stretch counts as its last part
        whole = np.full(counts[i], tile)
        whole[-1:] -= counts[i] * tile - sizes[i]
        filled[begins[i] : begins[i] + counts[i]] = whole
    return part, filled


def _sections(division: Division) -> np.ndarray:
    """The tiles of every section that devices of a worker send, int [C, length]."""
    sizes = [stretch.size for stretch in division.stretches]
    places = zip(sizes, division.lengths, division.begins, strict=False)
    rows = [begin + length * np.arange(size)[:, None] + np.arange(length) for size, length, begin in places]
    numbers = np.indices(sizes).reshape(len(rows), -1)
    return np.concatenate([row[number] for row, number in zip(rows, numbers, strict=True)], axis=1)


def exchange(
    message: jax.Array, p: Plan, workers: Group, weights: jax.Array | None, arrive: Arrive
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """See `Route.exchange`."""
    energy, (up, down) = None if weights is None else jnp.zeros(2, jnp.float32), p.codes
    section = p.division.combination()
    block = p.division.section(in_memory(message).reshape(-1, p.tile)).reshape(p.shape)
    part, count = row_of(p.part, section), row_of(p.counts, section)
    tiles_of = p.of_parts.table(section)
    if p.workers == 1:
        unit = _units(block[0], tiles_of, part[0], count, up)
        _, sent = _rounded(block, unit[part], up)
        # Of one worker, its mean: where types say what varies over workers, it is known not to.
        return pmean(sent.reshape(-1), workers), (block - sent).reshape(-1), energy

    k = axis_index(workers)
    mine = jnp.arange(p.workers) == k
    # The own chunk does not travel: it is not rounded, and does not count in the units of what does.
    travels = jnp.where(mine[:, None, None], 0, block)
    pieces, held, *_ = p.of_chunk(section, k)
    count = count.at[pieces].add(-held)
    unit = _units(travels.reshape(-1, p.tile), tiles_of, part.reshape(-1), count, up)
    codes, sent = _rounded(travels, unit[part], up)
    units = jnp.where(mine[:, None], 0, unit[row_of(p.pieces, section)])
    rows = jnp.concatenate([_pack(codes, up).reshape(p.workers, -1), units.view(jnp.uint8)], axis=1)
    own = lax.dynamic_index_in_dim(block, k, keepdims=False)
    weights = None if weights is None else weights[np.array(p.order)]
    row, lost = _mean_of_chunk(p, all_to_all(rows, workers), own, section, k, weights)
    codes, unit, shares = _split(all_gather(row, workers), p, down)
    of_tiles = jnp.take_along_axis(unit, row_of(p.piece, section), axis=1)
    mean = _values(_unpack(codes, down), of_tiles, down)
    if energy is not None:
        energy = shares[:, : energy.nbytes].view(jnp.float32).sum(0)
    # An update in place puts the rest in memory: XLA would compute it again in the kernel of every tensor.
    rest = lax.dynamic_update_index_in_dim(block - sent, lost[None], k, axis=0)
    mean, rest = (p.division.whole(x.reshape(-1, p.tile)).reshape(-1) for x in (mean, rest))
    mean, rest = in_memory((arrive(message, mean), rest))
    return mean, rest, energy


def _mean_of_chunk(
    p: Plan,
    rows: jax.Array,
    own: jax.Array,
    section: int | jax.Array,
    k: jax.Array,
    weights: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
    """The mean of chunk k, and K times what rounding has taken from it.

    `rows`, uint8 [K, bytes], are all workers'; that of worker k itself has units of zero, and stands for
    nothing: its chunk is `own`, float32 [T, G]. The mean is rounded, as it travels, uint8 [bytes]; the rest
    is float32 [T, G]. If there are weights, the chunk's share of the energy ends the row.
    """
    workers, (up, down) = len(rows), p.codes
    pieces, size, piece, filled = p.of_chunk(section, k)
    codes, units, _ = _split(rows, p, up)
    of_tiles = jnp.take(units, piece, axis=1)  # [K, T]

    def values(worker):
        return _values(_unpack(codes[worker], up), of_tiles[worker], up)

    total = lax.fori_loop(0, workers, lambda w, sum_: sum_ + values(w), own, unroll=min(_UNROLLED, workers))
    mean = jnp.where(jnp.arange(p.tile)[None] < filled[:, None], total / workers, 0)
    unit = _units(mean, p.of_pieces.table(section * workers + k), piece, size, down)
    again, rounded = _rounded(mean, unit[piece], down)
    sections = [_pack(again, down).reshape(-1), unit.view(jnp.uint8)]
    if weights is not None:
        sections.append(_energy(mean, own, units, weights[pieces], piece, size, up).view(jnp.uint8))
    row = jnp.concatenate(sections)
    missing = -row.size % _TPU_TILE
    row = jnp.pad(row, (0, missing)) if missing < _WASTE * row.size else row
    return row, workers * (mean - rounded)


def _energy(
    mean: jax.Array,
    own: jax.Array,
    units: jax.Array,
    weights: jax.Array,
    piece: jax.Array,
    size: jax.Array,
    code: Code,
) -> jax.Array:
    """A chunk's share of the energy, float32 [2]; the other workers' units tell their messages' squares.

    Rounding leaves 1 - D of the squares of Gaussian numbers, D being `loss(bits)`, and as much of their
    products with those that it rounds to. So it does of everything in the squares of the mean, but for the
    own message's, if all messages are noise or all are alike.
    """
    workers, kept = len(units), 1 - code.loss
    rms = units.astype(jnp.float32) * np.float32(code.largest / code.loading)
    of_tiles = weights[piece]
    exact = jnp.vdot(of_tiles, jnp.sum(jnp.square(own), axis=1))
    others = jnp.vdot(weights, size.astype(jnp.float32) * jnp.sum(jnp.square(rms), axis=0))
    mean_message = jnp.vdot(of_tiles, jnp.sum(jnp.square(mean), axis=1))
    own_share = exact / workers**2
    return jnp.stack([(mean_message - own_share) / kept + own_share, (exact + others) / workers])


def _split(rows: jax.Array, p: Plan, code: Code) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Rows as they travel, uint8 [K, bytes]: packed codes [K, T·b/8, G], units [K, S], and what follows."""
    packed = p.shape[1] // code.together * p.tile
    units = p.pieces.shape[2] * jnp.dtype(_UNIT).itemsize
    codes, unit, rest = jnp.split(rows, [packed, packed + units], axis=1)
    return codes.reshape(len(rows), -1, p.tile), unit.view(_UNIT), rest


def _rounded(x: jax.Array, unit: jax.Array, code: Code) -> tuple[jax.Array, jax.Array]:
    """The nearest codes of float32 [..., T, G], as uint8, counted in units [..., T], and their values."""
    wide = unit.astype(jnp.float32)[..., None]
    counts = x * jnp.where(wide > 0, 1 / wide, 0)
    if code.levels % 2:
        codes = jnp.clip(jnp.round(counts), -code.largest, code.largest) + code.largest
    elif code.levels == 2:
        codes = x > 0
    else:
        codes = jnp.clip(jnp.floor(counts / 2) + code.levels // 2, 0, code.levels - 1)
    codes = codes.astype(jnp.uint8)
    return codes, _values(codes, unit, code)


def _values(codes: jax.Array, unit: jax.Array, code: Code) -> jax.Array:
    """What codes stand for: float32 [..., T, G]; NaN where the unit is."""
    counts = codes.astype(jnp.float32)
    counts = counts - code.largest if code.levels % 2 else 2 * counts - code.largest
    return counts * unit.astype(jnp.float32)[..., None]


def _units(
    x: jax.Array, tiles_of: list[jax.Array], group: jax.Array, count: jax.Array, code: Code
) -> jax.Array:
    """The units of groups of tiles [N, G], [S]; NaN for one that holds NaN or infinity.

    `tiles_of` is the table of the groups, see `segments`; `group`, int [N], is each tile's; `count`, [S],
    says how many elements a group has, zeros aside.
    """

    number = jnp.maximum(count, 1).astype(jnp.float32)

    def over(reduce: Callable, of_tiles: jax.Array) -> jax.Array:
        return reduced(reduce, tiles_of, of_tiles)

    squares = over(jnp.sum, jnp.sum(jnp.square(x), axis=1))

    def relative(x):
        """Relative to the largest of a group, whose own square may overflow or vanish."""
        largest = over(jnp.max, jnp.max(jnp.abs(x), axis=1))
        scale = jnp.where(largest == 0, 1, largest)
        squares = over(jnp.sum, jnp.sum(jnp.square(x / scale[group][:, None]), axis=1))
        return largest * jnp.sqrt(squares / number)

    exact = ((squares > _SMALL) & (squares < _LARGE)) | (count == 0)
    rms = lax.cond(exact.all(), lambda _: jnp.sqrt(squares / number), relative, x)
    return (rms * np.float32(code.loading / code.largest)).astype(_UNIT)


def _pack(codes: jax.Array, code: Code) -> jax.Array:
    """uint8 [..., T, G] in uint8 [..., T / together, G]: a byte's codes are of tiles apart."""
    planes = codes.reshape(*codes.shape[:-2], code.together, -1, codes.shape[-1])
    shifted = (planes[..., i, :, :] * np.uint8(code.base**i) for i in range(code.together))
    return functools.reduce(jnp.add, shifted)


def _unpack(packed: jax.Array, code: Code) -> jax.Array:
    """Undoes `_pack`."""
    base = np.uint8(code.base % 256)
    if code.together == 1:
        return packed
    planes = [packed // np.uint8(code.base**i) % base for i in range(code.together)]
    return jnp.concatenate(planes, axis=-2)
