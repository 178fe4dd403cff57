"""What each compressor sends: a projection, message size. How often is in test_draws.py."""

import itertools
import math
from unittest import mock

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compressing import KEY, compress, ones_like
from network_shapes import REAL

import def_jax
from def_jax.compressors import orders
from def_jax.compressors.allocations import block_sizes
from def_jax.compressors.blocks import Block
from def_jax.compressors.random_k import _Cells

SHAPES = [(3, 3, 8, 16), (7, 11), (10,), (1000,), (6, 6), (), (0, 3)]
RATIOS = [1, 3, 64, 1000, 1.5]
COMPRESSORS = {
    'random_block': def_jax.random_block(4),
    'random_block_cut_short': def_jax.random_block(3),
    'random_block_model': def_jax.random_block(4, granularity='model'),
    'random_block_model_cut_short': def_jax.random_block(3, granularity='model'),
    'random_block_balanced': def_jax.random_block(4, allocation='balanced'),
    'random_k': def_jax.random_k(4),
    'random_k_cut_short': def_jax.random_k(3),
    'identity': def_jax.identity(),
    'scaled': def_jax.scaled(0.25),
}


def make_tree(dtype=jnp.float32, seed=0):
    rng = np.random.default_rng(seed)
    leaves = {f'leaf{i}': jnp.asarray(rng.normal(size=shape), dtype) for i, shape in enumerate(SHAPES)}
    return {'many': leaves, 'one': jnp.asarray(rng.normal(size=(2, 4)), dtype)}


jitted_compress = jax.jit(compress, static_argnums=0)


@pytest.mark.parametrize('name', COMPRESSORS)
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_shapes_and_dtypes(name, dtype):
    def take_and_place(tree):
        selection = COMPRESSORS[name](KEY, jnp.uint32(3), tree)
        message = selection.take(tree)
        return message, selection.place(message, tree)

    tree = make_tree(dtype)
    message, placed = jax.eval_shape(take_and_place, tree)
    chex.assert_rank(message, 1)
    chex.assert_type(message, jnp.float32)
    chex.assert_trees_all_equal_shapes_and_dtypes(placed, tree)


@pytest.mark.parametrize(
    ('name', 'dtype'), [*((name, jnp.float32) for name in COMPRESSORS), ('random_block', jnp.bfloat16)]
)
def test_what_is_not_sent_is_kept_bit_for_bit_and_add_is_plus_what_place_puts_into_zeros(name, dtype):
    """Every coordinate is either sent or kept, so C is a projection."""
    tree, p = make_tree(dtype, seed=1), make_tree(seed=2)

    @jax.jit
    def program(step):
        selection = COMPRESSORS[name](KEY, step, p)
        message, poison = selection.take(p), jax.tree.map(lambda x: jnp.nan * x, tree)  # is never read
        plus = jax.tree.map(jnp.add, tree, selection.place(message, poison))
        return selection.place(message, p), selection.add(tree, message), plus

    for step in (0, 1, 2, 1000):
        sent, added, plus = program(jnp.uint32(step))
        chex.assert_trees_all_equal_shapes_and_dtypes(added, tree)
        chex.assert_trees_all_close(added, plus, rtol=0, atol=0.03 if dtype == jnp.bfloat16 else 1e-6)
        for leaves in zip(*map(jax.tree.leaves, (sent, p, tree, added)), strict=True):
            c, whole, before, after = map(np.asarray, leaves)
            np.testing.assert_array_equal(before[c == 0], after[c == 0])
            if name != 'scaled':
                np.testing.assert_array_equal(c + (whole - c), whole)
                assert np.all((c == whole) | (c == 0))


def test_identity_sends_everything_and_scaled_shrinks():
    tree = make_tree()
    chex.assert_trees_all_equal(jitted_compress(def_jax.identity(), tree), tree)
    quarter = jax.tree.map(lambda x: 0.25 * x, tree)  # a power of two: exact
    chex.assert_trees_all_equal(jitted_compress(def_jax.scaled(0.25), tree), quarter)


