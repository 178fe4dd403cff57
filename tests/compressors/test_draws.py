"""Every draw enumerated: each coordinate is sent with probability 1 / R, by draws that share no key."""

import contextlib
import itertools
import math
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compressing import KEY, compress, ones_like

import def_jax
from def_jax.compressors import orders
from def_jax.compressors.blocks import Block, same_share
from def_jax.ground import random
from def_jax.ground.jaxpr import equations

# Boxes, tiles of which the last is shorter, all of the tensor, one element, none.
CASES = [
    *(((3, 3, 8, 16), ratio) for ratio in (3, 64)),
    *(((7, 11), ratio) for ratio in (1.5, 3, 1000)),
    *(((10,), 4), ((), 64), ((0, 3), 3)),
]
TWINS = ones_like([(8, 6), (8, 6), (8,)])


@contextlib.contextmanager
def single_draws(value, seen):
    """The first integer drawn for each tensor is `value`, pivots aside; the counts are added to `seen`."""
    draw = random.draw

    def drawn(key, path, counts, index=0):
        jax.debug.callback(lambda counts: seen.update(counts.tolist()), counts)
        others = draw(key, path, counts, index)
        first = jnp.full_like(counts, value)
        return first if others.ndim == 1 else others.at[0].set(first)

    with mock.patch.object(random, 'draw', drawn):
        yield


def enumerated(compressor, shapes, count, step=0):
    """What is sent for each of the values 0 … count - 1 that a draw may have: 0/1 [count, n]; the counts."""
    seen = set()

    def sent(value):
        with single_draws(value, seen):
            masks = compress(compressor, ones_like(shapes), step)
        return jnp.concatenate([mask.reshape(-1) for mask in masks])

    masks = np.asarray(jax.jit(jax.vmap(sent))(jnp.arange(count, dtype=jnp.uint32)))
    jax.effects_barrier()
    return masks, seen


@pytest.mark.parametrize(('shape', 'ratio'), CASES, ids=str)
def test_each_coordinate_is_sent_by_the_same_number_of_draws(shape, ratio):
    n = math.prod(shape)
    block = Block.of(shape, *same_share([n], ratio))
    count, compressor = block.num_tiles, def_jax.random_block(ratio)
    (part,) = compressor.parts(jnp.ones(shape))
    assert part.weight == count
    sent, seen = enumerated(compressor, [shape], count)
    assert seen == {count}
    assert set(np.unique(sent)) <= {0.0, 1.0}
    np.testing.assert_array_equal(sent.sum(axis=0), 1)
    assert np.all(sent.sum(axis=1) <= block.size)


@pytest.mark.parametrize('order', ['shuffled', 'cyclic'])
@pytest.mark.parametrize('step', [0, 3])
def test_every_place_is_equally_likely_at_every_step(order, step):
    sent, seen = enumerated(def_jax.random_block(4, order=order), [(7, 11)], count=4, step=step)
    assert seen == {4} and len(np.unique(sent, axis=0)) == 4


@pytest.mark.parametrize('shape', [(2, 5), (3, 2, 2), (7,), ()], ids=str)
def test_each_element_is_sent_by_the_same_number_of_draws(shape):
    """One element of each cell: all of the draws that random_k can make. Outside of a short cell lies 0."""
    x = jnp.ones(shape)
    (part,), bounds = def_jax.baselines.random_k(3).parts(x), set()

    def sent(draw):
        def randint(key, shape, minval, maxval, dtype):
            jax.debug.callback(lambda high: bounds.add((minval, *high.tolist())), maxval)
            return draw

        with mock.patch.object(jax.random, 'randint', randint):
            selection = def_jax.baselines.random_k(3)(KEY, jnp.uint32(0), x)
        message = selection.take(x)
        return message, selection.place(message, x).reshape(-1)

    jax.jit(sent)(jnp.zeros(part.size, jnp.uint32))
    jax.effects_barrier()
    ((_, *sizes),) = bounds
    assert set(sizes) == {part.weight}  # R
    draws = np.array([*itertools.product(*map(range, sizes))], np.uint32)
    messages, masks = map(np.asarray, jax.jit(jax.vmap(sent))(draws))
    assert set(np.unique(masks)) <= {0.0, 1.0}
    np.testing.assert_array_equal(messages.sum(axis=1), masks.sum(axis=1))
    np.testing.assert_array_equal(masks.sum(axis=0), len(draws) / part.weight)
    assert len(np.unique(masks, axis=0)) == len(draws) or x.size % part.weight  # drawn independently


