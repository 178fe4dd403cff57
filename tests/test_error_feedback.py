"""Algorithm 1: trajectories against the NumPy oracle under pmap, vmap and shard_map, and the invariants."""

import functools
import itertools
import math
import re
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import perceptron
import pytest
import reference
import reference_baselines
from perceptron import (
    INITIAL,
    LEARNING_RATES,
    START,
    TOLERANCE,
    assert_follows,
    flat,
    gradient,
    learning_rate,
    loss_fn,
    mapped,
    mlp_data,
    multipliers,
    x_y_residual,
)

import def_jax


class Hyper(NamedTuple):
    momentum: float = 0.9
    weight_decay: float = 0.0
    detach: float = 0.3


HYPERS = [Hyper(*values) for values in itertools.product([0.0, 0.9], [0.0, 0.05], [0.0, 0.3, 1.0])]


def train(compressor, batches, hyper, *, axis_name, varying=None, **options):
    """One worker's x, y and residual after 0, ..., T steps: each [T + 1, d]."""
    momentum, weight_decay, detach = hyper
    optimizer = optax.chain(
        optax.add_decayed_weights(weight_decay),
        optax.sgd(learning_rate, momentum=momentum),
        def_jax.error_feedback(compressor, axis_name, detach=detach, **options),
    )
    return perceptron.train(optimizer, batches, x_y_residual(axis_name), varying=varying)


def vmapped(compressor, num_workers, hypers, **kwargs):
    """Trajectories [len(hypers), K, T + 1, d], from one program."""
    worker = functools.partial(train, compressor, axis_name='workers', **kwargs)
    workers = jax.vmap(worker, in_axes=(0, None), axis_name='workers')
    stacked = Hyper(*np.asarray(hypers, np.float32).T)
    return jax.jit(jax.vmap(workers, in_axes=(None, 0)))(mlp_data(num_workers), stacked)


def assert_equals_oracle(actual, compressor, hyper, *, seed=0, average_every=0):
    """`actual` holds x, y and residual as [K, T + 1, d]."""
    num_workers = len(actual[0])
    expected = reference.algorithm_1(
        *(START, gradient(num_workers), multipliers(compressor, seed), LEARNING_RATES),
        num_workers=num_workers,
        average_every=average_every,
        **Hyper(*map(float, hyper))._asdict(),
    )
    assert_follows(actual, expected.x, expected.y, -expected.e)
    if average_every:  # the same bits, so that the workers stay together between two averages
        averaged = np.asarray(actual[2])[:, ::average_every]
        assert np.all(averaged == averaged[0])


CASES = [('tensor', 4), ('tensor', 64), ('model', 4), ('model', 64)]
COMPRESSORS = {f'{name}-{ratio}': def_jax.random_block(ratio, granularity=name) for name, ratio in CASES}
EXACT = dict(rtol=0, atol=1e-11)  # of float64
BLOCK_4, BLOCK_64, MODEL_4 = (COMPRESSORS[name] for name in ('tensor-4', 'tensor-64', 'model-4'))


def test_gradient_of_the_oracle():
    batch = tuple(x[0, 0] for x in mlp_data(1))
    expected = flat(jax.grad(loss_fn)(jax.tree.map(jnp.asarray, INITIAL), batch))
    actual = reference.mlp_gradient(START, *batch)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ('name', 'num_workers', 'average_every'),
    [
        *(('tensor-4', 8, 0), ('tensor-4', 4, 7), ('tensor-64', 4, 0), ('model-64', 2, 0)),
    ],
)
def test_vmap_equals_oracle(name, num_workers, average_every):
    actual = vmapped(COMPRESSORS[name], num_workers, HYPERS, average_every=average_every)
    for i, hyper in enumerate(HYPERS):
        found = [z[i] for z in actual]
        assert_equals_oracle(found, COMPRESSORS[name], hyper, average_every=average_every)


