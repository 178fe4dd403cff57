"""CSER in full against its own oracle, and its special cases."""

import numpy as np
import optax
import pytest
import reference_baselines as oracles
from perceptron import START, TOLERANCE, flat, gradient, mlp_data, multipliers, train, vmapped

import def_jax
from def_jax import baselines

NUM_WORKERS, NUM_STEPS, RATE = 3, 24, 0.03


def own_models(link):
    """Every worker's model x + r_k: [T + 1, K, d]."""
    optimizer = optax.chain(optax.sgd(RATE, momentum=0.9), link)

    def own(params, state):
        return flat(def_jax.detached_params(params, state))

    models = vmapped(
        lambda batches: train(optimizer, batches, own), mlp_data(NUM_WORKERS, num_steps=NUM_STEPS)
    )
    return np.moveaxis(np.asarray(models), 0, 1)


@pytest.mark.parametrize('every', [1, 4])
def test_cser_equals_oracle(every):
    c1, c2 = def_jax.random_block(2), def_jax.random_block(4, order='cyclic')
    expected = oracles.cser(
        START,
        gradient(NUM_WORKERS, NUM_STEPS),
        multipliers(c1, num_steps=NUM_STEPS),
        multipliers(c2, num_steps=NUM_STEPS, folded=True),
        [RATE] * NUM_STEPS,
        every=every,
        num_workers=NUM_WORKERS,
        momentum=0.9,
    )
    found = own_models(baselines.cser(c1, c2, 'workers', every=every))
    np.testing.assert_allclose(found, expected, **TOLERANCE)
    assert np.abs(found[-1] - found[-1, 0]).max() > 1e-2


def test_a_reset_of_everything_makes_the_models_equal():
    link = baselines.cser(def_jax.identity(), def_jax.random_block(4), 'workers', every=4)
    models = own_models(link)
    assert np.ptp(models[8], axis=0).max() < 1e-6 < np.ptp(models[7], axis=0).max()


def test_impossible_arguments():
    for every in (0, True):
        with pytest.raises(ValueError, match=rf'every={every} must be an integer in \[1, '):
            def_jax.get_method('cser').optimizer(
                optax.identity(), optax.sgd(0.1), None, def_jax.identity(), ratio=16, every=every
            )
    with pytest.raises(ValueError, match='random_block must be called first'):
        baselines.cser(def_jax.identity(), def_jax.random_block, None)
