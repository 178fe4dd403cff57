"""Baselines whose workers train models of their own, against oracles: CSER in full, and SparseLoCo."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
import reference_baselines as oracles
from perceptron import START, TOLERANCE, flat, gradient, mlp_data, multipliers, train, vmapped

import def_jax
from def_jax import baselines
from def_jax.traffic import traffic

NUM_WORKERS, NUM_STEPS, RATE = 4, 24, 0.03
PROBLEM, RATES = (START, gradient(NUM_WORKERS, NUM_STEPS)), [RATE] * NUM_STEPS
SETTINGS = {'num_workers': NUM_WORKERS, 'momentum': 0.9}


def trained(link):
    """x, and every worker's own model x + r_k: each [K, T + 1, d]."""
    optimizer = optax.chain(optax.sgd(RATE, momentum=0.9), link)

    def observe(params, state):
        return flat(params), flat(def_jax.detached_params(params, state))

    batches = mlp_data(NUM_WORKERS, num_steps=NUM_STEPS)
    return map(np.asarray, vmapped(lambda own: train(optimizer, own, observe), batches))


@pytest.mark.parametrize('every', [1, 4])
def test_cser_equals_oracle(every):
    c1, c2 = def_jax.random_block(2), def_jax.random_block(4, order='cyclic')
    resets, steps = (
        multipliers(c, num_steps=NUM_STEPS, folded=folded) for c, folded in ((c1, False), (c2, True))
    )
    expected = oracles.cser(*PROBLEM, resets, steps, RATES, every=every, **SETTINGS)
    _, found = trained(baselines.cser(c1, c2, 'workers', every=every))
    np.testing.assert_allclose(found, expected.swapaxes(0, 1), **TOLERANCE)
    assert np.abs(found[:, -1] - found[0, -1]).max() > 1e-2


@pytest.mark.parametrize(('every', 'ratio'), [(1, 4), (4, 1)])
def test_sparse_loco_equals_oracle(every, ratio):
    options = {'every': every, 'chunk': 2}
    expected = oracles.sparse_loco(*PROBLEM, RATES, reference.MLP_SHAPES, ratio=ratio, **options, **SETTINGS)
    found, _ = trained(baselines.sparse_loco(ratio, 'workers', **options))
    np.testing.assert_allclose(found[0], expected, **TOLERANCE)
    np.testing.assert_array_equal(found, np.broadcast_to(found[0], found.shape))
    assert np.ptp(np.diff(expected, axis=0)[every - 1 :: every], axis=0).max() > 1e-2


@pytest.mark.parametrize('ratio', [64, 128])
def test_a_message_has_the_bytes_of_its_ratio(ratio):
    params = {'w': jnp.zeros((256, 128)), 'b': jnp.zeros(4096)}
    found = traffic(baselines.sparse_loco(ratio, 'workers', every=5), params, 'workers')
    ((_, (message,)),) = (sorted(branch, key=len) for branch in found.branches)
    assert not found.always and message.operation == 'all-gather'
    elements = sum(x.size for x in jax.tree.leaves(params))
    assert 0.95 * elements / ratio < message.bytes / 4 - 2 * 4 <= elements / ratio + 1