@pytest.mark.parametrize(
    ('mapping', 'compressor', 'num_workers', 'seed', 'average_every'),
    [
        ('pmap', BLOCK_4, 8, 0, 0),
        ('pmap', MODEL_4, 4, 1, 3),
        ('pmap', def_jax.random_k(4), 2, 0, 1),
        ('pmap of vmap', BLOCK_4, 8, 0, 4),
        ('shard_map', BLOCK_4, 4, 0, 3),
        ('shard_map with types', BLOCK_4, 4, 0, 3),
        ('shard_map with types', MODEL_4, 2, 0, 0),
        ('one worker', BLOCK_4, 1, 0, 0),
        ('one worker', def_jax.scaled(0.25), 1, 0, 0),
    ],
)
def test_every_mapping_equals_oracle(mapping, compressor, num_workers, seed, average_every):
    worker = functools.partial(train, compressor, seed=seed, average_every=average_every)
    run = mapped(mapping, worker, num_workers)
    for hyper in (Hyper(0.9, 0.05, 0.3), Hyper(0.0, 0.0, 1.0)):
        actual = run(mlp_data(num_workers), hyper)
        assert_equals_oracle(actual, compressor, hyper, seed=seed, average_every=average_every)


# --- Relations between the methods ------------------------------------------------------------------------


def momentum_sgd(num_workers):
    """x [T + 1, d] of uncompressed momentum SGD."""
    arguments = START, gradient(num_workers), LEARNING_RATES
    return reference.sgd(*arguments, num_workers=num_workers, momentum=0.9)


def detached_by_one(num_workers, factors, average_every=0):
    """The oracle at λ = 1: what holds for it holds for the library, which is equal to it."""
    settings = {'num_workers': num_workers, 'momentum': 0.9, 'detach': 1.0, 'average_every': average_every}
    return reference.algorithm_1(START, gradient(num_workers), factors, LEARNING_RATES, **settings)


@pytest.mark.parametrize('compressor', [def_jax.random_block(1), def_jax.random_k(1)])
def test_ratio_one_is_uncompressed(compressor):
    x, y, residual = vmapped(compressor, 4, [Hyper(detach=0.3)])
    assert not np.any(residual)
    np.testing.assert_array_equal(x, y)
    np.testing.assert_allclose(x[0, 0], momentum_sgd(4), **TOLERANCE)


def test_detach_one_is_cser_without_gradient_synchronisation():
    resets = multipliers(BLOCK_64)
    found, arguments = detached_by_one(4, resets), (START, gradient(4), resets, 0 * resets, LEARNING_RATES)
    models = reference_baselines.cser(*arguments, every=1, num_workers=4, momentum=0.9)
    np.testing.assert_allclose(found.x[:, None] - found.e, models, **EXACT)


@pytest.mark.parametrize(
    ('num_workers', 'average_every'), [(1, 0), (4, 1)], ids=['one worker', 'SAEF that averages at every step']
)
def test_at_detach_one_the_output_is_momentum_sgd(num_workers, average_every):
    found = detached_by_one(num_workers, multipliers(BLOCK_4), average_every)
    np.testing.assert_allclose(found.y, momentum_sgd(num_workers), **EXACT)


def test_scaled_is_sgd_with_iterate_averaging():
    found, y = detached_by_one(1, [0.05] * len(LEARNING_RATES)), momentum_sgd(1)
    np.testing.assert_allclose(found.y, y, **EXACT)
    np.testing.assert_allclose(found.x, reference.iterate_average(y, 0.05), **EXACT)


INNER = {
    'clipped': optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(learning_rate, momentum=0.9)),
    'nesterov': optax.sgd(0.1, momentum=0.9, nesterov=True),
    'adamw': optax.adamw(0.01, weight_decay=0.1),
    'lion': optax.lion(0.01),
    'muon': optax.contrib.muon(0.01),
}


