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
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from def_jax.ground.barriers import in_memory
from def_jax.ground.collectives import Group, all_gather, all_to_all, axis_index, pmean
from def_jax.ground.types import Arrive
from def_jax.wires import rounding
from def_jax.wires.layouts import ALONE, Division, Layout, Stretch

_WASTE = 0.01  # the share of a message that may be zeros between its parts, unless it is small
_LEAST, _MOST = 4, 512  # elements of a tile
_UNROLLED = 8  # workers whose integers are added in one kernel
_TPU_TILE = 1024  # bytes: XLA for TPUs turns a gather of other rows into an all-reduce, of twice the bytes


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
    of_parts: tuple[np.ndarray, ...]  # the tiles of each part, section by section; see `rounding.groups`
    of_pieces: tuple[np.ndarray, ...]  # the tiles of each piece, chunk by chunk

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
        return _rows([x.reshape(-1, x.shape[-1]) for x in tables], section * self.workers + k)


@functools.cache
def plan(sizes: tuple[int, ...], workers: int, bits: int, stretches: tuple[Stretch, ...] = ()) -> Plan:
    """The plan for parts of these sizes; by default, a worker is one device.

    >>> found = plan((5, 3), workers=2, bits=4)
    >>> found.shape, found.layout.begins, found.pieces.tolist(), found.filled.tolist()
    ((2, 2, 4), (0, 8), [[[0], [1]]], [[[4, 1], [3, 0]]])
    """
    stretches = stretches or (Stretch(ALONE, 1, tuple(range(len(sizes)))),)
    together = 8 // bits  # tiles whose integers share a byte
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
    of_parts = rounding.groups(part.reshape(len(chosen), -1), len(sizes))
    of_pieces = rounding.groups(piece, pieces.shape[1])
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


def _rows(tables: Sequence[np.ndarray], index: int | jax.Array) -> list[jax.Array]:
    """A row of each table of constants; of an index that is known, only that row is part of the program."""
    if isinstance(index, int):
        return [jnp.asarray(table[index]) for table in tables]
    return [lax.dynamic_index_in_dim(jnp.asarray(table), index, keepdims=False) for table in tables]


def exchange(
    message: jax.Array, p: Plan, workers: Group, weights: jax.Array | None, arrive: Arrive
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """See `Route.exchange`."""
    energy = None if weights is None else jnp.zeros(2, jnp.float32)
    section = p.division.combination()
    block = p.division.section(in_memory(message).reshape(-1, p.tile)).reshape(p.shape)
    part, count, pieces_of, piece_of = _rows((p.part, p.counts, p.pieces, p.piece), section)
    members = _rows(p.of_parts, section)
    if p.workers == 1:
        unit = rounding.units(block[0], members, part[0], count, p.bits)
        _, sent = rounding.rounded(block, unit[part], p.bits)
        # Of one worker, its mean: where types say what varies over workers, it is known not to.
        return pmean(sent.reshape(-1), workers), (block - sent).reshape(-1), energy

    k = axis_index(workers)
    mine = jnp.arange(p.workers) == k
    # The own chunk does not travel: it is not rounded, and does not count in the units of what does.
    travels = jnp.where(mine[:, None, None], 0, block)
    pieces, held, *_ = p.of_chunk(section, k)
    count = count.at[pieces].add(-held)
    unit = rounding.units(travels.reshape(-1, p.tile), members, part.reshape(-1), count, p.bits)
    codes, sent = rounding.rounded(travels, unit[part], p.bits)
    units = jnp.where(mine[:, None], 0, unit[pieces_of])
    packed = rounding.pack(codes, p.bits).reshape(p.workers, -1)
    rows = jnp.concatenate([packed, units.view(jnp.uint8)], axis=1)
    own = lax.dynamic_index_in_dim(block, k, keepdims=False)
    weights = None if weights is None else weights[np.array(p.order)]
    row, lost = _mean_of_chunk(p, all_to_all(rows, workers), own, section, k, weights)
    codes, unit, shares = _split(all_gather(row, workers), p)
    of_tiles = jnp.take_along_axis(unit, piece_of, axis=1)
    mean = rounding.values(rounding.unpack(codes, p.bits), of_tiles, p.bits)
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
    workers, bits = len(rows), p.bits
    pieces, size, piece, filled = p.of_chunk(section, k)
    codes, units, _ = _split(rows, p)
    # [K, T], in float32: XLA for CPUs would convert them in a kernel for each worker.
    of_tiles = jnp.take(units.astype(jnp.float32), piece, axis=1)

    def values(worker):
        return rounding.values(rounding.unpack(codes[worker], bits), of_tiles[worker], bits)

    total = lax.fori_loop(0, workers, lambda w, sum_: sum_ + values(w), own, unroll=min(_UNROLLED, workers))
    mean = jnp.where(jnp.arange(p.tile)[None] < filled[:, None], total / workers, 0)
    unit = rounding.units(mean, _rows(p.of_pieces, section * workers + k), piece, size, bits)
    again, rounded = rounding.rounded(mean, unit[piece], bits)
    sections = [rounding.pack(again, bits).reshape(-1), unit.view(jnp.uint8)]
    if weights is not None:
        sections.append(_energy(mean, own, units, weights[pieces], piece, size, bits).view(jnp.uint8))
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
    bits: int,
) -> jax.Array:
    """A chunk's share of the energy, float32 [2]; the other workers' units tell their messages' squares.

    Rounding leaves 1 - D of the squares of Gaussian numbers, D being `rounding.loss(bits)`, and as much of
    their products with those that it rounds to. So it does of everything in the squares of the mean, but for
    the own message's, if all messages are noise or all are alike.
    """
    workers, kept = len(units), 1 - rounding.loss(bits)
    rms = rounding.rms_of(units, bits)
    of_tiles = weights[piece]
    exact = jnp.vdot(of_tiles, jnp.sum(jnp.square(own), axis=1))
    others = jnp.vdot(weights, size.astype(jnp.float32) * jnp.sum(jnp.square(rms), axis=0))
    mean_message = jnp.vdot(of_tiles, jnp.sum(jnp.square(mean), axis=1))
    own_share = exact / workers**2
    return jnp.stack([(mean_message - own_share) / kept + own_share, (exact + others) / workers])


def _split(rows: jax.Array, p: Plan) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Rows as they travel, uint8 [K, bytes]: packed codes [K, T·b/8, G], units [K, S], and what follows."""
    packed = p.shape[1] * p.bits // 8 * p.tile
    units = p.pieces.shape[2] * jnp.dtype(rounding.UNIT).itemsize
    codes, unit, rest = jnp.split(rows, [packed, packed + units], axis=1)
    return codes.reshape(len(rows), -1, p.tile), unit.view(rounding.UNIT), rest
