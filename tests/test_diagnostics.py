"""Diagnostics against NumPy over a loop of workers."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import def_jax
from def_jax import diagnostics

K, DETACH = 4, 0.3


def tree(rng):
    return {name: np.float32(rng.normal(size=(K, *shape))) for name, shape in (('w', (3, 5)), ('b', (2,)))}


def flat(stacked):
    return np.concatenate([x.reshape(K, -1) for x in jax.tree.leaves(stacked)], axis=1).astype(np.float64)


def test_error_statistics_equal_a_loop_over_workers():
    residual = tree(np.random.default_rng(0))
    init = def_jax.error_feedback(def_jax.random_block(2), 'workers', detach=DETACH).init

    def measure(own):
        return diagnostics.error_statistics(init(own)._replace(residual=own), 'workers')

    measured = jax.jit(jax.vmap(measure, axis_name='workers'))(residual)

    errors = -flat(residual)
    mean = errors.mean(axis=0)
    distances = [np.sum((mean - DETACH * e) ** 2) for e in errors]
    expected = {
        'mean_error': np.sum(mean**2),
        'error': np.mean(np.sum(errors**2, axis=1)),
        'distance': np.mean(distances),
        'detach_optimum': np.sum(mean**2) / np.mean(np.sum(errors**2, axis=1)),
        'detach_optimum_own': errors @ mean / np.sum(errors**2, axis=1),
    }
    assert set(measured) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(measured[name], np.broadcast_to(value, K), rtol=1e-5, err_msg=name)


def test_optima_are_zero_while_nothing_waits():
    state = def_jax.error_feedback(def_jax.random_block(2), None).init(jnp.zeros(4))
    measured = jax.jit(lambda state: diagnostics.error_statistics(state, None))(state)
    assert measured['detach_optimum'] == measured['detach_optimum_own'] == 0


def test_gradient_statistics_are_unbiased():
    """Over all ways in which three workers can draw their noise, the means are the truth."""
    sigma, mean, workers = 0.5, np.array([-1.0, 0.7]), 3
    signs = np.array([*itertools.product((-1, 1), repeat=workers * 2)]).reshape(-1, workers, 2)
    grads = (mean + sigma * signs).astype(np.float32)
    measure = jax.vmap(lambda g: diagnostics.gradient_statistics(g, 'workers'), axis_name='workers')
    measured = jax.jit(jax.vmap(measure))(grads)
    variance, second = (np.asarray(measured[name])[:, 0] for name in ('variance', 'second_moment'))
    assert variance.std() > 0.1 and second.std() > 0.1
    assert variance.mean() == pytest.approx(len(mean) * sigma**2, rel=1e-5)
    assert second.mean() == pytest.approx(np.sum(mean**2), rel=1e-5)