@pytest.mark.parametrize('name', INNER)
def test_output_moves_by_the_mean_update(name):
    """y_{t+1} = y_t + mean_k u_k (Eq. 8) whatever the optimizer before it, and x is equal on all devices."""
    inner, feedback = INNER[name], def_jax.error_feedback(BLOCK_4, 'workers')

    def worker(batches):
        def step(carry, batch):
            params, inner_state, state = carry
            point = def_jax.detached_params(params, state)
            u, inner_state = inner.update(jax.grad(loss_fn)(point, batch), inner_state, point)
            updates, state = feedback.update(u, state, point)
            params = optax.apply_updates(params, updates)
            y = def_jax.output_params(params, state, 'workers')
            return (params, inner_state, state), (flat(params), flat(y), flat(u))

        params = jax.tree.map(jnp.asarray, INITIAL)
        return jax.lax.scan(step, (params, inner.init(params), feedback.init(params)), batches)[1]

    x, y, u = jax.pmap(worker, axis_name='workers')(mlp_data(4))
    assert np.all(np.asarray(x) == x[0])
    u = np.asarray(u, np.float64)
    assert np.max(np.std(u, axis=0)) > 1e-3  # the workers do differ
    path = START + np.cumsum(np.mean(u, axis=0), axis=0)
    np.testing.assert_allclose(y[0], path, **TOLERANCE)


# --- State, gradients and errors --------------------------------------------------------------------------


def test_state():
    params = {'w': jnp.ones((4, 8), jnp.bfloat16), 'b': jnp.ones(3)}
    feedback = def_jax.error_feedback(BLOCK_4, None, seed=5, detach=0.25)
    state = feedback.init(params)
    chex.assert_trees_all_equal(state.residual, {'w': jnp.zeros((4, 8)), 'b': jnp.zeros(3)}, strict=True)
    chex.assert_trees_all_equal(state.key, jax.random.PRNGKey(5))
    chex.assert_trees_all_equal(state.step, jnp.uint32(0), strict=True)
    chex.assert_trees_all_equal(state.detach, jnp.float32(0.25), strict=True)
    updates, after = jax.jit(feedback.update)(params, state)
    chex.assert_trees_all_equal_shapes_and_dtypes((state, params), (after, updates))
    chex.assert_trees_all_equal(after._replace(residual=0), state._replace(step=jnp.uint32(1), residual=0))


@pytest.mark.parametrize('detach', [0, 0.5, 1])
def test_detached_point_and_its_gradient(detach):
    """x + λr: at λ = 0 exactly x, as in EF; the residual takes no gradient."""
    params, residual = jnp.arange(4.0), jnp.array([1.0, -2.0, 3.0, 0.5])
    state = def_jax.error_feedback(BLOCK_4, None, detach=detach).init(params)._replace(residual=residual)
    point = def_jax.detached_params(params, state)
    np.testing.assert_array_equal(point, params + detach * residual)

    def loss(params, residual):
        return jnp.sum(def_jax.detached_params(params, state._replace(residual=residual)) ** 3)

    d_params, d_residual = jax.grad(loss, argnums=(0, 1))(params, residual)
    np.testing.assert_allclose(d_params, 3 * point**2, rtol=1e-6)
    np.testing.assert_array_equal(d_residual, 0)


def test_all_reduce_mean():
    tree = {'a': jnp.arange(8.0).reshape(4, 2), 'b': jnp.arange(4.0)}
    mean = def_jax.all_reduce_mean('workers')
    actual = jax.vmap(lambda g: mean.update(g, mean.init(g))[0], axis_name='workers')(tree)
    chex.assert_trees_all_close(actual, jax.tree.map(lambda g: jnp.broadcast_to(g.mean(0), g.shape), tree))
    chex.assert_trees_all_equal(def_jax.all_reduce_mean(None).update(tree, optax.EmptyState())[0], tree)


