"""Blocks of small integers: four times as large as float32 ones at the same bytes. An experiment."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from def_jax.compressors import Compressor
from def_jax.compressors.base import Selection

__all__ = ['narrow']

PyTree = Any


def narrow(compressor: Compressor, levels: int, axis_name: str) -> Compressor:
    """The blocks of `compressor`, rounded to integers in [-levels, levels] times a scale.

    All workers share the scale of a tensor, so that integers add up in the all-reduce: with K workers of at
    most 127 // K levels, the sum fits into int8. One level is a sign. What rounding leaves stays in the
    residual. The integers are simulated in float32, as multiples of the scale; only `like` itself is rounded.
    """

    def select(key, step, like):
        selection = compressor(key, step, like)
        kinds = np.arange(len(jax.tree.leaves(like)), dtype=np.float32)
        full = jax.tree.map(lambda kind, x: jnp.full(x.shape, kind), _like(kinds, like), like)
        tensor = selection.take(full)[:, None] == kinds  # bool [B, tensors]
        round_ = functools.partial(_rounded, levels=levels, tensor=tensor, axis_name=axis_name)

        def take(tree):
            block = selection.take(tree)
            return round_(block) if tree is like else block  # the outer optimizer's state is not rounded

        def replace(tree, message):
            if tree is like:
                block = selection.take(tree)
                message = message + block - round_(block)
            return selection.replace(tree, message)

        return Selection(take, replace, selection.energy)

    return select


def _rounded(block: jax.Array, levels: int, tensor: jax.Array, axis_name: str) -> jax.Array:
    size = jnp.abs(block)[:, None] * tensor
    if levels == 1:  # the scale that is closest to the block, as in EF-signSGD
        scale = lax.pmean(size.sum(0) / jnp.maximum(tensor.sum(0), 1), axis_name)
        return jnp.sign(block) * (tensor @ scale)
    scale = tensor @ lax.pmax(size.max(0), axis_name) / levels
    return jnp.round(block / jnp.where(scale > 0, scale, 1)) * scale


def _like(values: np.ndarray, tree: PyTree) -> PyTree:
    return jax.tree.unflatten(jax.tree.structure(tree), list(values))
