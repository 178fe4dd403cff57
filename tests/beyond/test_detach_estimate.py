"""λ*(t) from the messages: equal to what the diagnostics measure from all residuals, and sent for nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hlo import all_reduces, make_params

import def_jax
from def_jax import diagnostics
from def_jax.beyond.detach_estimate import best_detach

NUM_WORKERS, NUM_STEPS = 8, 400
# One tensor whose blocks tile it, one whose blocks wrap, and one that is sent oftener than both.
SHAPES = {'boxes': (64, 32), 'circle': (1001,), 'small': (8,)}


@functools.cache
def estimates(order, signal, granularity='tensor', wire_dtype=jnp.float32):
    """λ in use and λ*(t) of the diagnostics at every step [T], for updates signal + a worker's noise."""
    compressor = def_jax.random_block(32, order=order, granularity=granularity)
    link = def_jax.error_feedback(compressor, 'workers', detach='auto', wire_dtype=wire_dtype)

    def worker(key):
        params = {name: jnp.zeros(shape) for name, shape in SHAPES.items()}

        def step(state, step_key):
            noise = optax.tree.random_like(step_key, params, sampler=jax.random.normal)
            _, state = link.update(jax.tree.map(lambda z: signal + z, noise), state)
            optimum = diagnostics.error_statistics(state, 'workers')['detach_optimum']
            return state, (state.detach, optimum)

        return jax.lax.scan(step, link.init(params), jax.random.split(key, NUM_STEPS))[1]

    keys = jax.random.split(jax.random.key(0), NUM_WORKERS)
    used, optimum = jax.jit(jax.vmap(worker, axis_name='workers'))(keys)
    assert np.all(used == used[0])
    return np.asarray(used[0]), np.asarray(optimum[0])


# By how much ages matter: λ* of the messages, without AGE_SHARES, is off by up to 0.2 with signal 0.1.
@pytest.mark.parametrize('signal', [0.0, 0.1, 1.0])
@pytest.mark.parametrize('order', ['random', 'shuffled', 'cyclic'])
def test_the_estimate_follows_what_all_residuals_say(order, signal):
    used, optimum = (z[100:].mean() for z in estimates(order, signal))
    assert used == pytest.approx(optimum, abs=0.03)
    low, high = {0.0: (0.1, 0.15), 0.1: (0.15, 0.6), 1.0: (0.85, 1.0)}[signal]
    assert low < optimum < high  # from 1/K, nothing but noise, to 1


@pytest.mark.parametrize('options', [{'granularity': 'model'}, {'wire_dtype': jnp.bfloat16}], ids=str)
def test_the_estimate_with_other_messages(options):
    used, optimum = (z[100:].mean() for z in estimates('shuffled', 0.1, **options))
    assert used == pytest.approx(optimum, abs=0.03)


@pytest.mark.parametrize('compressor', [def_jax.random_k(4), def_jax.identity(), def_jax.scaled(0.5)])
def test_every_compressor_estimates_the_squared_norm_without_bias(compressor):
    tree = {name: jax.random.normal(jax.random.key(1), shape) for name, shape in SHAPES.items()}

    def energy(key):
        selection = compressor(key, jnp.uint32(0), tree)
        return selection.energy(selection.take(tree))

    keys = jax.vmap(jax.random.PRNGKey)(jnp.arange(500))
    expected = sum(float(jnp.vdot(x, x)) for x in tree.values())
    assert float(jax.jit(jax.vmap(energy))(keys).mean()) == pytest.approx(expected, rel=0.01)


def test_one_worker_follows_its_own_model():
    optimizer = def_jax.def_sgd(0.1, 4, None, detach='auto')
    state = optimizer.init(jnp.ones(8))
    for _ in range(3):
        _, state = optimizer.update(jnp.arange(8.0), state, jnp.ones(8))
    assert float(optax.tree.get(state, 'detach')) == 1


@pytest.mark.parametrize('num_workers', [2, 16])
def test_the_limits(num_workers):
    limits = {'all noise': 1 / num_workers, 'all signal': 1.0}
    energies = {'all noise': [1 / num_workers, 1.0], 'all signal': [1.0, 1.0]}
    for name, expected in limits.items():
        best = best_detach(jnp.array(energies[name]), num_workers, (1 / 3, 1 / 2))
        assert float(best) == pytest.approx(expected, rel=1e-5)
    assert float(best_detach(jnp.zeros(2), num_workers, (1, 1))) == 1  # nothing was sent yet
    # Rounding may make the averaged message the longer one.
    assert float(best_detach(jnp.array([1.0001, 1.0]), num_workers, (1, 1))) == 1


def test_a_message_is_one_element_longer_and_travels_alone():
    link = def_jax.error_feedback(def_jax.random_block(64), 'workers', detach='auto')
    assert all_reduces(link, 4) == [[def_jax.message_size(def_jax.random_block(64), make_params()) + 1]]


@pytest.mark.parametrize('dtype', [jnp.float16, jnp.float8_e5m2])
def test_a_range_that_is_too_small(dtype):
    with pytest.raises(ValueError, match=r"wire_dtype=.* too narrow for the squared norm that detach='auto'"):
        def_jax.error_feedback(def_jax.identity(), None, detach='auto', wire_dtype=dtype)


@pytest.mark.parametrize('detach', ['automatic', '', None, '0.3'])
def test_impossible_detach(detach):
    with pytest.raises(ValueError, match=r'detach=.* must be a number in \[0, 1\]'):
        def_jax.error_feedback(def_jax.identity(), None, detach=detach)
