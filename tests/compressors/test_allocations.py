"""How the message is divided among tensors: never longer, blocks that divide, nearly the shortest waits."""

import itertools
import math

import jax
import jax.numpy as jnp
import pytest
from network_shapes import REAL

import def_jax
from def_jax.compressors.blocks import same_share
from def_jax.compressors.random_block import balanced

VGG = [math.prod(shape) for shape in REAL['vgg16']]
RATIOS = [1, 1.5, 16, 100, 1e9]


def waits(sizes, kept):
    """Σ R with R = n / kept."""
    return sum(n / k for n, k in zip(sizes, kept, strict=True))


def small_trees():
    """All trees of three such tensors, each with every such ratio."""
    sizes = itertools.combinations_with_replacement([1, 6, 12, 27, 64, 100, 144], 3)
    yield from itertools.product(map(list, sizes), [2, 4, 8, 16])


def test_the_same_share_of_every_tensor():
    assert same_share([1000, 64, 10, 1, 0], 64) == [15, 1, 1, 1, 0]
    assert same_share([], 64) == balanced([], 64) == []


@pytest.mark.parametrize('ratio', RATIOS)
def test_a_balanced_message_is_no_longer(ratio):
    proportional, kept = same_share(VGG, ratio), balanced(VGG, ratio)
    assert all(n % k == 0 for n, k in zip(VGG, kept, strict=True))  # a box of the tensor each
    # What is left is less than the next step of a tensor; at 1.5 that is the half of a large one.
    assert (0.98 if ratio != 1.5 else 0.85) * sum(proportional) <= sum(kept) <= sum(proportional)
    if ratio == 1:
        assert kept == VGG


@pytest.mark.parametrize('ratio', [16, 64, 256])
@pytest.mark.parametrize(
    'shapes',
    [
        [(512, 512)] * 4 + [(512,)] * 8 + [(50021,)],
        [(784, 257), (257,), (257, 257), (257,), (257, 10), (10,)],
    ],
    ids=['a prime tensor', 'prime widths'],
)
def test_few_divisors_are_no_obstacle(shapes, ratio):
    """Blocks that divide nearly: waits as short as if the sizes were powers of two, in no longer messages."""
    blocks = {}
    for allocation in ('proportional', 'balanced'):
        parts = def_jax.random_block(ratio, allocation=allocation).parts(
            [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
        )
        blocks[allocation] = sum(part.size for part in parts), sum(part.weight for part in parts)
    sizes = [math.prod(shape) for shape in shapes]
    room = sum(same_share(sizes, ratio))
    powers = [2 ** round(math.log2(n)) for n in sizes]
    possible = waits(powers, balanced(powers, ratio))
    proportional, (length, waiting) = blocks.values()
    assert length <= 1.05 * room and waiting < 0.7 * proportional[1] and waiting < 1.25 * possible


def test_no_division_of_a_small_message_waits_much_less():
    """Against all choices of divisors, and the same share, which may be no divisor and better than them."""
    excess = []
    for sizes, ratio in small_trees():
        kept, proportional = balanced(sizes, ratio), same_share(sizes, ratio)
        choices = itertools.product(*([k for k in range(1, n + 1) if n % k == 0] for n in sizes))
        best = min(waits(sizes, choice) for choice in choices if sum(choice) <= sum(proportional))
        excess.append(waits(sizes, kept) / best)
        assert waits(sizes, kept) <= waits(sizes, proportional) * (1 + 1e-9)
    assert max(excess) < 1.5 and sum(e < 1 + 1e-9 for e in excess) > 0.9 * len(excess)
