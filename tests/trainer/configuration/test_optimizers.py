"""Optimizers of a configuration: optax's, with its decay and the link; schedules."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from configuration_values import changed

import def_jax
from def_jax.trainer.configuration.parts import complete, make_optimizer, make_schedule

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
    blocks = def_jax.random_block(4)
    assert_same_updates(
        make_optimizer(config, RATE, 'workers'),
        def_jax.error_feedback(blocks, 'workers', inner=expected, detach=DETACH, outer=outer),
    )


def assert_same_updates(*optimizers):
    """Three steps of four workers are the same, bit for bit."""
    params = {'matrix': jnp.ones((4, 6)), 'vector': jnp.ones(6)}

    def three_steps(optimizer, scale, state):
        grads = jax.tree.map(lambda x: scale * jnp.cos(jnp.arange(x.size)).reshape(x.shape), params)

        def step(state, _):
            update, state = optimizer.update(grads, state, params)
            return state, update

        return jax.lax.scan(step, state, length=3)[1]

    found = [
        jax.jit(jax.vmap(functools.partial(three_steps, optimizer), axis_name='workers'))(
            jnp.arange(1.0, 5.0), jax.tree.map(lambda x: jnp.stack([x] * 4), optimizer.init(params))
        )
        for optimizer in optimizers
    ]
    for other in found[1:]:
        jax.tree.map(np.testing.assert_array_equal, found[0], other)


@pytest.mark.parametrize(
    ('preset', 'changes', 'options'),
    [
        (def_jax.def_sgd, {'momentum': 0.8}, {'momentum': 0.8}),
        (def_jax.def_sgd, given := {'bits': 4, 'detach': 0.1, 'skip_nonfinite': True}, given),
        (def_jax.def_adamw, {}, {}),
        (def_jax.def_adamw, {'optimizer_options': {'b2': 0.9}, 'bits': 1}, {'b2': 0.9, 'bits': 1}),
    ],
    ids=['sgd', 'sgd options', 'adamw', 'adamw options'],
)
def test_def_q_is_the_preset_in_bytes_at_the_rate_that_the_user_has(preset, changes, options):
    changes |= {'optimizer': 'adamw'} if preset is def_jax.def_adamw else {}
    config = changed(method='def_q', weight_decay=DECAY, **changes)
    expected = preset(RATE, 64, 'workers', weight_decay=DECAY, **options)
    made = (make_optimizer(each, RATE, 'workers') for each in (config, complete(config)))
    assert_same_updates(expected, *made)


def test_schedules_warm_up_as_optaxs_and_fall():
    """The steps of a run of 200, of which 20 are the warm-up, and one that has none."""
    config = config_of('adamw')

    def rates(schedule, **options):
        config.schedule, config.schedule_options = schedule, options
        return np.asarray(jax.vmap(make_schedule(config, 200))(jnp.arange(201)))

    cosine = optax.warmup_cosine_decay_schedule(0.0, RATE, 20, 200, 0.1 * RATE)
    np.testing.assert_allclose(
        rates('cosine', warmup=0.1, final=0.1), jax.vmap(cosine)(jnp.arange(201)), 1e-5
    )
    wsd = [RATE * min(step / 20, 1, 0.2 + 0.8 * (200 - step) / 50) for step in range(201)]
    np.testing.assert_allclose(rates('wsd', warmup=0.1, decay=0.25, final=0.2), wsd, 1e-5)
    for schedule in ('cosine', 'wsd'):
        plain = rates(schedule, warmup=0.0)
        assert plain[0] == pytest.approx(RATE) and plain[200] == pytest.approx(0, abs=1e-8)
