"""What each compressor sends: a projection, message size. How often is in test_draws.py."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compressing import KEY, compress, ones_like
from network_shapes import REAL

import def_jax
from def_jax.baselines.base import plus

SHAPES = [(3, 3, 4, 8), (7, 11), (10,), (), (0, 3)]
COMPRESSORS = {
    'random_block': def_jax.random_block(4),
    'random_block_cut_short': def_jax.random_block(3),
    'random_k': def_jax.baselines.random_k(4),
    'scaled': def_jax.baselines.scaled(0.25),
}


def make_tree(dtype=jnp.float32, seed=0):
    rng = np.random.default_rng(seed)
    leaves = {f'leaf{i}': jnp.asarray(rng.normal(size=shape), dtype) for i, shape in enumerate(SHAPES)}
    return {'many': leaves, 'one': jnp.asarray(rng.normal(size=(2, 4)), dtype)}


@pytest.mark.parametrize(
    ('name', 'dtype'), [*((name, jnp.float32) for name in COMPRESSORS), ('random_block', jnp.bfloat16)]
)
def test_what_is_not_sent_is_kept_bit_for_bit_and_plus_adds_what_place_puts_into_zeros(name, dtype):
    """Every coordinate is either sent or kept, so C is a projection."""
    tree, p = make_tree(dtype, seed=1), make_tree(seed=2)

    @jax.jit
    def program(step):
        selection = COMPRESSORS[name](KEY, step, p)
        message, poison = selection.take(p), jax.tree.map(lambda x: jnp.nan * x, tree)  # is never read
        by_place = jax.tree.map(jnp.add, tree, selection.place(message, poison))
        return selection.place(message, p), plus(selection, tree, message), by_place

    for step in (0, 1, 2**31 - 1, 2**31, 2**32 - 1):
        sent, added, by_place = program(jnp.uint32(step))
        chex.assert_trees_all_equal_shapes_and_dtypes(added, tree)
        chex.assert_trees_all_close(added, by_place, rtol=0, atol=0.03 if dtype == jnp.bfloat16 else 1e-6)
        for leaves in zip(*map(jax.tree.leaves, (sent, p, tree, added)), strict=True):
            c, whole, before, after = map(np.asarray, leaves)
            np.testing.assert_array_equal(before[c == 0], after[c == 0])
            if name != 'scaled':
                np.testing.assert_array_equal(c + (whole - c), whole)
                assert np.all((c == whole) | (c == 0))


def test_what_is_sent_whole_is_exact():
    tree, whole = make_tree(), (def_jax.identity(), def_jax.baselines.random_k(1))
    scaled = jax.tree.map(lambda x: 0.25 * x, tree)  # a power of two: exact
    found = jax.jit(lambda tree: [compress(c, tree) for c in (*whole, def_jax.baselines.scaled(0.25))])(tree)
    chex.assert_trees_all_equal(found, [tree, tree, scaled])


@pytest.mark.parametrize('ratio', [10, 37, 64, 1000])
@pytest.mark.parametrize('name', REAL)
def test_the_true_ratio_is_near_the_one_asked_for(name, ratio):
    """Of a message, and of what is sent of each coordinate over many steps."""
    like = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in REAL[name]]
    total = sum(x.size for x in like)
    for make in (def_jax.random_block, def_jax.baselines.random_k):
        parts = make(ratio).parts(like)
        assert total / sum(part.size for part in parts) == pytest.approx(ratio, rel=0.1)
        share = sum(x.size / part.weight for x, part in zip(like, parts, strict=True)) / total
        assert 1 / share == pytest.approx(ratio, rel=0.1)


# The first element that is sent of each tensor at steps 0, 1 and 100, as release 1 sent them.
DRAWN = {
    ('random', 'proportional'): [[168, 3264, 200, 3120], [232, 4896, 128, 2640], [320, 3264, 16, 2960]],
    ('shuffled', 'proportional'): [[384, 3264, 136, 3040], [424, 1824, 80, 4640], [16, 4032, 216, 3520]],
    ('cyclic', 'balanced'): [[168, 2784, 160, 322], [176, 2880, 176, 324], [456, 96, 224, 1602]],
}


@pytest.mark.parametrize(('order', 'allocation'), DRAWN)
def test_published_trajectories_draw_the_same_blocks(order, allocation):
    like = ones_like([(3, 3, 16, 32), (64, 96), (256,), (512, 10)])
    compressor = def_jax.random_block(64, order=order, allocation=allocation)
    key = jax.random.key_data(jax.random.key(3, impl='threefry2x32'))
    draw = jax.jit(jax.vmap(lambda step: compress(compressor, like, step, key)))
    masks = [np.asarray(mask).reshape(3, -1) for mask in draw(jnp.array([0, 1, 100], jnp.uint32))]
    assert np.stack([mask.argmax(axis=1) for mask in masks], axis=1).tolist() == DRAWN[order, allocation]


# --- Error messages ---------------------------------------------------------------------------------------


@pytest.mark.parametrize('make', [def_jax.random_block, def_jax.baselines.random_k])
def test_possible_and_impossible_ratios(make):
    for ratio in (1, np.int64(4), np.float32(4), 10**9, np.float16(64), np.int8(64)):
        assert def_jax.message_size(make(ratio), jnp.ones(1 << 16)) == max(1, (1 << 16) // int(ratio))
    for ratio in (0.5, -math.inf, math.nan, math.inf, '64', True, None, 1j, np.float32('nan')):
        with pytest.raises(ValueError, match=r'ratio=.* must be a finite number >= 1'):
            make(ratio)
    with pytest.raises(ValueError, match=r"ratio is an array.*static_args=\('ratio', "):
        jax.eval_shape(make, 2.0)