@pytest.mark.parametrize('ratio', RATIOS)
def test_message_size(ratio):
    """Near an element in `ratio`, of arrays and of shapes alike, and what is taken."""
    tree, sizes = make_tree(), [math.prod(shape) for shape in [*SHAPES, (2, 4)]]
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), tree)
    block = def_jax.random_block(ratio)
    blocks = [Block.of(shape, *block_sizes([math.prod(shape)], ratio)).size for shape in [*SHAPES, (2, 4)]]
    expected = {
        block: sum(blocks),
        def_jax.random_block(ratio, granularity='model'): Block.of(
            (sum(sizes),), sum(sizes) // ratio or 1
        ).size,
        def_jax.identity(): sum(sizes),
        def_jax.scaled(0.1): sum(sizes),
    }
    for compressor, size in expected.items():
        assert def_jax.message_size(compressor, tree) == def_jax.message_size(compressor, abstract) == size
    if ratio >= 3:
        least = sum(max(1, int(n // ratio)) for n in sizes if n)
        assert sum(blocks) == pytest.approx(least, rel=0.1)
        assert def_jax.message_size(def_jax.random_k(ratio), abstract) == pytest.approx(least, rel=0.05)
    taken = jax.eval_shape(lambda tree: block(KEY, jnp.uint32(0), tree).take(tree), tree)
    chex.assert_shape(taken, (sum(blocks),))


@pytest.mark.parametrize('name', COMPRESSORS)
@pytest.mark.parametrize(
    'tree', [{}, {'w': jnp.ones((0, 3))}, [None, jnp.ones(())]], ids=['no leaf', 'empty', 'scalar']
)
def test_degenerate_trees(name, tree):
    scale = 0.25 if name == 'scaled' else 1.0
    chex.assert_trees_all_equal(
        jitted_compress(COMPRESSORS[name], tree), jax.tree.map(lambda x: scale * x, tree)
    )
    assert def_jax.message_size(COMPRESSORS[name], tree) == sum(x.size for x in jax.tree.leaves(tree))


@pytest.mark.parametrize('ratio', [10, 37, 50, 64, 100, 1000])
@pytest.mark.parametrize('name', REAL)
def test_the_true_ratio_is_near_the_one_asked_for(name, ratio):
    sizes = [math.prod(shape) for shape in REAL[name]]
    blocks = [Block.of(*leaf) for leaf in zip(REAL[name], block_sizes(sizes, ratio), strict=True)]
    assert sum(sizes) / sum(block.size for block in blocks) == pytest.approx(ratio, rel=0.1)
    expected = sum(n / block.num_tiles for n, block in zip(sizes, blocks, strict=True))
    assert sum(sizes) / expected == pytest.approx(ratio, rel=0.1)


@pytest.mark.parametrize('ratio', [2, 16, 64, 256, 1024])
def test_sizes_that_divide_are_cut_into_boxes_along_the_first_axes(ratio):
    """As in release 1: with powers of two most tensors are sent as they always were."""
    boxes = 0
    shapes = {shape for shapes in REAL.values() for shape in shapes}
    for shape in shapes:
        n = math.prod(shape)
        size = max(1, n // ratio)
        left, box = n // size, []
        for axis in shape:
            cuts = math.gcd(axis, left)
            left //= cuts
            box.append(axis // cuts)
        if n % size == 0:
            boxes += 1
            assert Block.of(shape, size) == (shape, tuple(box))
    assert boxes > 0.8 * len(shapes)


# The first element that is sent of each tensor at steps 0, 1 and 100, as release 1 sent them.
DRAWN = {
    ('random', 'proportional'): [[168, 3264, 200, 3120], [232, 4896, 128, 2640], [320, 3264, 16, 2960]],
    ('random', 'balanced'): [[168, 3264, 32, 1286], [232, 4896, 0, 2], [320, 3264, 64, 2244]],
    ('shuffled', 'proportional'): [[384, 3264, 136, 3040], [424, 1824, 80, 4640], [16, 4032, 216, 3520]],
    ('cyclic', 'proportional'): [[168, 2784, 40, 1760], [176, 2880, 44, 1840], [456, 96, 184, 4640]],
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


def test_energy_of_blocks_that_are_cut_short_is_unbiased():
    """The mean over all blocks of a tensor's tiles is the squared norm, exactly but for rounding."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(7, 11)), jnp.float32)
    block = Block.of((7, 11), 77 // 4)
    assert any(axis % edge for axis, edge in zip(block.tensor, block.shape, strict=True))

    def estimate(place):
        compressor = def_jax.random_block(4)
        with mock.patch.object(orders, 'draw_places', lambda *_: place[None]):
            return compressor.energy(compressor(KEY, jnp.uint32(0), x).take(x), x)

    estimates = jax.vmap(estimate)(jnp.arange(block.num_tiles, dtype=jnp.uint32))
    assert float(jnp.mean(estimates)) == pytest.approx(float(jnp.sum(x**2)), rel=1e-5)


# --- Error messages ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'ratio', [0, 0.5, -1, math.nan, math.inf, -math.inf, '64', True, None, 1j, np.float32('nan')]
)
@pytest.mark.parametrize('make', [def_jax.random_block, def_jax.random_k])
def test_impossible_ratio(make, ratio):
    with pytest.raises(ValueError, match=r'ratio=.* must be a finite number >= 1'):
        make(ratio)


@pytest.mark.parametrize('make', [def_jax.random_block, def_jax.random_k])
def test_traced_ratio_names_the_remedy(make):
    def traced(ratio):
        return make(ratio)(KEY, jnp.uint32(0), jnp.ones(8)).take(jnp.ones(8))

    with pytest.raises(ValueError, match=r"ratio=.*static_args=\('ratio',\)"):
        jax.jit(traced)(2.0)


@pytest.mark.parametrize('ratio', [1, 1.0, np.int64(4), np.float32(4), 10**9])
@pytest.mark.parametrize('make', [def_jax.random_block, def_jax.random_k])
def test_possible_ratio(make, ratio):
    assert def_jax.message_size(make(ratio), jnp.ones(16)) == max(1, 16 // ratio)


@pytest.mark.parametrize(
    ('make', 'options', 'words'),
    [
        *(
            (def_jax.random_block, {'ratio': 4, name: value}, rf'{name}=.* must be {allowed}')
            for name, values, allowed in (
                ('granularity', ('leaf', '', None, 0), "'tensor' .* or 'model'"),
                ('order', ('sorted', '', None, 0), "'random' .*'shuffled' .* or 'cyclic'"),
                ('allocation', ('equal',), "'proportional' .* or 'balanced'"),
            )
            for value in values
        ),
        (
            def_jax.random_block,
            {'ratio': 4, 'allocation': 'balanced', 'granularity': 'model'},
            "granularity='model' there is one block",
        ),
        *(
            (def_jax.scaled, {'delta': delta}, r'delta=.* must be a number in \(0, 1\]')
            for delta in (0, -0.1, 1.1, math.nan, math.inf, '0.5', True, None)
        ),
    ],
)
def test_impossible_options(make, options, words):
    with pytest.raises(ValueError, match=words):
        make(**options)


@pytest.mark.parametrize('shape', [(11,), (7, 2)])
def test_energy_of_elements_is_unbiased(shape):
    """The mean over all draws is the squared norm, also where a place lies outside of a shorter cell."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
    cells = _Cells.of(shape, *block_sizes([x.size], 4))

    def estimate(places):
        compressor = def_jax.random_k(4)
        with mock.patch.object(jax.random, 'randint', lambda *_: places):
            message = compressor(KEY, jnp.uint32(0), x).take(x)
        return compressor.energy(message, x), jnp.sum(message != 0)

    places = jnp.array([*itertools.product(range(cells.size), repeat=cells.num_cells)], jnp.uint32)
    estimates, sent = jax.jit(jax.vmap(estimate))(places)
    assert int(sent.min()) < int(sent.max()) == cells.num_cells
    assert float(jnp.mean(estimates)) == pytest.approx(float(jnp.sum(x**2)), rel=1e-5)
