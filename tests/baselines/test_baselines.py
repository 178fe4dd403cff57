"""The baselines: trajectories against NumPy oracles, and what they refuse. Types: state/test_varying.py."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import perceptron
import pytest
import reference
import reference_baselines as oracles
import reference_family as family
from perceptron import (
    INITIAL,
    START,
    TOLERANCE,
    at_x,
    flat,
    gradient,
    mlp_data,
    multipliers,
    vmapped,
    x_and_own,
)

import def_jax
from def_jax import baselines
from def_jax.baselines.cser import cser_of_ratio
from def_jax.state import ownership
from def_jax.traffic import traffic

NUM_WORKERS, NUM_STEPS, MOMENTUM = 4, 30, 0.9
RATES = np.where(np.arange(NUM_STEPS) < 20, 0.02, 0.002)
SHAPES = reference.MLP_SHAPES
BLOCK = def_jax.random_block(4)
DATA = mlp_data(NUM_WORKERS, num_steps=NUM_STEPS)


def first_factors():
    """The first Q of every tensor, which only the library draws."""
    params = jax.tree.map(jnp.asarray, INITIAL)
    return [np.asarray(q, np.float64) for q in baselines.powersgd(4, None, rank=1, seed=2).init(params).carry]


INSIDE = {'top_k', 'sign_ef'}  # what wraps the optimizer; the others precede it
# Link, oracle, momentum. With the seeds 0 to 7 of PowerSGD the largest difference is 2e-7 to
# 4e-7, but 7e-6 with 3 on a processor without AVX-512: two of its steps amplify roundings.
CASES = {
    'powersgd': (
        lambda axis: baselines.powersgd(4, axis, rank=1, seed=2),
        lambda: oracles.powersgd(SHAPES, 1, first_factors()),
        MOMENTUM,
    ),
    'top_k': (functools.partial(baselines.top_k, 4), lambda: oracles.top_k(SHAPES, 4), MOMENTUM),
    'demo': (
        lambda axis: baselines.demo(2, axis, chunk=2, momentum_decay=0.9),
        lambda: oracles.demo(SHAPES, 2, 2, 0.9),
        0.0,
    ),
    'sign_ef': (baselines.sign_ef, lambda: oracles.sign_ef(SHAPES), MOMENTUM),
    'onebit_adam': (
        lambda axis: baselines.onebit_adam(axis, freeze_after=10, b2=0.9),
        lambda: oracles.onebit_adam(SHAPES, freeze_after=10, b2=0.9),
        0.0,
    ),
    'ef21_sgdm': (
        lambda axis: baselines.ef21_sgdm(BLOCK, axis, averaging=0.3),
        lambda: oracles.ef21_sgdm(multipliers(BLOCK), 0.3),
        0.0,
    ),
}


def train(name, batches):
    """One worker's x after 0, ..., T steps: [T + 1, d]."""
    link, _, momentum = CASES[name]
    sgd = optax.sgd(lambda step: jnp.asarray(RATES, jnp.float32)[step], momentum or None)
    optimizer = link('workers', inner=sgd) if name in INSIDE else optax.chain(link('workers'), sgd)
    return perceptron.train(optimizer, batches, lambda params, state: flat(params), point=at_x)


def expected(name):
    _, oracle, momentum = CASES[name]
    problem = START, gradient(NUM_WORKERS, NUM_STEPS), oracle(), RATES
    inside = name in INSIDE
    return oracles.train(*problem, num_workers=NUM_WORKERS, momentum=momentum, inside=inside)


@pytest.mark.parametrize('name', CASES)
def test_vmap_equals_oracle(name):
    x = np.asarray(vmapped(functools.partial(train, name), DATA))
    np.testing.assert_allclose(x[0], expected(name), **TOLERANCE)
    np.testing.assert_array_equal(x, np.broadcast_to(x[0], x.shape))


