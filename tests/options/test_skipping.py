"""Steps with NaN or infinity: all workers skip them together, and nothing of them stays."""

import functools
import itertools

import chex
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import def_jax

NUM_WORKERS, NUM_STEPS = 4, 12
SHAPES = {'w': (8, 8), 'b': (3,), 'scale': ()}
NUM_ELEMENTS = 64 + 3 + 1


@functools.cache
def chain(hold=True, skip_nonfinite=True, **options):
    inner = optax.sgd(optax.linear_schedule(0.1, 0.0, 50), momentum=0.9)
    blocks = def_jax.random_block(4)
    options = {'decay': 0.9, 'skip_nonfinite': skip_nonfinite, **options}
    link = def_jax.error_feedback(blocks, 'workers', **options)
    return def_jax.hold_skipped(optax.chain(inner, link)) if hold else optax.chain(inner, link)


def gradients(num_steps=NUM_STEPS):
    """Of every worker and step: leaves [K, T, ...]."""
    rng = np.random.default_rng(0)
    return {
        name: rng.normal(size=(NUM_WORKERS, num_steps, *shape)).astype(np.float32)
        for name, shape in SHAPES.items()
    }


@functools.partial(jax.jit, static_argnums=0)  # compiled once for a chain and a number of steps
def trajectory(optimizer, grads):
    """Parameters and state of every worker after each step: leaves [K, T, ...]."""

    def worker(grads):
        def step(carry, grads):
            params, state = carry
            updates, state = optimizer.update(grads, state, params)
            carry = optax.apply_updates(params, updates), state
            return carry, carry

        params = {name: jnp.ones(shape) for name, shape in SHAPES.items()}
        return jax.lax.scan(step, (params, optimizer.init(params)), grads)[1]

    return jax.vmap(worker, axis_name='workers')(grads)


def test_wherever_it_sits_all_workers_skip_and_hold_everything():
    """One step for each place where NaN or infinity can sit."""
    optimizer = chain()
    before = jax.tree.map(lambda z: z[:, -1], trajectory(optimizer, gradients()))
    sizes = range(NUM_WORKERS), range(NUM_ELEMENTS), (np.nan, np.inf, -np.inf)
    places = [*itertools.product(*sizes)]
    _, unravel = jax.flatten_util.ravel_pytree({name: jnp.zeros(shape) for name, shape in SHAPES.items()})
    finite = np.random.default_rng(1).normal(size=(NUM_WORKERS, NUM_ELEMENTS)).astype(np.float32)

    def after(worker, element, value):
        grads = jax.vmap(unravel)(jnp.asarray(finite).at[worker, element].set(value))
        step = jax.vmap(lambda g, p, s: optimizer.update(g, s, p), axis_name='workers')
        return step(grads, *before)

    workers, elements, values = (np.array(column) for column in zip(*places, strict=True))
    updates, new_state = jax.jit(jax.vmap(after))(workers, elements, values)
    for leaf in jax.tree.leaves(updates):
        np.testing.assert_array_equal(leaf, np.zeros_like(leaf))
    counted = optax.tree.set(before[1], skipped=optax.tree.get(before[1], 'skipped') + 1)
    expected = jax.tree.map(lambda z: np.broadcast_to(z, (len(places), *z.shape)), counted)
    chex.assert_trees_all_equal(new_state, expected)


def test_the_run_goes_on_as_if_the_step_had_not_been():
    """And as it would without the option."""
    grads, bad = gradients(), 5
    poisoned = jax.tree.map(np.copy, grads)
    poisoned['b'][2, bad, 1] = np.nan
    params, state = trajectory(chain(), poisoned)
    np.testing.assert_array_equal(optax.tree.get(state, 'skipped')[:, -1], 1)
    # The same steps, the last of which comes one too early, and another.
    without = jax.tree.map(lambda g: np.concatenate([np.delete(g, bad, axis=1), g[:, :1]], axis=1), grads)
    expected = trajectory(chain(skip_nonfinite=False, hold=False), without)

    def at(step, params, state):
        fields = [optax.tree.get(state, name) for name in ('residual', 'trace', 'step', 'count')]
        return jax.tree.map(lambda z: z[:, step], (params, fields))

    chex.assert_trees_all_equal(at(-1, params, state), at(-2, *expected))


@pytest.mark.parametrize('bad', [3, 4])
def test_the_average_of_residuals_waits_too(bad):
    """The fourth step would average; after it the count is still at four, and three equal numbers may have
    another mean than themselves."""
    grads = jax.tree.map(lambda g: g[:3], gradients(6))
    grads['scale'][0, bad] = np.inf
    params, state = trajectory(chain(average_every=4), grads)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((params, state)))
    residual = optax.tree.get(state, 'residual')
    chex.assert_trees_all_equal(*(jax.tree.map(lambda r, t=t: r[:, t], residual) for t in (bad - 1, bad)))


def test_what_cannot_be_held():
    """Gradients that optax.MultiSteps accumulates would keep the NaN for ever."""
    optimizer = def_jax.hold_skipped(optax.sgd(0.1, momentum=0.9))
    with pytest.raises(ValueError, match='hold_skipped: opt_state holds no residual'):
        optimizer.update(jnp.ones(3), optimizer.init(jnp.ones(3)))
    chain = def_jax.error_feedback(def_jax.identity(), None, skip_nonfinite=True)
    optimizer = def_jax.hold_skipped(optax.MultiSteps(chain, 2).gradient_transformation())
    with pytest.raises(ValueError, match=r'hold_skipped: optax\.MultiSteps would keep a NaN'):
        optimizer.init(jnp.ones(3))
