"""The candidate for optax.contrib equals the library bit for bit; its own tests and its doctest pass."""

import doctest
import functools
import sys
import unittest
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import def_jax

UPSTREAM = Path(__file__).parents[2] / 'examples' / 'upstream'


@pytest.fixture(scope='module', autouse=True)
def candidate():
    sys.path.insert(0, str(UPSTREAM))
    import _error_feedback

    yield _error_feedback
    sys.path.remove(str(UPSTREAM))


@pytest.mark.parametrize('ratio', [16, 6])
def test_it_equals_the_library_bit_for_bit(candidate, ratio):
    inner = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1, momentum=0.9))
    sides = (
        (
            def_jax.error_feedback(def_jax.random_block(ratio), 'workers', inner=inner, seed=3),
            def_jax.detached_params,
            def_jax.output_params,
        ),
        (
            candidate.error_feedback(inner, ratio, axis_name='workers', seed=3),
            lambda params, state: candidate.error_feedback_detached_params(state, params),
            lambda params, state, axis: candidate.error_feedback_output_params(state, params, axis),
        ),
    )
    start = {'w': jnp.ones((64, 36)), 'b': jnp.ones(36), 'scale': jnp.ones(())}
    keys = jax.random.split(jax.random.key(0), (8, 4))

    def trained(optimizer, point_of, output_of):
        @jax.jit
        @functools.partial(jax.vmap, axis_name='workers', in_axes=(0, 0, 0))
        def step(params, state, key):
            point = point_of(params, state)
            grads = jax.tree.map(lambda x: x * jax.random.normal(key, x.shape), point)
            updates, state = optimizer.update(grads, state, params)
            params = optax.apply_updates(params, updates)
            return params, state, (params, point, state.residual, output_of(params, state, 'workers'))

        params = jax.tree.map(lambda x: jnp.stack([x] * 4), start)
        state, seen = jax.vmap(optimizer.init)(params), []
        for key in keys:
            params, state, found = step(params, state, key)
            seen.append(found)
        return seen

    jax.tree.map(np.testing.assert_array_equal, *(trained(*side) for side in sides))


def test_its_doctest_passes_where_optax_has_it(candidate, monkeypatch):
    for name in ('error_feedback', 'error_feedback_detached_params', 'error_feedback_output_params'):
        monkeypatch.setattr(optax.contrib, name, getattr(candidate, name), raising=False)
    found = doctest.testmod(candidate)
    assert found.attempted > 0 and found.failed == 0


def test_its_own_tests_pass():
    import _error_feedback_test

    suite = unittest.defaultTestLoader.loadTestsFromModule(_error_feedback_test)
    result = unittest.TextTestRunner(stream=sys.stderr).run(suite)
    assert result.testsRun > 10 and result.wasSuccessful()
