"""Algorithm 1: trajectories against the NumPy oracle under pmap, vmap and shard_map, and the invariants."""

import functools
import itertools
import math
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import perceptron
import pytest
import reference
from perceptron import (
    LEARNING_RATES,
    START,
    TOLERANCE,
    gradient,
    learning_rate,
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
BLOCK_4, BLOCK_64 = def_jax.random_block(4), def_jax.random_block(64)


def train(compressor, form, batches, hyper, *, axis_name, varying=None, **options):
    """One worker's x, y and residual after 0, ..., T steps: each [T + 1, d]."""
    momentum, weight_decay, detach = hyper
    inner = optax.add_decayed_weights(weight_decay), optax.sgd(learning_rate, momentum=momentum)
    link = functools.partial(def_jax.error_feedback, compressor, axis_name, detach=detach, **options)
    optimizer = optax.chain(*inner, link()) if form == 'link' else link(inner=optax.chain(*inner))
    if form == 'flattened':
        optimizer = optax.flatten(optimizer)
    observe, bare = x_y_residual(axis_name), form == 'link'
    return perceptron.train(optimizer, batches, observe, varying=varying, bare=bare)


def assert_equals_oracle(actual, masks, hyper, *, average_every):
    """`actual` holds x, y and residual as [K, T + 1, d]."""
    num_workers = len(actual[0])
    expected = reference.algorithm_1(
        *(START, gradient(num_workers), masks, LEARNING_RATES),
        num_workers=num_workers,
        average_every=average_every,
        **hyper._asdict(),
    )
    x, y, residual = map(np.asarray, actual)
    assert np.all(x == x[0]) and np.all(y == y[0])
    np.testing.assert_allclose(x[0], expected.x, **TOLERANCE)
    np.testing.assert_allclose(y[0], expected.y, **TOLERANCE)
    np.testing.assert_allclose(residual, -np.moveaxis(expected.e, 1, 0), **TOLERANCE)
    if average_every:  # the same bits, so that the workers stay together between two averages
        averaged = residual[:, ::average_every]
        assert np.all(averaged == averaged[0])


@pytest.mark.parametrize(
    ('mapping', 'form', 'compressor', 'num_workers', 'seed', 'average_every'),
    [
        ('vmap', 'link', BLOCK_64, 4, 0, 0),
        ('vmap', 'wrapper', BLOCK_4, 4, 0, 7),
        ('vmap', 'flattened', BLOCK_4, 2, 0, 0),
        ('pmap', 'wrapper', BLOCK_4, 8, 1, 3),
        ('pmap of vmap', 'link', def_jax.baselines.random_k(4), 8, 0, 1),
        ('shard_map', 'link', BLOCK_4, 4, 0, 0),
        ('shard_map with types', 'link', BLOCK_4, 4, 0, 3),
        ('shard_map with types', 'wrapper', BLOCK_64, 2, 0, 0),
        ('one worker', 'wrapper', BLOCK_4, 1, 0, 0),
    ],
)
def test_every_mapping_equals_oracle(mapping, form, compressor, num_workers, seed, average_every):
    """As the last link of a chain; around the optimizer; and with one block of the whole model."""
    worker = functools.partial(train, compressor, form, seed=seed, average_every=average_every)
    run = mapped(mapping, worker, num_workers)
    for hyper in HYPERS if mapping == 'vmap' else (Hyper(0.9, 0.05, 0.3), Hyper(0.0, 0.0, 1.0)):
        actual = run(mlp_data(num_workers), hyper)
        masks = multipliers(compressor, seed, flattened=form == 'flattened')
        assert_equals_oracle(actual, masks, hyper, average_every=average_every)


# --- State, gradients and errors --------------------------------------------------------------------------


@pytest.mark.parametrize('detach', [0, 0.5])
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


IMPOSSIBLE = {
    'compressor': ([64, 'random_block', None], r'must be a compressor such as'),
    'axis_name': ([3, (), ('a', 1), ('a', 'a')], 'must be a name .*, a tuple of different names'),
    'detach': ([-0.1, 1.5, math.nan, '0.3', 'automatic', '', True, None], r'must be a number in \[0, 1\]'),
    'seed': ([1.0, '0', False, None, -1, 2**32, 2**64], r'must be an integer in \[0, 2\*\*32\), the same'),
    'average_every': (
        [-1, 2.0, True],
        r'must be an integer in \[0, 2\*\*31\): a number of steps, 0 for never',
    ),
    'every': ([0, 2.0, 10**30], r'must be an integer in \[1, 2\*\*31\)'),
    'decay': ([1.5], r'must be a number in \[0, 1\]'),
    'outer': ([0.7], 'must be an optax.GradientTransformation'),
    'inner': ([optax.sgd, 0.1, None], "must be the worker's optimizer"),
    'bits': ([3, 64, 'int8', jnp.int8, None], r'must be 1 \(signs\), 2 .*, 16 \(bfloat16\) or 32'),
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


@pytest.mark.parametrize('axis_name', ['workers', ('devices', 'workers'), ['devices', 'workers']])
def test_unbound_axis_name(axis_name):
    feedback, x = def_jax.error_feedback(BLOCK_4, axis_name), jnp.ones(4)
    mean, gathering = def_jax.all_reduce_mean(axis_name), def_jax.baselines.sign_ef(axis_name)
    shown = axis_name if isinstance(axis_name, str) else tuple(axis_name)
    message = re.escape(f'axis_name={shown!r} is not bound here') + r'.*jax\.pmap.*axis_name=None'
    for call in (
        lambda: feedback.update(x, feedback.init(x)),
        lambda: def_jax.output_params(x, feedback.init(x), axis_name),
        lambda: mean.update(x, mean.init(x)),
        lambda: gathering.update(x, gathering.init(x)),
    ):
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(call)


ELSEWHERE = {'w': jnp.ones((2, 3))}


@pytest.mark.parametrize(
    'params',
    [
        {'w': jnp.ones((3, 2))},
        {'v': jnp.ones((2, 3))},
        {'w': {'w': jnp.ones((2, 3))}},
        [jnp.ones((2, 3))],
        jnp.ones(6),
    ],
)
def test_a_residual_of_other_parameters(params):
    """Of as many elements: never reshaped."""
    state = def_jax.error_feedback(BLOCK_4, None).init(ELSEWHERE)
    flat = optax.flatten(def_jax.error_feedback(BLOCK_4, None)).init(ELSEWHERE)
    for function, arguments in ((def_jax.detached_params, ()), (def_jax.output_params, (None,))):
        with pytest.raises(ValueError, match='opt_state'):
            function(params, state, *arguments)
        with pytest.raises(ValueError, match=r'the residual in opt_state is \(6,\)'):
            function([params, jnp.ones(1)], flat, *arguments)
        function([params], flat, *arguments)  # documented: a flattened state says its size alone


def test_a_state_of_other_options():
    """Also where the options have the same names, and numbers of the same state would be broadcast."""
    params = {'w': jnp.ones((2, 3))}

    def made(**options):
        link = def_jax.error_feedback(BLOCK_4, None, **options)
        return link, link.init(params)

    (momentum, _), (_, without) = (made(outer=optax.sgd(0.3, momentum=m)) for m in (0.8, None))
    (auto, state), (plain, bare) = made(detach='auto'), made()
    stacked = state._replace(energy=(jnp.ones(3), jnp.ones(3)))
    for link, other, message in (
        (auto, bare, r'energy\[0\] is not there, but must be \(\)\. .* made with other options'),
        (plain, state, r'energy\[0\] is \(\), but must be not there'),
        (auto, stacked, r'energy\[0\] is \(3,\), but must be \(\)'),
        (momentum, without, r"outer.*trace\['w'\] is not there, but must be \(2, 3\)"),
    ):
        with pytest.raises(ValueError, match=r'state\.' + message):
            jax.eval_shape(link.update, params, other)
