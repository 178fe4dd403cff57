"""A decoder-only transformer on bytes, as plain functions of its parameters: fast under vmap on one core."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ['SIZES', 'Size', 'init', 'losses', 'parameters']

VOCABULARY = 256
PyTree = Any


@dataclasses.dataclass(frozen=True)
class Size:
    """Layers, width, heads and context; the MLP is four times as wide."""

    layers: int
    width: int
    heads: int
    context: int


SIZES = {
    '33k': Size(2, 32, 2, 32),
    '115k': Size(2, 64, 4, 64),
    '358k': Size(3, 96, 4, 64),
    '1m': Size(5, 128, 4, 64),
    '11m': Size(6, 384, 6, 64),
}


def init(size: Size, seed: int) -> PyTree:
    """The initial parameters; the head is the transposed embedding."""
    keys = iter(jax.random.split(jax.random.PRNGKey(seed), 1 + 4 * size.layers))
    d, deep = size.width, np.sqrt(2 * size.layers)

    def normal(shape, scale):
        return scale * jax.random.normal(next(keys), shape, jnp.float32)

    params: dict[str, Any] = {'embed': normal((VOCABULARY, d), 0.5 / np.sqrt(d)), 'norm': jnp.ones(d)}
    for i in range(size.layers):
        params[f'b{i}'] = {
            'n1': jnp.ones(d),
            'n2': jnp.ones(d),
            'qkv': normal((d, 3 * d), d**-0.5),
            'out': normal((d, d), d**-0.5 / deep),
            'up': normal((d, 4 * d), d**-0.5),
            'bias': jnp.zeros(4 * d),
            'down': normal((4 * d, d), (4 * d) ** -0.5 / deep),
        }
    return params


def parameters(size: Size) -> int:
    """How many there are."""
    return sum(x.size for x in jax.tree.leaves(jax.eval_shape(functools.partial(init, size), 0)))


def losses(size: Size, params: PyTree, tokens: jax.Array) -> jax.Array:
    """Nats a byte, float32 [batch, context], of tokens uint8 [batch, context + 1]."""
    inputs, targets = tokens[:, :-1].reshape(-1), tokens[:, 1:].reshape(-1)
    # Products with one-hot vectors: on a CPU their gradient is faster than that of a gather.
    x = jax.nn.one_hot(inputs, VOCABULARY, dtype=jnp.float32) @ params['embed'] * 2.0
    for i in range(size.layers):
        block = params[f'b{i}']
        x = x + _attention(size, block, _rms_norm(x, block['n1'])) @ block['out']
        x = x + jax.nn.gelu(_rms_norm(x, block['n2']) @ block['up'] + block['bias']) @ block['down']
    logits = _rms_norm(x, params['norm']) @ params['embed'].T
    picked = jnp.sum(logits * jax.nn.one_hot(targets, VOCABULARY, dtype=jnp.float32), -1)
    return (jax.nn.logsumexp(logits, -1) - picked).reshape(-1, size.context)


def _attention(size: Size, block: PyTree, x: jax.Array) -> jax.Array:
    per_head = size.width // size.heads
    parts = (x @ block['qkv']).reshape(-1, size.context, 3, size.heads, per_head)
    q, k, v = parts.transpose(2, 0, 3, 1, 4)
    q, k = _rotate(q), _rotate(k)
    mask = np.where(np.tril(np.ones((size.context, size.context))) > 0, 0.0, -1e9).astype(np.float32)
    weights = jax.nn.softmax(q @ k.swapaxes(-1, -2) * per_head**-0.5 + mask, -1)
    return (weights @ v).transpose(0, 2, 1, 3).reshape(-1, size.width)


def _rotate(x: jax.Array) -> jax.Array:
    """Rotary positions; x is [batch, heads, context, per_head]."""
    context, per_head = x.shape[-2:]
    angles = np.arange(context)[:, None] * 10_000.0 ** (-np.arange(0, per_head, 2) / per_head)
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    a, b = jnp.split(x, 2, -1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def _rms_norm(x: jax.Array, scale: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6) * scale
