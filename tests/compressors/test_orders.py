"""Orders of blocks: every block once a round, bounded waits, uniform places, nothing stored."""

import re
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compressing import compress, masks, ones_like

import def_jax
from def_jax.compressors import orders

# Boxes, tiles of which the last is shorter, single elements, one element, none.
SHAPES = {'boxes': (8, 6), 'cut short': (7, 11), 'elements': (3,), 'scalar': (), 'empty': (0, 2)}
RATIO = 4
BLOCKS = {'boxes': 4, 'cut short': 4, 'elements': 3, 'scalar': 1, 'empty': 1}


@pytest.mark.parametrize(('order', 'bound'), [('shuffled', lambda r: 2 * r - 1), ('cyclic', lambda r: r)])
def test_a_round_sends_every_coordinate_and_the_longest_wait_is_bounded(order, bound):
    like = dict(zip(SHAPES, ones_like(SHAPES.values()), strict=True))
    for name, mask in masks(def_jax.random_block(RATIO, order=order), like, 60).items():
        sent, blocks, num_rounds = mask.reshape(60, -1), BLOCKS[name], 60 // BLOCKS[name]
        rounds = sent[: num_rounds * blocks].reshape(num_rounds, blocks, sent.shape[1])
        assert np.all(rounds.sum(axis=1) == 1)
        waits = [np.diff(np.flatnonzero(times), prepend=-1).max(initial=0) for times in sent.T]
        assert max(waits, default=0) <= bound(blocks)
        if order == 'cyclic':
            assert set(waits) <= {blocks}


def swap_or_not(pivots, salts, size):
    """Hoang, Morris and Rogaway (2012) on Python's integers, which do not wrap."""
    places = np.arange(size)
    for pivot, salt in zip(pivots.tolist(), salts, strict=True):
        mirrored = (pivot - places) % size
        both = np.maximum(places, mirrored).astype(np.uint32)
        places = np.where(orders._mixed(both ^ salt) & 1, mirrored, places)
    return places


def test_a_permutation_of_any_size():
    permute, rng = jax.jit(jax.vmap(orders._permuted, (None, None, 0, None))), np.random.default_rng(0)
    for size in (1, 2, 3, 5, 64, 1000, 1024):
        positions = jnp.minimum(jnp.arange(1024, dtype=jnp.uint32), size - 1)  # of one shape: compiled once
        drawn = []
        for _ in range(8):
            pivots, salts = rng.integers([[size], [2**32]], size=(2, 16)).astype(np.uint32)
            drawn.append(np.asarray(permute(pivots, salts, positions, jnp.uint32(size)))[:size])
            np.testing.assert_array_equal(drawn[-1], swap_or_not(pivots, salts, size))
        for order in drawn:
            np.testing.assert_array_equal(np.sort(order), np.arange(size))
        assert len({order.tobytes() for order in drawn}) > (1 if size > 1 else 0)


def test_nothing_is_sorted_and_no_permutation_is_made():
    compressor, like = def_jax.random_block(4096, order='shuffled'), jnp.ones((1 << 20,))
    program = jax.jit(lambda step: compress(compressor, like, step)).lower(jnp.uint32(0)).as_text()
    assert 'sort' not in program
    assert not re.search(r'tensor<(?:\d+x)*4096(?:x\d+)*x', program)


def test_ages_of_the_residual_as_shares_of_those_of_the_block_that_is_sent():
    """Means over all waits w that an order makes of a coordinate; in each it has every age up to w once."""
    blocks = 1000
    places, geometric = np.arange(blocks), np.arange(1, 50 * blocks)
    waits = {  # of R blocks, and how often
        'random': (geometric, (1 - 1 / blocks) ** geometric),
        'shuffled': ((blocks + places[:, None] - places).ravel(), np.ones(blocks**2)),
        'cyclic': (np.array([blocks]), np.ones(1)),
    }
    for order in get_args(orders.Order):
        w, share = np.float64(waits[order][0]), waits[order][1] / waits[order][1].sum()
        mean_age = (share @ (w * (w + 1) / 2)) / (share @ w)
        mean_square = (share @ (w * (w + 1) * (2 * w + 1) / 6)) / (share @ w)
        ages = mean_square / (share @ w**2), mean_age / (share @ w)
        assert ages == pytest.approx(orders.AGE_SHARES[order], rel=0.01)
