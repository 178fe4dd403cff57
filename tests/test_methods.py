"""Every method of the paper's tables, from `METHODS` to its answer, against a NumPy oracle of its own."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
import reference_baselines
from perceptron import (
    LEARNING_RATES,
    START,
    TOLERANCE,
    at_x,
    flat,
    gradient,
    learning_rate,
    mlp_data,
    multipliers,
    train,
    vmapped,
)

import def_jax
from def_jax.baselines import methods

RATIO, MOMENTUM, WEIGHT_DECAY, DETACH, PERIOD = 4, 0.9, 0.05, 0.3, 3


@functools.cache
def trained(name, num_workers, average_every):
    """The method's points after 0, ..., T steps: each [K, T + 1, d]."""
    method = def_jax.baselines.get_method(name)
    optimizer = method.optimizer(
        optax.add_decayed_weights(WEIGHT_DECAY),
        optax.sgd(learning_rate, momentum=MOMENTUM),
        'workers',
        method.compressor(RATIO),
        detach=DETACH,
        average_every=average_every,
    )
    feeds_back = method.kind == 'error_feedback'

    def points(params, state):
        found = {'x': params}
        if feeds_back:
            found['y'] = def_jax.output_params(params, state, 'workers')
            residual = optax.tree.get(state, 'residual')
            found['own'] = jax.tree.map(jnp.add, params, residual)
        return {point: flat(found[point]) for point in method.points}

    point = def_jax.detached_params if feeds_back else at_x
    return vmapped(lambda batches: train(optimizer, batches, points, point=point), mlp_data(num_workers))


def oracle(name, num_workers, average_every):
    """The answer of the method, [K, T + 1, d] or, where workers share it, [T + 1, d]."""
    masks, gradient_of = multipliers(def_jax.random_block(RATIO)), gradient(num_workers)
    settings = {'num_workers': num_workers, 'momentum': MOMENTUM}
    if name in ('sgd', 'ef21', 'sgd_ia'):  # momentum SGD after the communication, and the penalty before it
        ef21 = reference_baselines.ef21_sgdm(masks, averaging=1.0)
        exchange = ef21 if name == 'ef21' else lambda gradients: gradients.mean(0)  # Eq. 2
        penalised = START, lambda x, k, t: gradient_of(x, k, t) + WEIGHT_DECAY * x
        y = reference_baselines.train(*penalised, exchange, LEARNING_RATES, **settings)
        return reference.iterate_average(y, 1 / RATIO) if name == 'sgd_ia' else y
    settings |= {'weight_decay': WEIGHT_DECAY, 'average_every': average_every if name == 'saef' else 0}
    detach = {'ef': 0.0, 'saef': 1.0, 'psync': 1.0}.get(name, DETACH)
    path = reference.algorithm_1(START, gradient_of, masks, LEARNING_RATES, detach=detach, **settings)
    if name == 'psync':
        return (path.x[:, None] - path.e).swapaxes(0, 1)
    return path.y if name == 'def' else path.x


CASES = [
    *((name, 4, 0) for name in ('sgd', 'ef', 'saef', 'psync', 'def', 'def_a', 'ef21')),
    *((name, 4, PERIOD) for name in ('saef', 'psync')),
    ('sgd_ia', 1, 0),
]


@pytest.mark.parametrize(('name', 'num_workers', 'average_every'), CASES)
def test_the_answer_of_a_method_equals_its_oracle(name, num_workers, average_every):
    method = methods.METHODS[name]
    run = methods.trajectory(name, average_every)  # which methods share
    points = trained(run, num_workers, average_every)
    assert set(points) == set(methods.METHODS[run].points)
    answers = methods.METHODS[run].answers(average_every)
    assert answers[method.answer] == method.title
    if name == 'saef' and average_every:
        assert len(answers) == 1  # no other method has its trajectory
    actual = np.asarray(points[method.answer])
    expected = oracle(name, num_workers, average_every)
    np.testing.assert_allclose(actual, np.broadcast_to(expected, actual.shape), **TOLERANCE)
    if method.answer != 'own':
        assert np.all(actual == actual[0])
    else:  # every worker has a model of its own
        assert np.abs(actual - actual[0]).max() > 1e-2


@pytest.mark.parametrize('name', methods.METHODS)
def test_the_table_has_the_defaults_of_the_functions(name):
    method = methods.METHODS[name]
    arguments = inspect.signature(method.link or def_jax.error_feedback).parameters
    if method.link is None:
        taken = {key for key in arguments if key not in ('compressor', 'axis_name', 'inner', 'seed')}
        assert taken == {*method.options, *method.fixes, 'detach', 'average_every'}
    for key in {*method.options, *method.takes} - method.defaults.keys():
        default = arguments[key].default
        assert default in (methods.OPTIONS.get(key, 0), inspect.Parameter.empty)
    if method.in_bytes:
        preset = inspect.signature(def_jax.def_sgd).parameters
        assert all(preset[key].default == value for key, value in method.sends.items())


@pytest.mark.parametrize(
    ('name', 'options', 'message'),
    [
        ('def', {'rank': 2}, 'rank=2 has no effect, since DEF does not use it. Set rank=0.'),
        ('random_replicator', {'decay': 0.95}, 'decay=0.95 has no effect, since random replicator fixes it'),
        ('sign_ef', {'detach': 'auto'}, "detach='auto' estimates λ, but EF-signSGD fixes it or has none"),
        ('sgd', {'evrey': 3}, r"option='evrey' is unknown; .* Did you mean 'every'\?"),
        ('powersgd', {'order': 'shuffled'}, 'has no effect, since .* chooses what it sends.* Set'),
        ('sparta', {'order': 'shuffled'}, 'has no effect, since .* draws individual elements.* Set'),
        ('streaming_diloco', {'order': 'shuffled'}, 'has no effect, since .* fixes it.* Set'),
    ],
)
def test_an_option_that_a_method_does_not_use(name, options, message):
    method = methods.METHODS[name]
    blocks = options if 'order' in options else {}
    arguments = optax.identity(), optax.sgd(0.1), None
    with pytest.raises(ValueError, match=message):
        method.optimizer(*arguments, method.compressor(RATIO, **blocks), ratio=RATIO, **options)
