"""DeMo: each worker sends the largest cosine coefficients of its momentum, and all apply the sign."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from def_jax.baselines.base import (
    Exchanged,
    chunk_shape,
    feedback,
    from_chunks,
    gather_largest,
    to_chunks,
)
from def_jax.ground.arguments import check_integer, check_number, check_ratio
from def_jax.ground.types import AxisName

__all__ = ['cosines', 'demo']


def demo(
    ratio: float, axis_name: AxisName, *, momentum_decay: float = 0.999, chunk: int = 64
) -> optax.GradientTransformation:
    """Decoupled momentum: what is sent of a worker's momentum is removed from it.

    A tensor of two or more axes counts as the matrix of its last axis by all others and is cut into chunks of
    at most `chunk` elements along each axis, a vector along its one. Of the cosine transform (DCT-II,
    orthonormal) of every chunk, the k coefficients of largest magnitude are all-gathered with their indices
    and subtracted from the momentum. Each coefficient is averaged over the workers that sent it; the update
    is the sign of the inverse transform.

    Make it the first link of a chain, with the gradient taken at the parameters, and let
    `optax.scale_by_learning_rate` follow, without another momentum. The rate is of the size of a step of
    signSGD or Adam. The authors' code multiplies gradients by the learning rate when they enter the momentum;
    since only the sign is applied, this differs from the code only in the weight of momentum gathered before
    the rate changed.

    Args:
        ratio: bytes of a chunk over the bytes that a worker sends of it, a number >= 1. A coefficient and
            its place take 16 bits each, so k = size // ratio, at least 1; the code keeps 32 of 64 · 64.
        axis_name: the axis over workers, a tuple of axes, or None for a single worker.
        momentum_decay: β in [0, 1), the decay of the momentum.
        chunk: the longest edge of a chunk, below 256; the edge is the largest divisor of the axis up to it.

    Returns:
        An `optax.GradientTransformation` with state `baselines.ResidualState`; its residual is the momentum.

    Raises:
        ValueError: if an argument is out of range; in `update`, if `axis_name` is not bound.

    References:
        Peng, Quesnelle and Kingma, `DeMo: Decoupled Momentum Optimization
        <https://arxiv.org/abs/2411.19870>`_, 2024, Algorithm 1, and the sign of `its code
        <https://github.com/bloc97/DeMo>`_.

    >>> import jax.numpy as jnp, def_jax
    >>> link = def_jax.baselines.demo(4, None)
    >>> gradient = jnp.array([2.0, 2.0, 2.0, 4.0])  # almost all of it in the first coefficient
    >>> updates, state = link.update(gradient, link.init(gradient))
    >>> updates.tolist(), state.residual.round(2).tolist()
    ([1.0, 1.0, 1.0, 1.0], [-0.5, -0.5, -0.5, 1.5])
    """
    ratio = check_ratio(ratio)
    hint = 'β: the share of the momentum kept per step'
    check_number('momentum_decay', momentum_decay, 0, 1, hint, below=True)
    check_integer('chunk', chunk, 1, 'the longest edge of a chunk', bits=8)

    def exchange(pending, carry):
        def restored(coefficients):
            return [_restored(c, x.shape, chunk) for c, x in zip(coefficients, pending, strict=True)]

        coefficients = [_transformed(x, chunk) for x in pending]
        totals, counts, own = gather_largest(coefficients, ratio, axis_name)
        means = [total / jnp.maximum(count, 1) for total, count in zip(totals, counts, strict=True)]
        return Exchanged([jnp.sign(x) for x in restored(means)], restored(own), carry)

    return feedback(axis_name, exchange, decay=momentum_decay)


def cosines(size: int) -> np.ndarray:
    """The orthonormal DCT-II as a matrix [size, size]: coefficients = cosines @ signal."""
    frequency, place = np.ogrid[:size, :size]
    waves = np.sqrt(2 / size) * np.cos(np.pi * (2 * place + 1) * frequency / (2 * size))
    waves[0] /= np.sqrt(2)
    return waves.astype(np.float32)


def _transformed(x: jax.Array, chunk: int) -> jax.Array:
    """The cosine transform of every chunk, [chunks, elements]."""
    height, width = chunk_shape(x.shape, chunk)
    blocks = to_chunks(x, chunk).reshape(-1, height, width)
    return jnp.einsum('chw,fh,gw->cfg', blocks, cosines(height), cosines(width)).reshape(-1, height * width)


def _restored(coefficients: jax.Array, shape: tuple[int, ...], chunk: int) -> jax.Array:
    height, width = chunk_shape(shape, chunk)
    blocks = coefficients.reshape(-1, height, width)
    return from_chunks(jnp.einsum('cfg,fh,gw->chw', blocks, cosines(height), cosines(width)), shape, chunk)
