"""Steps with NaN or infinity: all workers skip them together, and nothing of them stays."""

import itertools

import chex
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compressing import exchanged

import def_jax

NUM_WORKERS, NUM_STEPS = 4, 12
SHAPES = {'w': (4, 4), 'b': (3,), 'scale': ()}
NUM_ELEMENTS = 16 + 3 + 1
PARAMS = {name: jnp.ones(shape) for name, shape in SHAPES.items()}
BLOCK = def_jax.random_block(4)


def wrapper(compressor=BLOCK, **options):
    inner = optax.sgd(optax.linear_schedule(0.1, 0.0, 50), momentum=0.9)
    options = {'decay': 0.9, 'skip_nonfinite': True, **options}
    return def_jax.error_feedback(compressor, 'workers', inner=inner, **options)


def gradients(num_steps=NUM_STEPS):
    """Of every worker and step: leaves [K, T, ...]."""
    rng = np.random.default_rng(0)
    return {
        name: rng.normal(size=(NUM_WORKERS, num_steps, *shape)).astype(np.float32)
        for name, shape in SHAPES.items()
    }


@pytest.mark.parametrize('bits', [32, 2])
def test_wherever_it_sits_all_workers_skip_and_hold_everything(bits):
    """One step for each place where NaN or infinity can sit."""
    optimizer = wrapper(bits=bits, outer=optax.sgd(0.7, momentum=0.9), detach='auto')
    before = jax.tree.map(lambda z: z[:, -1], exchanged(optimizer, gradients(), PARAMS)[1])
    sizes = range(NUM_WORKERS), range(NUM_ELEMENTS), (np.nan, np.inf, -np.inf)
    places = [*itertools.product(*sizes)]
    _, unravel = jax.flatten_util.ravel_pytree(PARAMS)
    finite = np.random.default_rng(1).normal(size=(NUM_WORKERS, NUM_ELEMENTS)).astype(np.float32)

    def after(worker, element, value):
        grads = jax.vmap(unravel)(jnp.asarray(finite).at[worker, element].set(value))
        return jax.vmap(lambda g, s: optimizer.update(g, s, PARAMS), axis_name='workers')(grads, before)

    workers, elements, values = (np.array(column) for column in zip(*places, strict=True))
    updates, new_state = jax.jit(jax.vmap(after))(workers, elements, values)
    for leaf in jax.tree.leaves(updates):
        np.testing.assert_array_equal(leaf, np.zeros_like(leaf))
    counted = optax.tree.set(before, skipped=optax.tree.get(before, 'skipped') + 1)
    expected = jax.tree.map(lambda z: np.broadcast_to(z, (len(places), *z.shape)), counted)
    chex.assert_trees_all_equal(new_state, expected)


def test_the_run_goes_on_as_if_the_step_had_not_been():
    """And as it would without the option."""
    grads, bad = gradients(), 5
    poisoned = jax.tree.map(np.copy, grads)
    poisoned['b'][2, bad, 1] = np.nan
    everything = def_jax.random_block(1)
    arrived, state = exchanged(wrapper(everything, bits=8), poisoned, PARAMS)
    np.testing.assert_array_equal(optax.tree.get(state, 'skipped')[:, -1], 1)
    # The same steps, the last of which comes one too early, and another.
    without = jax.tree.map(lambda g: np.concatenate([np.delete(g, bad, axis=1), g[:, :1]], axis=1), grads)
    expected, after = exchanged(wrapper(everything, bits=8, skip_nonfinite=False), without, PARAMS)

    def at(step, arrived, state):
        fields = [optax.tree.get(state, name) for name in ('residual', 'trace', 'step', 'count')]
        return arrived, jax.tree.map(lambda z: z[:, step], fields)

    arrived = jax.tree.map(lambda u: np.delete(u, bad, axis=1), arrived)
    expected = jax.tree.map(lambda u: u[:, :-1], expected)
    chex.assert_trees_all_equal(at(-1, arrived, state), at(-2, expected, after))


@pytest.mark.parametrize('bad', [3, 4])
def test_the_average_of_residuals_waits_too(bad):
    """The fourth step would average; after it the count is still at four, and three equal numbers may have
    another mean than themselves."""
    grads = jax.tree.map(lambda g: g[:3], gradients(6))
    grads['scale'][0, bad] = np.inf
    arrived, state = exchanged(wrapper(average_every=4), grads, PARAMS)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((arrived, state)))
    residual = optax.tree.get(state, 'residual')
    chex.assert_trees_all_equal(*(jax.tree.map(lambda r, t=t: r[:, t], residual) for t in (bad - 1, bad)))


@pytest.mark.parametrize('overlap', [False, True])
def test_a_skipped_step_draws_another_block(overlap):
    """Rounds go on, so that each block but those that were skipped is sent once a round."""
    blocks = def_jax.random_block(4, order='shuffled')
    optimizer = def_jax.error_feedback(blocks, 'workers', skip_nonfinite=True, overlap=overlap)
    updates, bad = np.ones((2, 17, 8), np.float32), 5
    updates[1, bad] = np.nan
    arrived, state = exchanged(optimizer, updates)
    sent = np.concatenate([arrived[0] != 0])[overlap:]  # steps, elements
    assert not sent[bad].any() and state.skipped[0, -1] == 1
    rounds = sent[:16].reshape(4, 4, 8).sum(1)
    assert np.all(rounds[[0, 2, 3]] == 1) and sorted(rounds[1]) == [0, 0, *[1] * 6]


@pytest.mark.parametrize(
    ('bits', 'overlap'), [(1, False), (2, True), (4, False), (8, True), (16, True), (32, False)]
)
def test_a_huge_value_is_sent_or_its_block_waits(bits, overlap):
    """Near the largest float32 on all workers, where sums and units overflow: the other blocks are sent."""
    blocks = def_jax.random_block(4, order='shuffled')
    options = {'skip_nonfinite': True, 'overlap': overlap, 'bits': bits, 'detach': 'auto'}
    optimizer = def_jax.error_feedback(blocks, 'workers', **options)
    updates = np.zeros((4, 13, 8), np.float32)
    updates[:, 0] = 1 + np.arange(8)
    updates[:, 0, 3] = 3.4e38
    arrived, state = exchanged(optimizer, updates)
    x = arrived.sum(1, dtype=np.float64)
    assert np.isfinite(x).all() and np.isfinite(state.residual).all()
    others = np.delete(np.arange(8), [2, 3])
    assert np.all(x[:, others] > 0)
    assert np.all(state.skipped[:, -1] <= 4)  # once a round
    y = x + np.asarray(state.residual[:, -1], np.float64).mean(0)
    apart = np.delete(np.arange(8), 2)  # which has a unit in common with it, and drowns in float32
    np.testing.assert_allclose(y[0][apart], updates.sum(1, dtype=np.float64).mean(0)[apart], rtol=1e-2)
