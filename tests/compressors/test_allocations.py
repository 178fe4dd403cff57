"""How the message is divided among tensors: never longer, blocks that divide, nearly the shortest waits."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compressing import compress
from network_shapes import REAL

import def_jax
from def_jax.compressors.allocations import block_sizes

VGG = [math.prod(shape) for shape in REAL['vgg16']]
RATIOS = [1, 1.5, 3, 16, 64, 100, 1024, 1e9]


def waits(sizes, kept):
    """Σ R with R = n / kept."""
    return sum(n / k for n, k in zip(sizes, kept, strict=True))


def small_trees():
    """All trees of three such tensors, each with every such ratio."""
    sizes = itertools.combinations_with_replacement([1, 6, 12, 27, 64, 100, 144], 3)
    yield from itertools.product(map(list, sizes), [2, 4, 8, 16])


def test_the_same_share_of_every_tensor():
    assert block_sizes([1000, 64, 10, 1, 0], 64) == [15, 1, 1, 1, 0]
    assert block_sizes([], 64) == block_sizes([], 64, 'balanced') == []


@pytest.mark.parametrize('ratio', RATIOS)
def test_a_balanced_message_is_no_longer(ratio):
    same_share, kept = block_sizes(VGG, ratio), block_sizes(VGG, ratio, 'balanced')
    assert all(n % k == 0 for n, k in zip(VGG, kept, strict=True))  # a box of the tensor each
    # What is left is less than the next step of a tensor; at 1.5 that is the half of a large one.
    assert (0.98 if ratio != 1.5 else 0.85) * sum(same_share) <= sum(kept) <= sum(same_share)
    if ratio == 1:
        assert kept == VGG


@pytest.mark.parametrize('ratio', [16, 64, 256])
def test_the_number_of_blocks_grows_as_the_root_of_the_size(ratio):
    blocks = {n: n // k for n, k in zip(VGG, block_sizes(VGG, ratio, 'balanced'), strict=True)}
    constants = [r / n**0.5 for n, r in blocks.items() if r > 1]
    assert len(constants) >= 6 and max(constants) / min(constants) < 2.5
    for n, r in blocks.items():  # and what is sent whole would have had few blocks
        assert r > 1 or n**0.5 * min(constants) < 3


def test_no_division_of_a_small_message_waits_much_less():
    """Against all choices of divisors; the same share, which may be no divisor, can be better than them."""
    excess = []
    for sizes, ratio in small_trees():
        kept, room = block_sizes(sizes, ratio, 'balanced'), sum(block_sizes(sizes, ratio))
        choices = itertools.product(*([k for k in range(1, n + 1) if n % k == 0] for n in sizes))
        best = min(waits(sizes, choice) for choice in choices if sum(choice) <= room)
        excess.append(waits(sizes, kept) / best)
    assert max(excess) < 1.5 and sum(e < 1 + 1e-9 for e in excess) > 0.9 * len(excess)


def test_the_same_share_is_kept_where_it_is_better():
    for sizes, ratio in [*small_trees(), ([32768, 32768 // 4], 64)]:
        kept = block_sizes(sizes, ratio, 'balanced')
        assert waits(sizes, kept) <= waits(sizes, block_sizes(sizes, ratio)) * (1 + 1e-9)


def test_every_tensor_is_sent_in_rounds_of_its_own():
    """Shuffled: in R steps, R of its own, every coordinate of a tensor is sent exactly once."""
    like = {'large': jnp.ones((64, 72)), 'middle': jnp.ones((8, 16)), 'small': jnp.ones(12)}
    compressor = def_jax.random_block(16, order='shuffled', allocation='balanced')
    sizes = [leaf.size for leaf in like.values()]
    rounds = [n // k for n, k in zip(sizes, block_sizes(sizes, 16, 'balanced'), strict=True)]
    assert (
        rounds[0] > 16 > rounds[1] > rounds[2] and def_jax.message_size(compressor, like) <= sum(sizes) / 16
    )
    step = jax.jit(lambda t: compress(compressor, like, step=t))
    sent = [jax.tree.leaves(step(t)) for t in range(2 * rounds[0])]
    for leaf, blocks in enumerate(rounds):
        for first in range(0, len(sent) - blocks + 1, blocks):
            np.testing.assert_array_equal(sum(masks[leaf] for masks in sent[first : first + blocks]), 1)
