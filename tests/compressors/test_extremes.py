"""Leaves past 2^31 elements: by abstract evaluation, and the starts of their blocks."""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import def_jax
from def_jax.compressors.blocks import Block, _draw_places
from def_jax.ground import random
from def_jax.wires.layouts import Layout


@pytest.mark.parametrize('shape', [(2**16, 2**16), (3, 2**31), (2**32 - 64,), (2**11,) * 3])
def test_blocks_of_leaves_past_2_31_elements(shape):
    leaf, compressor = jax.ShapeDtypeStruct(shape, jnp.bfloat16), def_jax.random_block(64)
    optimizer = def_jax.error_feedback(compressor, None)
    updates, state = jax.eval_shape(lambda x: optimizer.update(x, optimizer.init(x)), leaf)
    assert (updates.shape, updates.dtype, state.residual.shape) == (shape, jnp.bfloat16, shape)
    assert state.residual.dtype == jnp.float32
    assert def_jax.message_size(compressor, leaf) == leaf.size // 64

    block, key = Block.of(shape, leaf.size // 64), jax.random.PRNGKey(0)

    def draw(place):
        with mock.patch.object(random, 'draw', lambda *_: place[None]):
            return _draw_places('random', key, jnp.uint32(0), [block], Layout.dense([block.size]))[0][0]

    starts = np.stack(jax.vmap(draw)(jnp.arange(64, dtype=jnp.uint32)), axis=-1).tolist()
    assert len({tuple(start) for start in starts}) == 64
    for start in starts:
        assert all(0 <= s <= n - b and s % b == 0 for s, n, b in zip(start, shape, block.shape, strict=True))


@pytest.mark.parametrize(
    ('shape', 'compressor', 'words'),
    [
        ((2**16, 2**16), def_jax.random_block(1e12), r'shape=\(65536, 65536\) has 4294967296 blocks'),
        ((2**32,), def_jax.random_block(64), r'of an axis fewer than 2\*\*32'),
        ((2**31,), def_jax.baselines.random_k(64), '2147483648 blocks or elements'),
    ],
)
def test_what_32_bits_cannot_index_is_refused(shape, compressor, words):
    optimizer = def_jax.error_feedback(compressor, None)
    with pytest.raises(ValueError, match=words):
        jax.eval_shape(
            lambda x: optimizer.update(x, optimizer.init(x)), jax.ShapeDtypeStruct(shape, jnp.bfloat16)
        )
