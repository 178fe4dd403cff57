"""Typed keys in an optimizer's state, as of `optax.add_noise`, are saved, although NumPy can't hold them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compressing import feedback
from sharded_workers import AUTO, EXPLICIT, mesh_of

import def_jax
from def_jax.ground.random import is_typed

NUM_WORKERS = 4
PARAMS = {'w': jnp.ones((8, 4)), 'b': jnp.ones(4)}
# Inside, every worker has one; after the link, all have the same.
OPTIMIZER = optax.chain(
    feedback(inner=optax.chain(optax.add_noise(0.01, 0.55, key=0), optax.sgd(0.1))),
    optax.add_noise(0.01, 0.55, key=1),
)


def words(tree):
    return jax.tree.map(lambda x: np.asarray(jax.random.key_data(x) if is_typed(x) else x), tree)


def assert_same(actual, expected):
    jax.tree.map(np.testing.assert_array_equal, words(actual), words(expected))


def own_keys(state, number):
    """A worker's state after a step, with a key of its own."""
    first, second = state
    noise, rest = first.inner
    noise = noise._replace(rng_key=jax.random.fold_in(noise.rng_key, number))
    residual, worker = jax.tree.map(lambda x: x + number, PARAMS), jnp.array([number, NUM_WORKERS])
    return first._replace(inner=(noise, rest), residual=residual, worker=worker), second


@pytest.mark.parametrize('out_axes', [0, None])
def test_a_stacked_state_keeps_its_keys(out_axes):
    """Also of copies that the array's type calls replicated."""
    devices = jax.devices()[:NUM_WORKERS]
    start = jax.pmap(lambda k: own_keys(OPTIMIZER.init(PARAMS), k), devices=devices)(jnp.arange(NUM_WORKERS))
    given = start if out_axes == 0 else jax.pmap(lambda x: x, out_axes=None, devices=devices)(start)
    saved = def_jax.stack_state(given)
    key, shared = saved[0].inner[0].rng_key, saved[1].rng_key
    assert key.shape == (NUM_WORKERS,) and shared.shape == ()
    assert_same(def_jax.unstack_state(saved), start)
    assert_same(def_jax.unstack_state(saved, 6)[0].inner[0].rng_key, key[np.array([0, 1, 2, 3, 0, 1])])
    for alone in (jax.tree.map(lambda x: x[0], start), jax.tree.map(lambda x: jnp.stack([x[0]] * 4), start)):
        with pytest.raises(ValueError, match=r"one worker's state|all 4 workers have the same residual"):
            def_jax.stack_state(alone)


@pytest.mark.parametrize('kind', [AUTO, EXPLICIT])
def test_another_number_of_workers_goes_on_with_the_keys(kind):
    two, four = (def_jax.spmd(OPTIMIZER, mesh_of(n, 2, kind), jax.P()) for n in (2, 4))
    state = four.init(PARAMS)
    noise, rest = state[0].inner
    noise = noise._replace(rng_key=jax.random.split(jax.random.key(5), 4))
    state = state[0]._replace(inner=(noise, rest)), state[1]
    fewer = two.regroup(PARAMS, state)
    assert_same(fewer[0].inner[0].rng_key, noise.rng_key[:2])
    assert_same(fewer[1], state[1])
    updates, _ = two.update(jax.tree.map(lambda x: jnp.stack([x] * 2), PARAMS), fewer, PARAMS)
    def_jax.assert_replicated(updates, None)
