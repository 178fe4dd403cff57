"""CSER in full against its own oracle, and its special cases."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
import reference_baselines as oracles
from perceptron import INITIAL, TOLERANCE, flat, loss_fn, multipliers

import def_jax
from def_jax import baselines
from def_jax.compressors import shared_key
from def_jax.compressors.base import typed_key

NUM_WORKERS, NUM_STEPS, RATE = 3, 24, 0.03


def data():
    return reference.mlp_data(NUM_WORKERS, NUM_STEPS)


def own_models(link):
    """Every worker's model x + r_k: [T + 1, K, d]."""
    optimizer = optax.chain(optax.sgd(RATE, momentum=0.9), link)

    def step(carry, batch):
        params, state = carry
        own = def_jax.detached_params(params, state)
        updates, state = optimizer.update(jax.grad(loss_fn)(own, batch), state, own)
        params = optax.apply_updates(params, updates)
        return (params, state), flat(def_jax.detached_params(params, state))

    def worker(batches):
        params = jax.tree.map(jnp.asarray, INITIAL)
        _, own = jax.lax.scan(step, (params, optimizer.init(params)), batches)
        return jnp.concatenate([flat(params)[None], own])

    return np.moveaxis(np.asarray(jax.jit(jax.vmap(worker, axis_name='workers'))(data())), 0, 1)


def update_masks(compressor):
    """The masks of C₂, drawn with a key of its own."""
    ones = jax.tree.map(jnp.ones_like, INITIAL)
    key = jax.random.key_data(jax.random.fold_in(typed_key(shared_key(0)), 1))

    def at(step):
        selection = compressor(key, step, ones)
        return flat(selection.place(selection.take(ones), ones))

    return np.asarray(jax.vmap(at)(jnp.arange(NUM_STEPS, dtype=jnp.uint32)), np.float64)


@pytest.mark.parametrize('every', [1, 4])
def test_cser_equals_oracle(every):
    c1, c2 = def_jax.random_block(2), def_jax.random_block(4, order='shuffled')
    inputs, targets = (x.astype(np.float64) for x in data())
    expected = oracles.cser(
        np.asarray(flat(INITIAL)),
        lambda theta, k, t: reference.mlp_gradient(theta, inputs[k, t], targets[k, t]),
        multipliers(c1, num_steps=NUM_STEPS),
        update_masks(c2),
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
