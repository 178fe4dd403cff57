"""λ*(t) from the messages: equal to the diagnostics' from all residuals, and sent at no extra cost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compressing import exchanged, feedback

import def_jax
from def_jax import diagnostics

NUM_WORKERS, NUM_STEPS = 8, 200
# A tensor of equal tiles, one whose last tile is shorter, and one that is sent more often than both.
SHAPES = {'boxes': (32, 32), 'cut short': (501,), 'small': (8,)}
SIGNALS = (0.0, 0.15, 1.0)


def estimates(order, bits=32):
    """Means over time of λ in use and of λ*(t) of the diagnostics, for updates signal + a worker's noise."""
    link = def_jax.error_feedback(def_jax.random_block(16, order=order), 'workers', detach='auto', bits=bits)
    params, rng = {name: jnp.zeros(shape) for name, shape in SHAPES.items()}, np.random.default_rng(0)
    drawn = {name: rng.normal(size=(NUM_WORKERS, NUM_STEPS, *shape)) for name, shape in SHAPES.items()}

    def worker(noise, signal):
        def step(state, noise):
            _, state = link.update(jax.tree.map(lambda z: signal + z, noise), state)
            optimum = diagnostics.error_statistics(state, 'workers')['detach_optimum']
            return state, (state.detach, optimum)

        return jax.lax.scan(step, link.init(params), noise)[1]

    workers = jax.vmap(worker, in_axes=(0, None), axis_name='workers')
    noise = jax.tree.map(np.float32, drawn)
    used, optimum = jax.jit(jax.vmap(workers, in_axes=(None, 0)))(noise, jnp.array(SIGNALS))
    assert np.all(used == used[:, :1])
    return np.asarray(used[:, 0, 50:]).mean(axis=-1), np.asarray(optimum[:, 0, 50:]).mean(axis=-1)


# By how much ages matter: λ* of the messages, without AGE_SHARES, is off by 0.06 with signal 0.15.
@pytest.mark.parametrize(('order', 'bits'), [('cyclic', 32), ('random', 8)])
def test_the_estimate_follows_what_all_residuals_say(order, bits):
    used, optimum = estimates(order, bits)
    np.testing.assert_allclose(used, optimum, rtol=0, atol=0.03)
    # From 1/K, nothing but noise, to 1.
    assert 0.1 < optimum[0] < 0.15 < optimum[1] < 0.6 and 0.85 < optimum[2] < 1


@pytest.mark.parametrize(('order', 'bits'), [('shuffled', 2), ('random', 1)])
def test_what_rounding_leaves_in_the_residual_is_noise(order, bits):
    """The estimate knows it where updates are noise in the main; where they are all alike, it is above λ*."""
    used, optimum = estimates(order, bits)
    np.testing.assert_allclose(used[:2], optimum[:2], rtol=0, atol=0.04)
    assert optimum[2] < used[2] < 1


def test_an_energy_that_overflows_says_nothing():
    updates = np.ones((2, 6, 8), np.float32)
    updates[:, 0] = 1e25
    _, state = exchanged(feedback(2, detach='auto'), updates)
    assert state.detach[0].tolist() == [0.5, *[1.0] * 5]
