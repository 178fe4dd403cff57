"""What each compressor sends: linearity, message size, and every coordinate with probability block / n."""

import itertools
import math
from unittest import mock

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compressing import KEY, compress, ones_like

import def_jax
from def_jax import compressors
from def_jax.compressors.blocks import Block

SHAPES = [(3, 3, 8, 16), (7, 11), (10,), (1000,), (6, 6), (), (0, 3)]
RATIOS = [1, 2, 3, 4, 64, 1000, 1.5]
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


def masks(compressor, like, keys):
    """The 0/1 masks that a compressor draws with each of many keys: leaves [len(keys), *shape]."""
    ones = jax.tree.map(jnp.ones_like, like)
    return jax.jit(jax.vmap(lambda key: compress(compressor, ones, key=key)))(keys)


def chi_square_is_plausible(counts, expected):
    """Five standard deviations of a chi-square variable with len(counts) - 1 degrees of freedom."""
    freedom = max(1, len(counts) - 1)
    return np.sum((counts - expected) ** 2 / expected) < freedom + 5 * math.sqrt(2 * freedom)


@pytest.mark.parametrize('name', COMPRESSORS)
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16, jnp.float16])
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


@pytest.mark.parametrize('name', COMPRESSORS)
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_add_is_plus_what_place_puts_into_zeros(name, dtype):
    tree, other = make_tree(dtype, seed=1), make_tree(seed=2)

    @jax.jit
    def both(tree, other):
        selection = COMPRESSORS[name](KEY, jnp.uint32(5), other)
        message = selection.take(other)
        return selection.add(tree, message), jax.tree.map(jnp.add, tree, selection.place(message, tree))

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


def test_placing_never_reads_the_values_of_like():
    tree = make_tree()
    poison = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), tree)
    for name, compressor in COMPRESSORS.items():
        chosen, poisoned = (compressor(KEY, jnp.uint32(0), like) for like in (tree, poison))
        placed = poisoned.place(chosen.take(tree), poison)
        chex.assert_trees_all_equal(placed, compress(compressor, tree), custom_message=name)


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
    selection = def_jax.random_block(ratio)(KEY, jnp.uint32(0), tree)
    chex.assert_shape(selection.take(tree), (block_per_leaf,))


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


# --- Coverage: every coordinate is sent with probability exactly block / n --------------------------------


def all_starts(block):
    """Every start that a block's plan allows: int32 [number of starts, rank]."""
    rows = itertools.product(*(range(cells) for cells in block.grid))
    stride = np.array(block.stride, np.int32).reshape(1, -1)
    return np.array(list(rows), np.int32).reshape(math.prod(block.grid), len(block.grid)) * stride


