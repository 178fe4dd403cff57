"""SparseLoCo: local steps, then the largest two-bit entries of what they and earlier rounds have left."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax
from jax import lax

from def_jax.baselines.base import (
    Exchanged,
    ResidualState,
    feedback,
    from_chunks,
    from_words,
    gathered_mean,
    largest,
    to_chunks,
    to_words,
)
from def_jax.compressors import identity
from def_jax.error_feedback import ErrorFeedbackState, error_feedback, wrapped
from def_jax.ground.arguments import check_integer, check_number, check_ratio
from def_jax.ground.types import AxisName
from def_jax.options.skipping import all_finite
from def_jax.state.link import float32_updates
from def_jax.wires.layouts import Layout

__all__ = ['SparseLoCoState', 'sparse_loco']

_BITS, _INDEX_BITS = 2, 16  # of a value, and of its place in a chunk
_LEVELS, _RANGE = 4, 6.0  # of the quantiser, and the standard deviations that they span


class SparseLoCoState(ErrorFeedbackState):
    """State of `sparse_loco`: the residual is how far worker k has moved since the last message; λ is 1."""

    __slots__ = ()

    @property
    def error(self) -> ResidualState:
        """What worker k's messages have left out: its decay stands for the outer momentum."""
        return self.outer

    @property
    def per_worker(self) -> tuple[str, ...]:
        return (*super().per_worker, 'outer')


def sparse_loco(
    ratio: float,
    axis_name: AxisName,
    *,
    inner: optax.GradientTransformation = optax.identity(),  # noqa: B008
    every: int = 1,
    error_decay: float = 0.95,
    chunk: int = 64,
) -> optax.GradientTransformationExtraArgs:
    """DiLoCo with sparse messages of two bits a value, and error feedback in place of the outer momentum.

    Every worker takes H = `every` local steps, Δ_k, from the shared parameters. Then e_k ← β·e_k + Δ_k; of
    each chunk of e_k the entries of largest magnitude are all-gathered in two bits, ê_k, and subtracted from
    e_k; all workers apply mean_k ê_k and start the next round there. The decayed error plays the part of the
    outer momentum.

    Wrap the worker's optimizer with it, and take gradients at `detached_params`, which is worker k's local
    model. Chunks are blocks of a matrix of at most `chunk` by `chunk` elements, and runs of a vector of
    at most `chunk` squared. A tensor's values are quantised to four levels at distances of 1.5 standard
    deviations; a level stands for the mean of the values that it took.

    Args:
        ratio: bytes of a chunk over the bytes that a worker sends of it, a number >= 1. A value and its place
            take 18 bits, so the paper's densities of 1 to 3 % of 4,096 are ratios of about 180 to 60.
        axis_name: the axis over workers, a tuple of axes, or None for a single worker.
        inner: the worker's optimizer, see `error_feedback`.
        every: H, steps per message.
        error_decay: β in [0, 1], the factor of the error before a round's steps are added.
        chunk: the longest edge of a chunk, below 256.

    Returns:
        An `optax.GradientTransformationExtraArgs` with state `SparseLoCoState`.

    Raises:
        ValueError: if an argument is out of range; in `update`, if `axis_name` is not bound.

    References:
        Sarfi, Thérien, Lidin and Belilovsky, `Communication Efficient LLM Pre-training with SparseLoCo
        <https://arxiv.org/abs/2508.15706>`_, 2025, Algorithm 1, with the outer learning rate 1; chunks and
        quantiser as in `its code <https://github.com/tplr-ai/SparseLoCo>`_.

    >>> import jax.numpy as jnp, def_jax
    >>> link = def_jax.baselines.sparse_loco(4, None, every=2)
    >>> state, step = link.init(jnp.zeros(4)), jnp.array([1.0, -3.0, 2.0, 0.5])
    >>> first, state = link.update(step, state)
    >>> second, state = link.update(step, state)
    >>> first.tolist(), second.tolist(), state.error.residual.tolist()
    ([0.0, 0.0, 0.0, 0.0], [0.0, -6.0, 0.0, 0.0], [2.0, 0.0, 4.0, 1.0])
    """
    ratio = check_ratio(ratio)
    check_number('error_decay', error_decay, 0, 1, 'β: the share of the error kept per message')
    check_integer('chunk', chunk, 1, 'the longest edge of a chunk', bits=8)
    check_integer('every', every, 1, 'the number of steps per message')

    messages = _messages(ratio, axis_name, error_decay, chunk)
    accumulate = error_feedback(identity(), None, detach=1.0)  # its state alone: nothing is sent

    def init(params):
        started = accumulate.init(params)._replace(outer=messages.init(params))
        return SparseLoCoState(*started)

    def step(updates, state, *_):
        moved = jax.tree.map(jnp.add, state.residual, float32_updates(updates, state.residual))

        def send(moved, error):
            update, error = messages.update(moved, error)
            return update, optax.tree.zeros_like(moved), error  # which still vary over workers

        def wait(moved, error):
            return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), moved), moved, error

        count = state.step + 1
        due = functools.partial(lax.cond, count % every == 0, send, wait) if every > 1 else send
        update, residual, error = due(moved, state.error)
        return update, state._replace(step=count, residual=residual, outer=error)

    return wrapped(inner, init, step, axis_name, SparseLoCoState)