@pytest.mark.parametrize('name', CASES)
def test_a_state_of_all_devices_is_saved_and_restored(name):
    """What workers share is saved once."""
    link, params = CASES[name][0]('workers'), {'w': jnp.ones((8, 16)), 'b': jnp.ones(8)}
    state = jax.vmap(link.init)(jax.tree.map(lambda x: jnp.stack([x] * 3), params))
    own, first = ownership.own_leaves(link, params), link.init(params)
    saved = def_jax.stack_state(state)
    wanted = jax.tree.map(lambda mine, x: (3, *jnp.shape(x)) if mine else jnp.shape(x), own, first)
    assert jax.tree.map(jnp.shape, saved) == wanted
    jax.tree.map(np.testing.assert_array_equal, def_jax.unstack_state(saved), state)


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (lambda: baselines.top_k(0.5, None), 'ratio=0.5 must be a finite number >= 1'),
        (lambda: baselines.powersgd(4, None, rank=-1), r'rank=-1 must be an integer in \[0, 2\*\*31\)'),
        (lambda: baselines.powersgd(4, None, rank=9).init(jnp.zeros((8, 16))), 'rank=9 .*at most 8'),
        (lambda: baselines.powersgd(4, None, seed=-1), 'seed=-1 must be an integer'),
        (lambda: baselines.demo(4, None, chunk=0), r'chunk=0 must be an integer in \[1, 2\*\*8\)'),
        (lambda: baselines.demo(4, None, momentum_decay=1.0), 'momentum_decay=1.0 must be a number'),
        (lambda: baselines.sign_ef(3), 'axis_name=3 must be a name'),
        (lambda: baselines.onebit_adam(None, freeze_after=0), r'freeze_after=0 must be an integer in \[1, '),
        (lambda: baselines.onebit_adam(None, b1=1), r'b1=1 must be a number in \[0, 1\)'),
        (lambda: baselines.ef21_sgdm(BLOCK, None, averaging=0), r'averaging=0 must be a number in \(0, 1\]'),
        (lambda: baselines.cser(BLOCK, def_jax.random_block, None), 'random_block must be called first'),
        (lambda: cser_of_ratio(16, None, every=0), r'every=0 must be an integer in \[1, '),
        (lambda: baselines.top_k(4, None).init({'a': jnp.arange(3)}), r"params\['a'\] is int32"),
    ],
)
def test_impossible_arguments(make, message):
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('x64', [False, True])
@pytest.mark.parametrize('name', [*CASES, 'sparse_loco'])
def test_updates_and_state_keep_their_dtypes_and_shapes_are_checked(name, x64):
    """Also of a tensor without elements."""
    link = CASES[name][0](None) if name in CASES else baselines.sparse_loco(4, None)
    sizes = {'w': (8, 4), 'b': 4, 'none': (0, 3)}
    with jax.enable_x64(x64):
        params = {
            name: jnp.ones(size, 'bfloat16' if name == 'w' else 'float32') for name, size in sizes.items()
        }
        before = link.init(params)
        found = jax.eval_shape(link.update, params, before, params)
        kinds = [jax.tree.map(lambda x: (x.shape, x.dtype), each) for each in (found, (params, before))]
        assert kinds[0] == kinds[1]
        with pytest.raises(ValueError, match=r"updates\['b'\] is \(3,\)"):
            jax.eval_shape(link.update, params | {'b': jnp.ones(3)}, before, params)


# --- Workers that train models of their own: CSER in full, and SparseLoCo ---


PROBLEM, RATE = (START, gradient(NUM_WORKERS, NUM_STEPS)), 0.03


def trained(link):
    return x_and_own(optax.chain(optax.sgd(RATE, momentum=0.9), link), DATA)


@pytest.mark.parametrize('every', [1, 4])
def test_cser_equals_oracle(every):
    c1, c2 = def_jax.random_block(2), def_jax.random_block(4, order='cyclic')
    resets, steps = (
        multipliers(c, num_steps=NUM_STEPS, folded=folded) for c, folded in ((c1, False), (c2, True))
    )
    settings = {'every': every, 'num_workers': NUM_WORKERS, 'momentum': 0.9}
    expected = oracles.cser(*PROBLEM, resets, steps, [RATE] * NUM_STEPS, **settings)
    _, own = trained(baselines.cser(c1, c2, 'workers', every=every))
    np.testing.assert_allclose(own, expected, **TOLERANCE)
    assert np.abs(own[-1] - own[-1, 0]).max() > 1e-2


@pytest.mark.parametrize(('every', 'ratio'), [(1, 4), (4, 1)])
def test_sparse_loco_equals_oracle(every, ratio):
    synchronise = oracles.sparse_loco(SHAPES, ratio=ratio, chunk=2, every=every)
    inner, sizes = family.momentum_sgd(RATE, 0.9), {'num_workers': NUM_WORKERS, 'num_steps': NUM_STEPS}
    expected, _ = family.local_training(*PROBLEM, inner, synchronise, **sizes)
    found, _ = trained(baselines.sparse_loco(ratio, 'workers', every=every, chunk=2))
    np.testing.assert_allclose(found, expected, **TOLERANCE)
    assert np.ptp(np.diff(expected, axis=0)[every - 1 :: every], axis=0).max() > 1e-2


HELD = {  # what may hold a NaN from step to step
    **{name: case[0] for name, case in CASES.items()},
    'cser': lambda axis: baselines.cser(BLOCK, BLOCK, axis),
    'sparse_loco': lambda axis: baselines.sparse_loco(4, axis),
    'sparse_loco in rounds': lambda axis: baselines.sparse_loco(4, axis, every=4),
    'onebit_adam, dense': lambda axis: baselines.onebit_adam(axis, freeze_after=NUM_STEPS),
}


