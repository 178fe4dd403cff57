"""Other people's systems as settings of `error_feedback`, each against an oracle of its own."""

import numpy as np
import optax
import pytest
import reference_baselines
import reference_family as family
from compressing import exchanged
from perceptron import START, TOLERANCE, gradient, mlp_data, multipliers, x_and_own

import def_jax

NUM_WORKERS, NUM_STEPS, EVERY, RATE = 3, 24, 4, 0.05
OUTER = dict(learning_rate=0.7, momentum=0.9)
TUNED = dict(learning_rate=1.4, momentum=0.5)
NESTEROV = optax.sgd(**TUNED, nesterov=True)
GRADIENT = gradient(NUM_WORKERS, NUM_STEPS)
DATA = mlp_data(NUM_WORKERS, num_steps=NUM_STEPS)


def named(name, inner, ratio=4, **options):
    """The optimizer of a method, and its compressor."""
    method = def_jax.baselines.get_method(name)
    compressor = method.compressor(ratio)
    return method.optimizer(optax.identity(), inner, 'workers', compressor, **options), compressor


# A method, its inner optimizer for the library and for the oracle, its options, and the oracle's
# synchronisation, given the compressor.
SGD = optax.sgd(RATE, momentum=0.9), family.momentum_sgd(RATE, 0.9)
ADAM, PLAIN = (optax.adam(0.01), family.adam(0.01)), (optax.sgd(RATE), family.momentum_sgd(RATE, 0.0))
LOCAL = [
    ('local_sgd', SGD, {'every': EVERY}, lambda _: family.local_sgd(EVERY)),
    ('diloco', ADAM, {'every': EVERY}, lambda _: family.diloco(EVERY, **OUTER)),
    ('diloco', ADAM, {'every': EVERY, 'outer': NESTEROV}, lambda _: family.diloco(EVERY, **TUNED)),
    # The fragments are blocks of every tensor, in turn; the outer momentum of the others rests.
    (
        *('streaming_diloco', PLAIN, {'ratio': 2, 'every': EVERY}),
        lambda c: family.diloco(EVERY, **OUTER, fragments=multipliers(c, num_steps=NUM_STEPS // EVERY)),
    ),
    ('sparta', SGD, {}, lambda c: family.sparta(multipliers(c, num_steps=NUM_STEPS))),
]
IDS = [f'{name}, own outer' if 'outer' in options else name for name, _, options, _ in LOCAL]


@pytest.mark.parametrize(('name', 'inner', 'options', 'synchronise'), LOCAL, ids=IDS)
def test_models_that_drift_apart(name, inner, options, synchronise):
    optimizer, compressor = named(name, inner[0], **options)
    sizes = {'num_workers': NUM_WORKERS, 'num_steps': NUM_STEPS}
    expected = family.local_training(START, GRADIENT, inner[1], synchronise(compressor), **sizes)
    for found, oracle in zip(x_and_own(optimizer, DATA), expected, strict=True):
        np.testing.assert_allclose(found, oracle, **TOLERANCE)


def test_random_replicator():
    optimizer, blocks = named('random_replicator', optax.sgd(RATE))
    exchange = family.random_replicator(multipliers(blocks, num_steps=NUM_STEPS), decay=0.999)
    rates = [RATE] * NUM_STEPS
    oracle = reference_baselines.train(START, GRADIENT, exchange, rates, num_workers=NUM_WORKERS)
    np.testing.assert_allclose(x_and_own(optimizer, DATA)[0], oracle, **TOLERANCE)


def test_outer_momentum_of_a_scaled_message_is_refused():
    """C(p) = δ·p would scale the momentum, too."""
    with pytest.raises(ValueError, match='outer= needs a compressor that sends coordinates as they are'):
        def_jax.error_feedback(def_jax.baselines.scaled(0.25), 'workers', outer=optax.sgd(0.7, momentum=0.9))


def test_a_schedule_of_the_outer_optimizer_counts_messages():
    outer = optax.sgd(optax.piecewise_constant_schedule(1.0, {2: 0.5}))
    link = def_jax.error_feedback(def_jax.identity(), 'workers', outer=outer)
    arrived, _ = exchanged(link, np.ones((2, 4, 3), np.float32))
    np.testing.assert_allclose(arrived[0, :, 0], [1, 1, 0.5, 0.5])
