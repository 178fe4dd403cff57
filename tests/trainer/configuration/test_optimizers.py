"""Optimizers of a configuration inside DEF: decay at the detached point, against NumPy; schedules."""

import itertools

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest

import def_jax
from configs import digits
from def_jax.trainer.configuration.optimizer import make_optimizer, make_schedule

RATE, DECAY, DETACH, WORKERS, STEPS = 0.05, 0.3, 0.4, 2, 6


def config_of(optimizer, **options):
    changes = {'optimizer': optimizer, 'optimizer_options': options, 'weight_decay': DECAY}
    changes |= {'ratio': 4, 'detach': DETACH, 'learning_rate': RATE}
    return ml_collections.ConfigDict(digits.get_config().to_dict() | changes)


OUTER = {'learning_rate': 0.3, 'momentum': 0.8, 'nesterov': True}


def test_the_outer_optimizer_gets_the_mean_message():
    config = config_of('sgd')
    config.update({'outer': 'sgd', 'outer_options': OUTER, 'weight_decay': 0.0, 'momentum': 0.0})
    outer = optax.sgd(0.3, momentum=0.8, nesterov=True)
    link = def_jax.error_feedback(def_jax.random_block(4), None, detach=DETACH, outer=outer)
    trajectories = []
    for optimizer in (make_optimizer(config, RATE, None), optax.chain(optax.sgd(RATE), link)):
        point = jnp.linspace(-1, 1, 8)
        state = optimizer.init(point)
        for _ in range(STEPS):
            updates, state = optimizer.update(point, state, point)
            point = optax.apply_updates(point, updates)
        trajectories.append(point)
    np.testing.assert_array_equal(*trajectories)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'outer': 'sgd'}, "outer='sgd' needs the option 'learning_rate'"),
        (
            {'outer': 'sgd', 'method': 'diloco'},
            "outer='sgd' has no effect on method='diloco', which fixes it",
        ),
        ({'outer': 'sgd', 'method': 'sgd'}, "outer='sgd' has no effect on method='sgd'"),
    ],
)
def test_an_outer_optimizer_must_be_used_and_complete(changes, message):
    config = ml_collections.ConfigDict(digits.get_config().to_dict() | changes)
    with pytest.raises(ValueError, match=message):
        make_optimizer(config, RATE, None)


class AdamW:
    """Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019, Algorithm 2."""

    def __init__(self, b1, b2):
        self.b1, self.b2, self.m, self.v, self.t = b1, b2, 0.0, 0.0, 0

    def update(self, gradient, point):
        self.t += 1
        self.m = self.b1 * self.m + (1 - self.b1) * gradient
        self.v = self.b2 * self.v + (1 - self.b2) * gradient**2
        m, v = self.m / (1 - self.b1**self.t), self.v / (1 - self.b2**self.t)
        return -RATE * (m / (np.sqrt(v) + 1e-8) + DECAY * point)


class Lion:
    """Chen et al., "Symbolic Discovery of Optimization Algorithms", 2023, Algorithm 2."""

    def __init__(self, b1, b2):
        self.b1, self.b2, self.m = b1, b2, 0.0

    def update(self, gradient, point):
        update = np.sign(self.b1 * self.m + (1 - self.b1) * gradient)
        self.m = self.b2 * self.m + (1 - self.b2) * gradient
        return -RATE * (update + DECAY * point)


class PenalisedSGD:
    """Eq. 11, with the gradient of the L2 penalty at the point of the gradient."""

    def __init__(self):
        self.m = 0.0

    def update(self, gradient, point):
        self.m = 0.9 * self.m + gradient + DECAY * point
        return -RATE * self.m


@pytest.mark.parametrize(
    ('name', 'options', 'oracle'),
    [
        ('adamw', {'b1': 0.8, 'b2': 0.95}, AdamW),
        ('lion', {'b1': 0.8, 'b2': 0.95}, Lion),
        ('sgd', {}, PenalisedSGD),
    ],
)
def test_the_output_moves_by_the_mean_of_what_the_workers_would_do_at_their_points(name, options, oracle):
    optimizer = make_optimizer(config_of(name, **options), RATE, 'workers')
    target = np.random.default_rng(0).normal(size=(WORKERS, 8)).astype(np.float32)

    def step(params, state, target):
        point = def_jax.detached_params(params, state)
        updates, state = optimizer.update(point - target, state, point)
        return optax.apply_updates(params, updates), state, point

    mapped = jax.jit(jax.vmap(step, axis_name='workers'))
    params = jnp.tile(jnp.linspace(-1, 1, 8, dtype=jnp.float32), (WORKERS, 1))
    state = jax.vmap(optimizer.init)(params)
    oracles = [oracle(**options) for _ in range(WORKERS)]
    output = np.array(params[0])
    for _ in range(STEPS):
        residual = np.array(optax.tree.get(state, 'residual'))
        expected = np.array(params) + DETACH * residual
        params, state, point = mapped(params, state, target)
        np.testing.assert_allclose(point, expected, rtol=1e-6)
        moves = [o.update(p - t, p) for o, p, t in zip(oracles, np.float64(point), target, strict=True)]
        output = output + np.mean(moves, axis=0)
        y = np.array(params[0]) + np.array(optax.tree.get(state, 'residual')).mean(0)
        np.testing.assert_allclose(y, output, rtol=1e-4, atol=1e-5)
    assert np.abs(residual).max() > 1e-2  # the points did differ


def test_muon_decays_matrices_and_vectors():
    config = config_of('muon', ns_steps=3)
    config.ratio = 1
    optimizer = make_optimizer(config, RATE, None)
    params = {'matrix': jnp.full((4, 6), 2.0), 'vector': jnp.full(6, 3.0)}
    updates, _ = jax.jit(optimizer.update)(
        jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params
    )
    for name, parameter in params.items():
        np.testing.assert_allclose(updates[name], -RATE * DECAY * parameter, rtol=1e-6)


@pytest.mark.parametrize(('schedule', 'options'), [('cosine', {'final': 0.1}), ('wsd', {'decay': 0.25})])
def test_schedules_rise_stay_in_range_and_fall(schedule, options):
    config = config_of('adamw')
    config.update({'schedule': schedule, 'schedule_options': {'warmup': 0.1, **options}})
    rates = [float(make_schedule(config, 200)(step)) for step in range(200)]
    assert rates[0] == pytest.approx(RATE / 20) and max(rates) == pytest.approx(RATE)
    assert all(a < b for a, b in itertools.pairwise(rates[:20]))
    assert all(a >= b for a, b in itertools.pairwise(rates[20:]))
    reference = (
        optax.cosine_decay_schedule(RATE, 180, 0.1)
        if schedule == 'cosine'
        else lambda step: RATE * min(1, (180 - step) / 50)
    )
    np.testing.assert_allclose(rates[20:], [float(reference(step)) for step in range(180)], rtol=1e-5)


def test_the_rate_drops_where_the_configuration_says():
    config = config_of('sgd')
    config.learning_rate_drops = (0.3, 0.6)
    rates = [float(make_schedule(config, 10)(step)) for step in range(10)]
    np.testing.assert_allclose(rates, [RATE] * 3 + [RATE / 10] * 3 + [RATE / 100] * 4, rtol=1e-5)
