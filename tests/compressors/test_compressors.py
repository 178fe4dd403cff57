"""What each compressor sends: linearity, projection, message size. How often is in test_draws.py."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compressing import KEY, compress

import def_jax
from def_jax.compressors.blocks import Block

SHAPES = [(3, 3, 8, 16), (7, 11), (10,), (1000,), (6, 6), (), (0, 3)]
RATIOS = [1, 3, 64, 1000, 1.5]
COMPRESSORS = {
    'random_block': def_jax.random_block(4),
    'random_block_wrapping': def_jax.random_block(3),
    'random_block_model': def_jax.random_block(4, granularity='model'),
    'random_block_balanced': def_jax.random_block(4, allocation='balanced'),
    'random_k': def_jax.random_k(4),
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


@pytest.mark.parametrize('name', [name for name in COMPRESSORS if name != 'scaled'])
@pytest.mark.parametrize('step', [0, 1, 2, 1000])
def test_sent_and_kept_restore_the_input_bit_for_bit(name, step):
    p = make_tree()
    sent = jitted_compress(COMPRESSORS[name], p, step)
    kept = jax.tree.map(jnp.subtract, p, sent)
    chex.assert_trees_all_equal(jax.tree.map(jnp.add, sent, kept), p)
    for c, r, whole in zip(*map(jax.tree.leaves, (sent, kept, p)), strict=True):
        assert np.all((c == whole) | (r == whole))  # every coordinate is either sent or kept


@pytest.mark.parametrize('name', COMPRESSORS)
def test_linear(name):
    a, b = make_tree(seed=1), make_tree(seed=2)
    combined = jitted_compress(COMPRESSORS[name], jax.tree.map(lambda a, b: a - 0.5 * b, a, b), 5)
    parts = [jitted_compress(COMPRESSORS[name], x, 5) for x in (a, b)]
    chex.assert_trees_all_close(combined, jax.tree.map(lambda a, b: a - 0.5 * b, *parts), atol=1e-6)


@pytest.mark.parametrize('name', [name for name in COMPRESSORS if name != 'scaled'])
def test_projection(name):
    once = jitted_compress(COMPRESSORS[name], make_tree(), 5)
    chex.assert_trees_all_equal(jitted_compress(COMPRESSORS[name], once, 5), once)


@pytest.mark.parametrize(
    ('name', 'dtype'), [*((name, jnp.float32) for name in COMPRESSORS), ('random_block', jnp.bfloat16)]
)
def test_add_is_plus_what_place_puts_into_zeros(name, dtype):
    tree, other = make_tree(dtype, seed=1), make_tree(seed=2)

    @jax.jit
    def both(tree, other):
        selection = COMPRESSORS[name](KEY, jnp.uint32(5), other)
        message, poison = selection.take(other), jax.tree.map(lambda x: jnp.nan * x, tree)  # is never read
        return selection.add(tree, message), jax.tree.map(jnp.add, tree, selection.place(message, poison))

    added, plus = both(tree, other)
    chex.assert_trees_all_equal_shapes_and_dtypes(added, tree)
    chex.assert_trees_all_close(added, plus, rtol=0, atol=0.03 if dtype == jnp.bfloat16 else 1e-6)
    sent = [np.asarray(leaf != 0) for leaf in jax.tree.leaves(jitted_compress(COMPRESSORS[name], other, 5))]
    for before, after, mask in zip(*map(jax.tree.leaves, (tree, added)), sent, strict=True):
        np.testing.assert_array_equal(np.asarray(before)[~mask], np.asarray(after)[~mask])


def test_identity_sends_everything_and_scaled_shrinks():
    tree = make_tree()
    chex.assert_trees_all_equal(jitted_compress(def_jax.identity(), tree), tree)
    quarter = jax.tree.map(lambda x: 0.25 * x, tree)  # a power of two: exact
    chex.assert_trees_all_equal(jitted_compress(def_jax.scaled(0.25), tree), quarter)


@pytest.mark.parametrize('ratio', RATIOS)
def test_message_size(ratio):
    tree, sizes = make_tree(), [math.prod(shape) for shape in [*SHAPES, (2, 4)]]
    block_per_leaf = sum(max(1, int(n // ratio)) for n in sizes if n)
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), tree)
    for like in (tree, abstract):
        assert def_jax.message_size(def_jax.random_block(ratio), like) == block_per_leaf
        assert def_jax.message_size(def_jax.random_k(ratio), like) == block_per_leaf
        in_model = def_jax.message_size(def_jax.random_block(ratio, granularity='model'), like)
        assert in_model == max(1, int(sum(sizes) // ratio))
        assert def_jax.message_size(def_jax.identity(), like) == sum(sizes)
        assert def_jax.message_size(def_jax.scaled(0.1), like) == sum(sizes)
    taken = jax.eval_shape(
        lambda tree: def_jax.random_block(ratio)(KEY, jnp.uint32(0), tree).take(tree), tree
    )
    chex.assert_shape(taken, (block_per_leaf,))


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


@pytest.mark.parametrize('ratio', [2, 3, 4, 64])
@pytest.mark.parametrize('shape', [(4, 8, 16), (7, 11), (16, 3, 2), (10,)], ids=str)
def test_box_or_circle(shape, ratio):
    """A block that divides the tensor is one box of it; any other wraps around the flattened tensor."""
    n = math.prod(shape)
    block = Block.of(shape, max(1, n // ratio))
    if n % block.size == 0:
        assert (block.view, block.wraps) == (shape, False)
        assert math.prod(block.grid) == n // block.size
        np.testing.assert_array_equal(np.multiply(block.shape, block.grid), shape)
    else:
        assert (block.view, block.wraps, block.grid) == ((n,), True, (n,))


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


@pytest.mark.parametrize('granularity', ['leaf', '', None, 0])
def test_unknown_granularity(granularity):
    with pytest.raises(ValueError, match=r"granularity=.* must be 'tensor' .* or 'model'"):
        def_jax.random_block(4, granularity=granularity)


@pytest.mark.parametrize('delta', [0, -0.1, 1.1, math.nan, math.inf, '0.5', True, None])
def test_impossible_delta(delta):
    with pytest.raises(ValueError, match=r'delta=.* must be a number in \(0, 1\]'):
        def_jax.scaled(delta)
