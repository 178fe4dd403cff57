"""Optimizers of a configuration: optax's, with its decay and the link; schedules."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from configuration_values import changed

import def_jax
from def_jax.trainer.configuration.parts import make_optimizer, make_schedule

RATE, DECAY, DETACH = 0.05, 0.3, 0.4


def config_of(optimizer, **options):
    changes = {'weight_decay': DECAY, 'ratio': 4, 'detach': DETACH, 'learning_rate': RATE}
    return changed(optimizer=optimizer, optimizer_options=options, **changes)


OUTER = {'learning_rate': 0.3, 'momentum': 0.8, 'nesterov': True}
BETAS = {'b1': 0.8, 'b2': 0.95}


@pytest.mark.parametrize(
    ('name', 'options', 'outer', 'expected'),
    [
        ('sgd', {}, False, optax.chain(optax.add_decayed_weights(DECAY), optax.sgd(RATE, 0.9))),
        ('adamw', BETAS, False, optax.adamw(RATE, **BETAS, weight_decay=DECAY)),
        ('lion', BETAS, True, optax.lion(RATE, **BETAS, weight_decay=DECAY)),
        (
            *('muon', {'ns_steps': 3}, False),
            optax.contrib.muon(RATE, ns_steps=3, weight_decay=DECAY, adam_weight_decay=DECAY),
        ),
    ],
)
def test_a_configuration_makes_optaxs_chain_with_the_link_at_its_end(name, options, outer, expected):
    """Decay is the optimizer's own, of vectors as of matrices; for SGD it is the L2 penalty of Eq. 11."""
    config = config_of(name, **options)
    config.update({'outer': 'sgd' if outer else ''})
    config.outer_options = OUTER if outer else {}
    outer = optax.sgd(0.3, momentum=0.8, nesterov=True) if outer else None
    link = def_jax.error_feedback(def_jax.random_block(4), None, detach=DETACH, outer=outer)

    def two_steps(optimizer, params):
        state = optimizer.init(params)
        for _ in range(2):
            updates, state = optimizer.update(params, state, params)
        return updates

    params = {'matrix': jnp.ones((4, 6)), 'vector': jnp.ones(6)}
    programs = [
        str(jax.make_jaxpr(functools.partial(two_steps, optimizer))(params))
        for optimizer in (make_optimizer(config, RATE, None), optax.chain(expected, link))
    ]
    assert programs[0] == programs[1]


@pytest.mark.parametrize(('schedule', 'options'), [('cosine', {'final': 0.1}), ('wsd', {'decay': 0.25})])
def test_schedules_rise_stay_in_range_and_fall(schedule, options):
    config = config_of('adamw')
    config.update({'schedule': schedule, 'schedule_options': {'warmup': 0.1, **options}})
    rates = np.asarray(jax.vmap(make_schedule(config, 200))(jnp.arange(200)))
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