@pytest.mark.parametrize(
    ('compressor', 'steps', 'function', 'draws'),
    [
        (def_jax.random_block(4), (0, 4, 8), (random, 'words'), 3 * 2),
        (def_jax.random_block(4, order='cyclic'), (0,), (random, 'words'), 3 * 2),  # repeats one round
        (def_jax.random_block(4, order='shuffled'), (0, 4, 8), (random, 'words'), 3 * (2 * 17 + 16)),
        (def_jax.baselines.random_k(4), (0, 4, 8), (jax.random, 'randint'), 1),
    ],
    ids=['random', 'cyclic', 'shuffled', 'elements'],
)
def test_no_two_draws_share_a_key(compressor, steps, function, draws):
    """So that steps (or rounds of four), three leaves and seeds are independent of each other."""
    keys, draw_with = [], getattr(*function)

    def recorded(key, *args):
        both = key if isinstance(key, tuple) else jax.random.key_data(key)
        data = jnp.stack([*both], axis=-1).reshape(-1, 2)
        jax.debug.callback(lambda data: keys.extend(map(tuple, data.tolist())), data)
        return draw_with(key, *args)

    draw = jax.jit(lambda seed, step: compress(compressor, TWINS, step, jax.random.PRNGKey(seed)))
    with mock.patch.object(*function, recorded):
        for seed, step in itertools.product(range(3), steps):
            draw(seed, step)
    jax.effects_barrier()
    assert len(keys) == len(set(keys)) == 3 * len(steps) * draws


def test_a_draw_is_that_of_jax():
    """Published trajectories rest on it: `jax.random.randint` of a key into which the path was folded."""
    counts = jnp.array([1_000_003, 2_000_006], jnp.uint32)
    key = jax.random.key(3, impl='threefry2x32')
    folded = jax.random.fold_in(jax.random.fold_in(key, 7), 11)
    expected = [jax.random.randint(folded, (4,), 0, count)[2] for count in counts]
    np.testing.assert_array_equal(
        random.draw(tuple(jax.random.key_data(key)), [7, 11], counts, 2), jnp.stack(expected)
    )


def test_all_permutations_of_four_blocks_are_equally_likely():
    """One round of the shuffle for every pivot and every way of its bits; all rounds are a power of that."""
    permutations = {p: i for i, p in enumerate(itertools.permutations(range(4)))}

    def one_round(pivot, bits):
        with mock.patch.object(orders, '_mixed', lambda entry: bits[entry]):
            of_all = jnp.full((1, 4), pivot), jnp.zeros((1, 4), jnp.uint32)
            return orders._permuted(*of_all, jnp.arange(4, dtype=jnp.uint32), jnp.uint32(4))

    pivots, bits = np.arange(4, dtype=np.uint32), np.array([*itertools.product((0, 1), repeat=4)], np.uint32)
    of_bits = jax.vmap(one_round, (None, 0))
    rounds = np.asarray(jax.jit(jax.vmap(of_bits, (0, None)))(pivots, bits)).reshape(-1, 4)
    transition = np.zeros((24, 24))
    for before, i in permutations.items():
        for swaps in rounds:
            transition[i, permutations[tuple(swaps[np.array(before)].tolist())]] += 1 / len(rounds)
    shares = np.linalg.matrix_power(transition, orders._SWAPS)[0]
    np.testing.assert_allclose(shares, 1 / 24, rtol=0.01)


@pytest.mark.parametrize('order', ['random', 'shuffled'])
def test_places_are_in_memory_before_tensors_are_read(order):
    """Else XLA for GPUs draws in the kernel of every tensor, and takes minutes to compile a transformer."""
    leaves, rank = 3, 2
    like = ones_like([(8, 6)] * leaves)
    program = jax.make_jaxpr(lambda x: compress(def_jax.random_block(4, order=order), x))(like).jaxpr
    behind = [
        variable.aval.shape
        for equation in equations(program)
        if equation.primitive.name == 'optimization_barrier'
        for variable in equation.outvars
    ]
    assert (leaves, rank) in behind