IMPOSSIBLE = {
    'compressor': ([64, 'random_block', None], r'must be a compressor such as'),
    'axis_name': (
        [3, (), ('a', 1), ('a', None), ('a', 'a')],
        'must be a name .*, a tuple of different names',
    ),
    'detach': ([-0.1, 1.5, math.nan, '0.3', 'automatic', '', True, None], r'must be a number in \[0, 1\]'),
    'seed': ([1.0, '0', False, None, -1, 2**32, 2**64], r'must be an integer in \[0, 2\*\*32\), the same'),
    'average_every': (
        [-1, 2.0, True, None, 10**30],
        r'must be an integer in \[0, 2\*\*31\): a number of steps, 0 for never',
    ),
    'every': ([0, 2.0, 10**30], r'must be an integer in \[1, 2\*\*31\)'),
    'decay': ([1.5], r'must be a number in \[0, 1\]'),
    'outer': ([0.7], 'must be an optax.GradientTransformation'),
    'wire_dtype': (
        [jnp.int16, jnp.uint8, jnp.float64, 'float', 'f33', None, 16, math.pi],
        'must be a float type of at most 32 bits, or int8',
    ),
    'skip_nonfinite': ([1, 'yes', None], 'must be True or False'),
    'overlap': (['yes'], 'must be True or False'),
}


@pytest.mark.parametrize(
    ('name', 'value'), [(name, value) for name in IMPOSSIBLE for value in IMPOSSIBLE[name][0]]
)
def test_impossible_arguments(name, value):
    message = re.escape(f'{name}={value!r} ') + IMPOSSIBLE[name][1]
    good = dict(compressor=BLOCK_4, axis_name='workers')
    with pytest.raises(ValueError, match=message):
        def_jax.error_feedback(**(good | {name: value}))
    if name == 'axis_name':
        with pytest.raises(ValueError, match=message):
            def_jax.all_reduce_mean(value)
        with pytest.raises(ValueError, match=message):
            def_jax.output_params(jnp.ones(4), (), value)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'outer': optax.clip_by_global_norm(1.0)}, 'outer must be elementwise'),
        ({'outer': optax.stateless(lambda u, _: jnp.cumsum(u))}, 'outer must be elementwise'),
        ({'outer': optax.adamw(0.1)}, 'outer cannot be applied to a single block'),
        ({'every': 2, 'average_every': 3}, 'every=2 and average_every=3 cannot be combined'),
        ({'every': 2, 'skip_nonfinite': True}, 'every=2 and skip_nonfinite=True cannot be combined'),
        *(
            ({'detach': 'auto', 'wire_dtype': narrow}, "too narrow for the squared norm that detach='auto'")
            for narrow in (jnp.float16, jnp.float8_e5m2)
        ),
    ],
)
def test_impossible_combinations(options, message):
    with pytest.raises(ValueError, match=message):
        def_jax.error_feedback(BLOCK_4, None, **options)


@pytest.mark.parametrize('axis_name', ['workers', ('devices', 'workers'), ['devices', 'workers']])
def test_unbound_axis_name(axis_name):
    feedback, x = def_jax.error_feedback(BLOCK_4, axis_name), jnp.ones(4)
    mean = def_jax.all_reduce_mean(axis_name)
    for call in (
        lambda: feedback.update(x, feedback.init(x)),
        lambda: def_jax.output_params(x, feedback.init(x), axis_name),
        lambda: mean.update(x, mean.init(x)),
    ):
        with pytest.raises(ValueError, match=r'axis_name=.* is not bound here.*jax\.pmap.*axis_name=None'):
            call()


FOREIGN = NamedTuple('FOREIGN', [('residual', jax.Array)])(jnp.ones(2))


@pytest.mark.parametrize('opt_state', [(), None, optax.sgd(0.1, momentum=0.9).init(jnp.ones(2)), FOREIGN])
def test_state_without_residual(opt_state):
    for function, arguments in ((def_jax.detached_params, ()), (def_jax.output_params, (None,))):
        with pytest.raises(ValueError, match=f'{function.__name__}: opt_state holds no residual'):
            function(jnp.ones(2), opt_state, *arguments)
