"""A worker's gradient, of its batch as a whole or accumulated over parts of it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from def_jax.trainer.tasks.base import Batch
from def_jax.types import PyTree

__all__ = ['accumulated_value_and_grad']


def accumulated_value_and_grad(
    loss: Callable[..., Any], accumulate: int = 1, lay_out: Callable[[Batch], Batch] = lambda part: part
) -> Callable[..., Any]:
    """A function like `jax.value_and_grad(loss, has_aux=True)`, over one part of a batch at a time.

    Loss, metrics and gradient are means over the parts; BatchNorm's statistics pass from part to part.
    `lay_out` divides a part among the devices of a worker that has several.
    """
    value_and_grad = jax.value_and_grad(loss, has_aux=True)
    if accumulate == 1:
        return value_and_grad

    def accumulated(params: PyTree, batch_stats: PyTree, batch: Batch, key: jax.Array) -> PyTree:
        def part(carry: PyTree, inputs: tuple[Batch, jax.Array]) -> tuple[PyTree, None]:
            totals, batch_stats = carry
            examples, key = inputs
            found = value_and_grad(params, batch_stats, lay_out(examples), key)
            (value, (figures, batch_stats)), grads = found
            return (jax.tree.map(jnp.add, totals, (value, figures, grads)), batch_stats), None

        parts = jax.tree.map(lambda x: x.reshape(accumulate, -1, *x.shape[1:]), batch)
        keys = jax.random.split(key, accumulate)
        first = jax.tree.map(lambda x: x[0], parts)
        shapes = jax.eval_shape(value_and_grad, params, batch_stats, first, key)
        (value, (figures, _)), grads = jax.tree.map(lambda each: jnp.zeros(each.shape, each.dtype), shapes)
        (totals, batch_stats), _ = jax.lax.scan(part, ((value, figures, grads), batch_stats), (parts, keys))
        value, figures, grads = jax.tree.map(lambda total: total / accumulate, totals)
        return (value, (figures, batch_stats)), grads

    return accumulated
