"""A gradient accumulated over parts of a batch: against NumPy, and statistics that pass from part to part."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from def_jax.trainer.steps import accumulated_value_and_grad


def loss(params, batch_stats, batch, key):
    errors = batch['x'] @ params['w'] - batch['t']
    stats = {'mean': 0.9 * batch_stats['mean'] + 0.1 * batch['x'].mean(0)}
    return jnp.mean(errors**2), ({'largest': errors.max(), 'noise': jax.random.normal(key)}, stats)


@pytest.fixture
def inputs():
    random = np.random.default_rng(0)
    batch = {'x': random.normal(size=(12, 3)), 't': random.normal(size=12)}
    params, stats = {'w': random.normal(size=3)}, {'mean': random.normal(size=3)}
    return jax.tree.map(np.float32, (params, stats, batch))


@pytest.mark.parametrize('accumulate', [1, 3])
def test_it_equals_that_of_the_whole_batch(inputs, accumulate):
    params, stats, batch = inputs
    function = jax.jit(accumulated_value_and_grad(loss, accumulate))
    (value, (figures, new)), grads = function(params, stats, batch, jax.random.key(0))
    errors = np.float64(batch['x']) @ params['w'] - batch['t']
    assert value == pytest.approx(np.mean(errors**2), rel=1e-5)
    np.testing.assert_allclose(grads['w'], 2 * errors @ batch['x'] / 12, rtol=1e-5)
    parts = np.split(errors, accumulate)
    assert figures['largest'] == pytest.approx(np.mean([part.max() for part in parts]), rel=1e-5)
    mean = stats['mean']
    for part in np.split(batch['x'], accumulate):
        mean = 0.9 * mean + 0.1 * part.mean(0)
    np.testing.assert_allclose(new['mean'], mean, rtol=1e-5)
    keys = jax.random.split(jax.random.key(0), accumulate) if accumulate > 1 else [jax.random.key(0)]
    noise = np.mean([jax.random.normal(key) for key in keys])  # every part draws from a key of its own
    assert figures['noise'] == pytest.approx(noise, rel=1e-5)


def test_many_parts_of_bfloat16_are_added_in_float32():
    function = accumulated_value_and_grad(lambda w, stats, x, key: (jnp.sum(w * x), ({}, stats)), 512)
    batch = jnp.linspace(1, 2, 512, dtype=jnp.bfloat16)
    _, grad = function(jnp.ones((), jnp.bfloat16), {}, batch, jax.random.key(0))
    assert grad.dtype == jnp.bfloat16 and grad == pytest.approx(1.5, rel=4e-3)


def test_one_part_after_the_other(inputs):
    """The compiled program multiplies by a part of the batch, never by the whole."""
    program = jax.jit(accumulated_value_and_grad(loss, 4)).lower(*inputs, jax.random.key(0)).as_text()
    products = [line for line in program.splitlines() if 'dot_general' in line]
    assert products and all('tensor<3x3xf32>' in line and '12x3' not in line for line in products)
    assert 'while' in program