def _messages(
    ratio: float, axis_name: AxisName, error_decay: float, chunk: int
) -> optax.GradientTransformationExtraArgs:
    """What workers exchange: the sparse messages, with error feedback."""

    def edge(leaf):
        return chunk if leaf.ndim > 1 else chunk**2

    def exchange(pending, carry):
        message, decoded = _encoded([to_chunks(x, edge(x)) for x in pending], ratio)

        def tensors(chunks):
            return [from_chunks(c, x.shape, edge(x)) for c, x in zip(chunks, pending, strict=True)]

        mean = gathered_mean(message, decoded, axis_name)
        return Exchanged(tensors(mean), tensors(decoded(message)), carry)

    return feedback(axis_name, exchange, decay=error_decay)


def _encoded(
    chunks: Sequence[jax.Array], ratio: float
) -> tuple[jax.Array, Callable[[jax.Array], list[jax.Array]]]:
    """The message of tensors cut into chunks, uint32 [B], and what makes such tensors of a message."""
    counts = [min(x.shape[1], max(1, int(x.shape[1] * 32 // (_BITS + _INDEX_BITS) // ratio))) for x in chunks]
    places = [largest(x, count) for x, count in zip(chunks, counts, strict=True)]
    values = [jnp.take_along_axis(x, at, axis=1) for x, at in zip(chunks, places, strict=True)]
    quantised = [_quantised(x.ravel()) for x in values]
    sizes = [x.size for x in values]

    def joined(parts, dtype):
        return jnp.concatenate([jnp.zeros(0, dtype), *(part.ravel().astype(dtype) for part in parts)])

    def apart(words, bits):
        return Layout.dense(sizes).split(from_words(words, bits, sum(sizes)), sizes)

    sections = [
        to_words(joined([codes for codes, _ in quantised], jnp.uint32), _BITS),
        to_words(joined(places, jnp.int32), _INDEX_BITS),
        lax.bitcast_convert_type(joined([means for _, means in quantised], jnp.float32), jnp.uint32),
    ]
    lengths = [len(section) for section in sections]

    def decoded(message):
        codes, indices, means = Layout.dense(lengths).split(message, lengths)
        levels = lax.bitcast_convert_type(means, jnp.float32).reshape(-1, _LEVELS)
        found = []
        parts = apart(codes, _BITS), apart(indices, _INDEX_BITS), levels
        for x, place, code, at, level in zip(chunks, places, *parts, strict=True):
            rows, columns, taken = jnp.arange(len(x))[:, None], at.reshape(place.shape), level[code]
            taken = taken.reshape(columns.shape)
            zeros = jnp.zeros(x.shape, jnp.float32)
            found.append(zeros.at[rows, columns].set(taken, unique_indices=True))
        return found

    return jnp.concatenate(sections), decoded


def _quantised(values: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Codes [n] of values [n], and the mean of the values of each code, float32 [4]: NaN if a value is."""
    n = max(1, values.size)
    centred = values - values.sum() / n
    scale = _RANGE / _LEVELS * jnp.sqrt(jnp.sum(centred**2) / max(1, n - 1))
    # The levels are not symmetric, and the paper's Δ has the opposite sign of the updates.
    codes = jnp.clip(jnp.round(-centred / jnp.where(scale > 0, scale, 1)) + _LEVELS // 2, 0, _LEVELS - 1)
    taken = codes[:, None] == jnp.arange(_LEVELS, dtype=codes.dtype)[None]
    totals = jnp.sum(jnp.where(taken, values[:, None], 0), 0)
    means = totals / jnp.maximum(1, taken.sum(0, dtype=values.dtype))
    return codes, jnp.where(all_finite(values), means, jnp.nan)  # NaN is of no code, and all must see it