@functools.cache
def trained_with(name):
    """x and state of all workers, by the value of one element of one worker's gradient at one step."""
    link, params = HELD[name]('workers'), jax.tree.map(jnp.asarray, INITIAL)

    def trained(worker, value):
        def step(carry, number):
            params, state = carry
            first, *others = (jnp.cos(x + worker + number) for x in params)
            poison = jnp.where((worker == 1) & (number == 3), value, 0)
            grads = first.at[0, 0].add(poison), *others
            updates, state = link.update(grads, state, params)
            return (jax.tree.map(lambda x, u: x - 0.01 * u, params, updates), state), None

        return jax.lax.scan(step, (params, link.init(params)), jnp.arange(NUM_STEPS))[0]

    return jax.jit(jax.vmap(trained, in_axes=(0, None), axis_name='workers'))


@pytest.mark.parametrize('name', ['top_k', 'sign_ef', 'cser', 'sparse_loco', 'sparse_loco in rounds'])
def test_a_state_of_other_workers_is_not_saved(name):
    _, state = trained_with(name)(jnp.arange(NUM_WORKERS), 0.0)
    def_jax.stack_state(state)
    with pytest.raises(ValueError, match='states of the workers 3, 2, 1, 0 of 4, but must be those of 0, 1'):
        def_jax.stack_state(jax.tree.map(lambda x: x[::-1], state))


@pytest.mark.parametrize('value', [np.nan, np.inf])
@pytest.mark.parametrize('name', HELD)
def test_a_nan_that_a_worker_keeps_is_seen_by_all_in_x(name, value):
    x, state = trained_with(name)(np.arange(NUM_WORKERS), value)
    is_lost = not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
    for worker in range(NUM_WORKERS):
        assert all(np.isfinite(leaf[worker]).all() for leaf in jax.tree.leaves(x)) != is_lost


@pytest.mark.parametrize('name', ['cser', 'sparse_loco'])
def test_a_nan_that_is_sent_is_not_kept_as_well(name):
    everything = def_jax.identity()
    links = {'cser': baselines.cser(BLOCK, everything, None), 'sparse_loco': baselines.sparse_loco(1, None)}
    updates, state = jax.jit(links[name].update)(jnp.array([np.nan, 1.0]), links[name].init(jnp.zeros(2)))
    assert np.isnan(updates[0]) and state.residual.tolist() == [0, 0]


@pytest.mark.parametrize('ratio', [64, 128])
def test_a_message_has_the_bytes_of_its_ratio(ratio):
    params = {'w': jnp.zeros((256, 128)), 'b': jnp.zeros(4096)}
    found = traffic(baselines.sparse_loco(ratio, 'workers', every=5), params, 'workers')
    ((_, (message,)),) = (sorted(branch, key=len) for branch in found.branches)
    assert not found.always and message.operation == 'all-gather'
    elements = sum(x.size for x in jax.tree.leaves(params))
    assert 0.95 * elements / ratio < message.bytes / 4 - 2 * 4 <= elements / ratio + 1


def test_top_k_finds_places_beyond_16_bits():
    x = jnp.zeros(2**16 + 2).at[jnp.array([1, 2**16 + 1])].set(jnp.array([2.0, 4.0]))
    link = baselines.top_k(2**15, None)
    np.testing.assert_array_equal(jax.jit(link.update)(x, link.init(x))[0], x)


def test_onebit_adam_leaves_alone_what_never_had_a_gradient():
    link = baselines.onebit_adam(None, freeze_after=1)
    state = link.init(jnp.zeros(2))
    for _ in range(3):
        updates, state = jax.jit(link.update)(jnp.array([1.0, 0.0]), state)
    assert updates[1] == 0 != state.mu[1]


@pytest.mark.parametrize('every', [1, 4])
def test_cser_sends_its_ratio_in_all(every):
    params = {'w': jnp.zeros((64, 32)), 'b': jnp.zeros(64)}
    found = traffic(cser_of_ratio(16, 'workers', every=every), params, 'workers')
    assert sum(message.bytes for message in found.messages) == 4 * (66 + every * 66)


@pytest.mark.parametrize(('ratio', 'rank'), [(2, 10), (4, 4), (8, 2), (16, 1)])
def test_powersgd_has_the_greatest_rank_of_its_ratio(ratio, rank):
    params = {'w': jnp.zeros((64, 32)), 'b': jnp.zeros(64)}
    found = traffic(baselines.powersgd(ratio, 'workers'), params, 'workers')
    assert sum(message.bytes for message in found.always) == 4 * (96 * rank + 64)