@pytest.mark.parametrize('ratio', RATIOS)
@pytest.mark.parametrize('shape', SHAPES, ids=str)
def test_all_starts_together_cover_every_coordinate_equally(shape, ratio):
    n = math.prod(shape)
    kept = max(1, int(n // ratio)) if n else 0
    starts = all_starts(Block.of(shape, kept))
    select = def_jax.random_block(ratio)

    def place_and_take(start):
        with mock.patch.object(compressors, '_draw_starts', lambda order, key, step, blocks: [list(start)]):
            selection = select(KEY, jnp.uint32(0), jnp.ones(shape))
        index = jnp.arange(n, dtype=jnp.float32).reshape(shape)
        return selection.place(jnp.ones(kept), jnp.ones(shape)), selection.take(index)

    sent, indices = jax.jit(jax.vmap(place_and_take))(starts)
    sent = np.asarray(sent).reshape(len(starts), n)
    assert set(np.unique(sent)) <= {0.0, 1.0}
    np.testing.assert_array_equal(sent.sum(axis=1), kept)  # never out of range, never twice the same
    # exactly block / n of the starts send a coordinate, and no two starts are the same block
    np.testing.assert_array_equal(sent.sum(axis=0) * n, kept * len(starts))
    assert len(np.unique(sent, axis=0)) == (len(starts) if kept < n else 1)
    marked = np.zeros_like(sent)  # `take` reads where `place` writes
    np.put_along_axis(marked, np.asarray(indices, np.int64), 1.0, axis=1)
    np.testing.assert_array_equal(marked, sent)


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


@pytest.mark.parametrize('granularity', ['tensor', 'model'])
def test_starts_are_drawn_uniformly(granularity):
    """Chi-square over the blocks of each leaf, and over pairs of leaves: those must be independent."""
    shapes = [(4, 6), (6, 4), (10,), (3, 7)] if granularity == 'tensor' else [(4, 5), (1,), (7,)]
    select = def_jax.random_block(4, granularity=granularity)
    keys = jax.random.split(jax.random.PRNGKey(0), 20_000)
    drawn = jax.tree.leaves(masks(select, ones_like(shapes), keys))
    if granularity == 'model':
        drawn = [jnp.concatenate([mask.reshape(len(keys), -1) for mask in drawn], axis=1)]
    blocks = []
    for mask in drawn:
        distinct, which = np.unique(np.asarray(mask).reshape(len(keys), -1), axis=0, return_inverse=True)
        n, kept = distinct.shape[1], int(distinct[0].sum())
        assert len(distinct) == (n // kept if n % kept == 0 else n)
        assert chi_square_is_plausible(np.bincount(which), len(keys) / len(distinct))
        blocks.append((which, len(distinct)))
    for (first, a), (second, b) in itertools.pairwise(blocks):
        assert chi_square_is_plausible(np.bincount(first * b + second, minlength=a * b), len(keys) / (a * b))


@pytest.mark.parametrize('shape', [(4, 6), (10,)], ids=['box', 'circle'])
def test_successive_steps_draw_uniformly_and_independently(shape):
    draw = jax.jit(jax.vmap(lambda t: compress(def_jax.random_block(4), jnp.ones(shape), step=t)))
    sent = np.asarray(draw(jnp.arange(20_000, dtype=jnp.uint32))).reshape(20_000, -1)
    distinct, which = np.unique(sent, axis=0, return_inverse=True)
    pairs = np.bincount(which[:-1] * len(distinct) + which[1:], minlength=len(distinct) ** 2)
    assert chi_square_is_plausible(pairs, len(which) / len(pairs))


def test_random_k_draws_every_coordinate_uniformly():
    keys = jax.random.split(jax.random.PRNGKey(0), 20_000)
    for mask in masks(def_jax.random_k(3), ones_like([(2, 5), (7,), ()]), keys):
        sent = np.asarray(mask).reshape(len(keys), -1)
        kept = max(1, sent.shape[1] // 3)
        assert set(np.unique(sent)) == ({0.0, 1.0} if kept < sent.shape[1] else {1.0})  # no element twice
        np.testing.assert_array_equal(sent.sum(axis=1), kept)
        assert chi_square_is_plausible(sent.sum(axis=0), len(keys) * kept / sent.shape[1])
        if kept > 1:  # and not one pattern that is only shifted
            assert len(np.unique(sent, axis=0)) > sent.shape[1]


def test_whole_model_block_is_one_contiguous_run():
    shapes = [(5, 5), (3,), (), (4, 2)]  # 37 elements, a block of 9 of them, starting anywhere
    select = def_jax.random_block(4, granularity='model')
    drawn = masks(select, ones_like(shapes), jax.random.split(KEY, 500))
    sent = np.concatenate([np.asarray(mask).reshape(500, -1) for mask in drawn], axis=1)
    np.testing.assert_array_equal(sent.sum(axis=1), 9)
    starts_of_runs = np.sum((sent == 1) & (np.roll(sent, 1, axis=1) == 0), axis=1)
    np.testing.assert_array_equal(starts_of_runs, 1)
    assert len(np.unique(sent, axis=0)) == 37


@pytest.mark.parametrize('name', ['random_block', 'random_block_wrapping', 'random_block_model', 'random_k'])
def test_choice_depends_on_key_step_and_leaf_only(name):
    compressor, ones = COMPRESSORS[name], ones_like([(40, 24), (40, 24), (1000,)])
    draw = jax.jit(lambda key, step: compress(compressor, ones, step, key))
    first = draw(KEY, 3)
    chex.assert_trees_all_equal(first, draw(KEY, 3))
    # Other steps, other keys and two leaves of one shape draw other blocks: of eight draws some differ.
    flat = [np.concatenate([np.ravel(mask) for mask in draw(KEY, t)]) for t in range(8)]
    assert len(np.unique(flat, axis=0)) > 1
    flat = [np.concatenate([np.ravel(mask) for mask in draw(jax.random.PRNGKey(k), 3)]) for k in range(8)]
    assert len(np.unique(flat, axis=0)) > 1
    twins = [draw(KEY, t)[:2] for t in range(8)]
    assert not all(np.array_equal(a, b) for a, b in twins)

    # Neither the values nor the worker matter.
    def on_worker(tree):
        selection = compressor(KEY, jnp.uint32(3), tree)
        return selection.place(jnp.ones_like(selection.take(tree)), tree)

    values = jax.tree.map(lambda x: 1e3 * jax.random.normal(KEY, (4, *x.shape)), ones)
    of_workers = jax.jit(jax.vmap(on_worker, axis_name='workers'))(values)
    for worker in range(4):
        chex.assert_trees_all_equal(jax.tree.map(lambda x, k=worker: x[k], of_workers), first)


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
