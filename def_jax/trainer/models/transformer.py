"""A decoder-only transformer for language modelling.

Sources: Vaswani et al., "Attention Is All You Need", 2017; Zhang and Sennrich, "Root Mean Square Layer
Normalization", 2019; Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021. The
norms come before the layers and nothing has a bias, as in LLaMA (Touvron et al., 2023).
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jax.typing import DTypeLike

from def_jax.ground.arguments import check_integer

__all__ = [
    *('Transformer', 'segment_positions'),
    *('transformer_1m', 'transformer_11m', 'transformer_85m', 'transformer_115k'),
]

_MLP_FACTOR = 4  # the MLP's hidden width, in widths
_ROTARY_BASE = 10_000.0  # wavelengths are 2π … 2π · base tokens


class Transformer(nn.Module):
    """Token embedding, blocks of attention and MLP, and a linear head, all without biases.

    Each block adds causal self-attention and then a GELU MLP of four times the width to its input, each of an
    RMS-normalised input. Queries and keys are rotated by their positions.

    >>> model = Transformer(vocab_size=256, num_layers=2, width=64, num_heads=4, context=64)
    >>> tokens = jnp.zeros((1, 64), jnp.int32)
    >>> params = jax.eval_shape(lambda: model.init(jax.random.key(0), tokens))['params']
    >>> sum(leaf.size for leaf in jax.tree.leaves(params))
    115008
    """

    vocab_size: int  # V
    num_layers: int
    width: int  # the size of a token's vector
    num_heads: int  # whose size is width / num_heads, an even number
    context: int  # the longest sequence that the model takes
    tied: bool = True  # whether the head is the transposed embedding, or a matrix of its own
    # Whether the backward pass recomputes each block: about a third more time, much less memory; on CPUs only
    # with XLA_FLAGS=--xla_disable_hlo_passes=cse_barrier_expander.
    remat: bool = False
    dtype: DTypeLike = jnp.float32  # of the computation and logits; parameters, norms, softmax are float32

    def __post_init__(self):
        for name in ('vocab_size', 'num_layers', 'width', 'num_heads', 'context'):
            check_integer(name, getattr(self, name), 1, 'a size of the network')
        if self.width % (2 * self.num_heads):
            multiple = f'a multiple of 2 * num_heads={2 * self.num_heads}'
            raise ValueError(
                f'width={self.width} must be {multiple}: every head rotates pairs of components.'
            )
        super().__post_init__()

    @nn.compact
    def __call__(self, tokens: jax.Array, segments: jax.Array | None = None) -> jax.Array:
        """The logits, float32 [B, L, V], of the token that follows each of `tokens`, integers [B, L].

        Equal `segments`, integers [B, L], are a document, without gaps: its positions start from 0, and
        attention does not leave it. None if each row is one document.
        """
        if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
            raise ValueError(f'{tokens.shape=} of {tokens.dtype=} must be [B, L] of integers.')
        if tokens.shape[1] > self.context:
            longer = f'longer than the context={self.context} of the model'
            raise ValueError(f'sequences of {tokens.shape[1]} tokens are {longer}.')
        segments = jnp.zeros_like(tokens) if segments is None else segments
        same = nn.make_attention_mask(segments, segments, jnp.equal, dtype=bool)
        mask = same & nn.make_causal_mask(tokens, dtype=bool)
        rotation = _rotation(segment_positions(segments), self.width // self.num_heads)

        # Scaled like the hidden states: a token's vector has unit variance, and so have tied logits.
        embedding = nn.Embed(
            self.vocab_size,
            self.width,
            embedding_init=nn.initializers.normal(self.width**-0.5),
            dtype=self.dtype,
            name='embedding',
        )
        x = embedding(tokens) * self.width**0.5
        block = nn.remat(Block) if self.remat else Block
        for index in range(self.num_layers):
            scale, name = (2 * self.num_layers) ** -0.5, f'block_{index}'
            x = block(self.num_heads, scale, self.dtype, name=name)(x, mask, rotation)
        x = nn.RMSNorm(dtype=self.dtype, name='norm')(x)
        logits = embedding.attend(x) if self.tied else _linear(self.vocab_size, self.dtype, 'head')(x)
        return logits.astype(jnp.float32)


class Block(nn.Module):
    """Attention and an MLP, each of a normalised input and added to it.

    `output_scale` multiplies the initial weights of the two layers whose outputs are added, so that the sum
    over all blocks has unit variance (Radford et al., "Language Models are Unsupervised Multitask Learners",
    2019, section 2.3).
    """

    num_heads: int
    output_scale: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array, rotation: tuple[jax.Array, jax.Array]) -> jax.Array:
        """Maps hidden states [B, L, width] to hidden states.

        `mask` is which keys a query sees, bool [B, 1, L, L]; `rotation`, cosines and sines, each float32
        [B, L, 1, width / num_heads / 2].
        """
        width = x.shape[-1]
        heads = (*x.shape[:-1], self.num_heads, width // self.num_heads)

        y = nn.RMSNorm(dtype=self.dtype, name='attention_norm')(x)
        query, key, value = (
            _linear(width, self.dtype, name)(y).reshape(heads) for name in ('query', 'key', 'value')
        )
        query, key = _rotate(query, rotation), _rotate(key, rotation)
        y = jax.nn.dot_product_attention(query, key, value, mask=mask)
        x += _linear(width, self.dtype, 'attention_output', self.output_scale)(y.reshape(x.shape))

        y = nn.RMSNorm(dtype=self.dtype, name='mlp_norm')(x)
        y = nn.gelu(_linear(_MLP_FACTOR * width, self.dtype, 'mlp_input')(y))
        return x + _linear(width, self.dtype, 'mlp_output', self.output_scale)(y)


def segment_positions(segments: jax.Array) -> jax.Array:
    """The position of each token in its document, int32 [B, L].

    >>> segment_positions(jnp.array([[1, 1, 2, 2, 2, 0]])).tolist()
    [[0, 1, 0, 1, 2, 0]]
    """
    index = jnp.arange(segments.shape[1], dtype=jnp.int32)
    new = jnp.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (1, 0)))
    return index - lax.cummax(jnp.where(new, index, 0), axis=1)


def _rotation(positions: jax.Array, head_size: int) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines of the angles by which the pairs of a head are rotated, float32 [B, L, 1, size / 2].

    Source: RoFormer, equation 15.
    """
    frequencies = _ROTARY_BASE ** -(jnp.arange(0, head_size, 2, dtype=jnp.float32) / head_size)
    angles = positions[:, :, None, None].astype(jnp.float32) * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def _rotate(x: jax.Array, rotation: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotates component i of each head with component i + size / 2; x is [B, L, heads, size]."""
    cos, sin = rotation
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def _linear(features: int, dtype: DTypeLike, name: str, scale: float = 1.0) -> nn.Module:
    """A linear map whose outputs have the variance scale² if its inputs have unit variance."""
    init = nn.initializers.variance_scaling(scale**2, 'fan_in', 'normal')
    return nn.Dense(features, use_bias=False, kernel_init=init, dtype=dtype, name=name)


# The parameter counts are those with 256 tokens.
transformer_115k = functools.partial(Transformer, num_layers=2, width=64, num_heads=4, context=64)
transformer_1m = functools.partial(Transformer, num_layers=5, width=128, num_heads=4, context=256)
transformer_11m = functools.partial(Transformer, num_layers=6, width=384, num_heads=6, context=256)
transformer_85m = functools.partial(Transformer, num_layers=12, width=768, num_heads=12, context=1024)
