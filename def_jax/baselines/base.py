"""What the baselines share: error feedback around a compressor that need not be linear.

`error_feedback` relies on a linear compressor whose block all workers know, so that one all-reduce of the
blocks is the mean of the compressed updates. The baselines compress by magnitude, by sign or by rank. Each
is a function `exchange` from worker k's pending tensors, a list, to what all workers apply and to what worker
k may forget; `feedback` adds the residual of gradients around it, `around` that of an optimizer's updates.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.flatten_util import ravel_pytree

from def_jax.compressors import identity
from def_jax.compressors.base import Selection
from def_jax.error_feedback import error_feedback, wrapped
from def_jax.ground.collectives import all_gather
from def_jax.ground.types import AxisName, PyTree
from def_jax.options import pend
from def_jax.state.link import float32_updates, float32_zeros, link

__all__ = [
    'Exchanged',
    'ResidualState',
    'around',
    'chunk_shape',
    'feedback',
    'from_chunks',
    'from_words',
    'gather_largest',
    'gathered_mean',
    'largest',
    'matrix_shape',
    'plus',
    'to_chunks',
    'to_words',
]


class ResidualState(NamedTuple):
    """State of a baseline with error feedback. The residual differs between workers; the carry does not."""

    residual: PyTree  # like params, float32: what worker k has not sent yet
    carry: PyTree  # what the exchange keeps from step to step; () for most
    step: jax.Array  # uint32 [], number of updates so far

    @property
    def per_worker(self) -> tuple[str, ...]:
        return ('residual',)


class Exchanged(NamedTuple):
    """The result of one exchange."""

    update: list[jax.Array]  # float32, of every tensor, the same on all workers
    sent: list[jax.Array]  # float32: the part of worker k's pending tensors that it need not keep
    carry: PyTree  # for the next step, the same on all workers


def feedback(
    axis_name: AxisName,
    exchange: Callable[[list[jax.Array], PyTree], Exchanged],
    *,
    init_carry: Callable[[PyTree], PyTree] = lambda params: (),
    decay: float = 1.0,
) -> optax.GradientTransformationExtraArgs:
    """Error feedback around an exchange: pending ← updates + decay·residual, residual ← pending - sent.

    Args:
        axis_name: the axis over workers, see `error_feedback`.
        exchange: maps the pending tensors, float32, in leaf order, and the carry to an `Exchanged`; it
            communicates.
        init_carry: the first carry, from the parameters.
        decay: factor of the residual.

    Returns:
        An `optax.GradientTransformationExtraArgs` with state `ResidualState`. Updates keep their dtypes.

    Raises:
        ValueError: if `axis_name` is not a name; in `init` and `update` as `error_feedback` does.
    """

    def init(params):
        return ResidualState(float32_zeros(params), init_carry(params), jnp.zeros((), jnp.uint32))

    def step(updates, state, *_):
        given = float32_updates(updates, state.residual)
        pending = jax.tree.map(lambda u, r: u + decay * r, given, state.residual)
        update, residual, carry = _exchanged(pending, exchange, state.carry)
        return update, ResidualState(residual, carry, state.step + 1)

    return link(init, step, axis_name, ResidualState)


def around(
    inner: optax.GradientTransformation,
    axis_name: AxisName,
    exchange: Callable[[list[jax.Array], PyTree], Exchanged],
) -> optax.GradientTransformationExtraArgs:
    """Error feedback around an exchange of the updates of a worker's optimizer, as `error_feedback` has it.

    Args:
        inner: the worker's optimizer, whose state is per-worker.
        axis_name: the axis over workers.
        exchange: see `feedback`; its carry is ().

    Returns:
        An `optax.GradientTransformationExtraArgs` with state `ErrorFeedbackState`; λ is 0.
    """
    start = error_feedback(identity(), None, detach=0.0)  # its state alone: nothing is sent

    def step(updates, state, *_):
        update, residual, _ = _exchanged(pend(updates, state.residual), exchange, ())
        return update, state._replace(step=state.step + 1, residual=residual)

    return wrapped(inner, start.init, step, axis_name)


def _exchanged(
    pending: PyTree, exchange: Callable[[list[jax.Array], PyTree], Exchanged], carry: PyTree
) -> tuple[PyTree, PyTree, PyTree]:
    """What all workers apply, what worker k keeps, and the carry."""
    tensors, treedef = jax.tree.flatten(pending)
    update, sent, carry = exchange(tensors, carry)
    residual = jax.tree.unflatten(treedef, map(jnp.subtract, tensors, sent))
    return jax.tree.unflatten(treedef, update), residual, carry


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """A tensor as a matrix: the output features, last in JAX, and everything else.

    >>> matrix_shape((3, 3, 16, 32))
    (144, 32)
    """
    return math.prod(shape[:-1]), shape[-1] if shape else 1


def chunk_shape(shape: tuple[int, ...], chunk: int) -> tuple[int, int]:
    """The edges of a tensor's chunks as a matrix: the largest divisors of its axes up to `chunk`.

    >>> chunk_shape((3, 3, 16, 32), 64), chunk_shape((96,), 64)
    ((48, 32), (1, 48))
    """
    rows, columns = matrix_shape(shape)
    return _largest_divisor(rows, chunk), _largest_divisor(columns, chunk)


def to_chunks(x: jax.Array, chunk: int) -> jax.Array:
    """The chunks of a tensor, see `chunk_shape`: [chunks, elements]."""
    down, height, across, width = _grid(x.shape, chunk)
    blocks = x.reshape(down, height, across, width).swapaxes(1, 2)
    return blocks.reshape(down * across, height * width)


def from_chunks(chunks: jax.Array, shape: tuple[int, ...], chunk: int) -> jax.Array:
    """Undoes `to_chunks`."""
    down, height, across, width = _grid(shape, chunk)
    return chunks.reshape(down, across, height, width).swapaxes(1, 2).reshape(shape)


def _grid(shape: tuple[int, ...], chunk: int) -> tuple[int, int, int, int]:
    """Chunks down, rows of a chunk, chunks across, columns of a chunk."""
    rows, columns = matrix_shape(shape)
    height, width = chunk_shape(shape, chunk)
    return rows // height, height, columns // width, width


def _largest_divisor(n: int, most: int) -> int:
    return max((d for d in range(1, min(n, most) + 1) if n % d == 0), default=1)


def largest(chunks: jax.Array, count: int) -> jax.Array:
    """The places of the `count` elements of largest magnitude in every chunk, [chunks, count]."""
    if not chunks.size:
        return jnp.zeros((len(chunks), 0), jnp.int32)
    return lax.top_k(jnp.abs(chunks), count)[1]


def gather_largest(
    tensors: Sequence[jax.Array], ratio: float, axis_name: AxisName
) -> tuple[list[jax.Array], list[jax.Array], list[jax.Array]]:
    """Sums over workers of the elements that each has chosen, how many have chosen it, and worker k's own.

    A worker chooses those of largest magnitude, the same number in every chunk. An element is a word of its
    message: the value in bfloat16, and its place in the chunk in 16 bits.

    Args:
        tensors: float32 [chunks, elements] each, with at most 65,536 elements in a chunk.
        ratio: bytes of a chunk over those that a worker sends of it: k = elements // ratio, at least 1.
        axis_name: the axis over workers.

    Returns:
        Three lists like `tensors`, with zeros elsewhere; all but the last are the same on all workers.

    Source: the exchange of sparse tensors by all-gather, e.g. Lin et al. (2018).
    """
    if (total := sum(x.size for x in tensors)) >= 2**32:
        raise ValueError(
            f'all tensors together have {total} elements, but a message indexes fewer than 2**32. Give '
            'groups of them an optimizer each, by optax.multi_transform.'
        )
    starts = np.cumsum([0, *(x.size for x in tensors)])
    begins, places = [jnp.zeros(0, jnp.uint32)], [jnp.zeros(0, jnp.uint32)]
    for start, x in zip(starts, tensors, strict=False):
        count, size = x.shape
        chosen = largest(x, min(size, max(1, int(size // ratio))))
        rows = jnp.uint32(start) + jnp.uint32(size) * jnp.arange(count, dtype=jnp.uint32)
        begins.append(jnp.broadcast_to(rows[:, None], chosen.shape).ravel())
        places.append(chosen.astype(jnp.uint32).ravel())
    whole, unravel = ravel_pytree(tensors)
    begin, place = jnp.concatenate(begins), jnp.concatenate(places)
    values = lax.bitcast_convert_type(whole[begin + place].astype(jnp.bfloat16), jnp.uint16)
    message = values.astype(jnp.uint32) << 16 | place

    def decoded(message):
        values = lax.bitcast_convert_type((message >> 16).astype(jnp.uint16), jnp.bfloat16)
        return values.astype(jnp.float32), begin + (message & 0xFFFF)

    def add(worker, sums):
        # One worker after the other: places are then unique, and the order of the sum is the same everywhere,
        # also where a scatter of colliding places would use atomic operations.
        values, at = decoded(gathered[worker])
        totals, counts = (x.at[at] for x in sums)
        return totals.add(values, unique_indices=True), counts.add(1.0, unique_indices=True)

    gathered = all_gather(message, axis_name)
    zeros = jnp.zeros(whole.size, jnp.float32)
    totals, counts = lax.fori_loop(0, len(gathered), add, (zeros, zeros))
    values, at = decoded(message)
    own = jnp.zeros_like(whole).at[at].set(values, unique_indices=True)
    return unravel(totals), unravel(counts), unravel(own)


def gathered_mean(message: jax.Array, decoded: Callable[[jax.Array], PyTree], axis_name: AxisName) -> PyTree:
    """The mean over workers of `decoded(message)`, summed in the same order everywhere."""
    gathered = all_gather(message, axis_name)

    def add(worker, total):
        return jax.tree.map(jnp.add, total, decoded(gathered[worker]))

    total = lax.fori_loop(1, len(gathered), add, decoded(gathered[0]))
    return jax.tree.map(lambda x: x / len(gathered), total)


def to_words(values: jax.Array, bits: int) -> jax.Array:
    """Numbers of so many bits in words of 32: [n] -> uint32 [⌈n·bits / 32⌉]. `bits` divides 32."""
    fit = 32 // bits
    padded = jnp.pad(values.astype(jnp.uint32), (0, -len(values) % fit)).reshape(-1, fit)
    return jnp.sum(padded << _shifts(bits), axis=1, dtype=jnp.uint32)


def from_words(words: jax.Array, bits: int, size: int) -> jax.Array:
    """Undoes `to_words`: uint32 [size]."""
    return (words[:, None] >> _shifts(bits) & jnp.uint32(2**bits - 1)).reshape(-1)[:size]


def _shifts(bits: int) -> jax.Array:
    return jnp.arange(0, 32, bits, dtype=jnp.uint32)[None]


def plus(selection: Selection, tree: PyTree, message: jax.Array) -> PyTree:
    """The tree plus the message at its place."""
    return selection.replace(tree, selection.take(tree) + message)
