"""What a configuration names is found and called, or refused in one line that says what to do."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import training_fixtures as fixtures
from configuration_values import changed
from trainer.configuration import factories_to_find

import def_jax
from def_jax import presets
from def_jax.baselines import METHODS
from def_jax.trainer import experiment
from def_jax.trainer.configuration import parts
from def_jax.trainer.configuration.parts import complete, make_optimizer
from def_jax.trainer.configuration.rules import check_config

HERE = 'trainer.configuration.factories_to_find'


def test_a_models_own_options_come_before_those_of_the_data_set():
    config = changed(model=f'{HERE}:any_model', model_options={'num_classes': 3}, compute_dtype='bfloat16')
    made = parts.make_model(config, {'num_classes': 10, 'vocab_size': 7})
    assert made == {'num_classes': 3, 'vocab_size': 7, 'dtype': jnp.bfloat16}


def dataset_with(monkeypatch, **model_options):
    made = dataclasses.replace(factories_to_find.dataset_without_labels(), model_options=model_options)
    monkeypatch.setattr(factories_to_find, 'dataset_without_labels', lambda: made)
    return parts.make_dataset(changed(**UNLABELLED))


def test_numpys_scalars_in_the_options_of_a_data_set_are_pythons(monkeypatch):
    given = {'grey': np.False_, 'sizes': [np.int64(3)], 'scale': np.float32(0.5), 'name': None}
    made = dict(dataset_with(monkeypatch, **given).model_options)
    assert repr(made) == "{'grey': False, 'sizes': [3], 'scale': 0.5, 'name': None}"


@pytest.mark.parametrize(
    'value', [jnp.tanh, np.ones(3), jnp.ones(3), (8, 8), {1: 2}, jnp.bfloat16, 1j, np.nan, np.complex64(1)]
)
def test_what_load_would_not_give_back_equal_is_refused(monkeypatch, value):
    message = r"dataset=.*: model_options\['activation'\]=.* must be a number, text, .* def_jax.trainer.load"
    with fixtures.refused(message):
        dataset_with(monkeypatch, activation=value)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'optimizer': 'adamww'}, r"config.optimizer='adamww' must be one of sgd, .* Did you mean 'adamw'\?"),
        (
            {'model': 'nothing.here:net'},
            r"='nothing.here:net' cannot be used; start .*: No module named 'noth",
        ),
        ({'task': f'{HERE}:no_tsk'}, rf"AttributeError: module '{HERE}' has no attribute 'no_tsk'"),
        ({'dataset': f'{HERE}:NUMBER'}, rf"config.dataset='{HERE}:NUMBER' cannot be .* 3 is not a callable"),
        ({'optimizer': f'{HERE}:no_rate'}, "got an unexpected keyword argument 'learning_rate'"),
        ({'optimizer': f'{HERE}:no_optimizer'}, 'must return optax.*GradientTransformation.*, but'),
        ({'optimizer': f'{HERE}:failing'}, r'IndexError: list index out of range, .*find.py:\d+'),
        (
            {'optimizer': f'{HERE}:refusing', 'optimizer_options': {'depth': 3}},
            "options={'depth': 3}: depth=3 must be even",
        ),
        (
            {'optimizer_options': {'nesterof': True}},
            "='sgd' with .*: TypeError: .* got an unexpected keyword argument 'nesterof'",
        ),
        ({'optimizer_options': {'learning_rate': 1.0}}, 'cannot be set: it is passed, see config.lea'),
        ({'optimizer': 'adamw', 'momentum': 0.5}, "no effect on optimizer='adamw'.* Set momentum=0.9"),
        ({'optimizer': 'optax:adam', 'weight_decay': 0.1}, 'weight_decay=0.1 has no effect .* Set weight'),
        ({'schedule': 'cosine', 'learning_rate_drops': (0.5,)}, "has no effect on schedule='cosine'"),
        ({'method': f'{HERE}:needs_bits'}, "missing 1 required positional argument: 'bits'"),
        ({'method': f'{HERE}:average', 'bits': 2}, 'bits=2 has no effect, since average does not use it'),
        ({'outer': 'sgd'}, "outer='sgd' with outer_options={}: TypeError: .* missing .*'learning_rate'"),
    ],
)
def test_what_cannot_be_used_is_refused_with_the_configuration(changes, message):
    with fixtures.refused(rf'^(?=config\.).*{message}'):
        check_config(changed(**{'weight_decay': 0} | changes))


def schedule_of(config):
    return parts.make_schedule(config, num_steps=100)


def task_of(config):
    return parts.make_task(config, factories_to_find.dataset_without_labels())


UNLABELLED = {'dataset': f'{HERE}:dataset_without_labels'}
UNTYPED = {'model': f'{HERE}:any_model'}


@pytest.mark.parametrize(
    ('make', 'changes', 'message'),
    [
        (parts.make_dataset, {'dataset': f'{HERE}:no_dataset'}, 'must return .*Dataset, but returned Arrays'),
        (parts.make_dataset, {'dataset': f'{HERE}:no_dataset', 'data_dir': '/d'}, "argument 'data_dir'"),
        (task_of, {'model': f'{HERE}:needs_depth', 'compute_dtype': 'bfloat16'}, "argument 'dtype'"),
        (parts.make_dataset, {'dataset': 'image_folder'}, "dataset_options={}: .* missing .* 'folder'"),
        (parts.make_dataset, UNLABELLED | {'evaluate_train_examples': 65}, '=65 must be at most 64'),
        (parts.make_dataset, UNLABELLED | {'evaluate_on': 'validation'}, 'validation split.* Hold out tr'),
        (schedule_of, {'schedule': f'{HERE}:no_schedule'}, "no_schedule' must return .*Callable, but retur"),
        (schedule_of, {'schedule': 'wsd', 'schedule_options': {'warmup': 0.9}}, 'add up to more than 1'),
        (schedule_of, {'schedule': 'cosine', 'schedule_options': {'warmup': 20}}, r'=20 must be .* \[0, 1\]'),
        (task_of, UNTYPED, "task='image_classification' .*: its data set must have images with labels"),
        (task_of, UNTYPED | {'task': f'{HERE}:no_task'}, 'must return def_jax.trainer.tasks.base.Task, but'),
    ],
)
def test_what_fails_is_refused_in_one_line(make, changes, message):
    with fixtures.refused(message):
        make(changed(**changes))


def test_an_optimizer_by_path_gets_its_options():
    options = {'weight_decay': 0.5, 'momentum': 0.9, 'scale': 2.0}
    config = changed(optimizer=f'{HERE}:decayed', weight_decay=0, optimizer_options=options)
    optimizer, params = make_optimizer(config, 0.1, None), {'w': jnp.float32(3.0)}
    updates, _ = optimizer.update({'w': jnp.float32(0)}, optimizer.init(params), params)
    assert updates['w'] == pytest.approx(-0.1 * 2.0 * 0.5 * 3.0)


# --- Optimizers: optax's, with its decay and the link; schedules ---

RATE, DECAY, DETACH = 0.05, 0.3, 0.4


OUTER = {'learning_rate': 0.3, 'momentum': 0.8, 'nesterov': True}
BETAS = {'b1': 0.8, 'b2': 0.95}
MUON = {'ns_steps': 3}


@pytest.mark.parametrize(
    ('name', 'options', 'outer', 'expected'),
    [
        ('sgd', {}, False, optax.chain(optax.add_decayed_weights(DECAY), optax.sgd(RATE, 0.9))),
        ('adamw', BETAS, False, optax.adamw(RATE, **BETAS, weight_decay=DECAY)),
        ('lion', BETAS, True, optax.lion(RATE, **BETAS, weight_decay=DECAY)),
        ('muon', MUON, False, optax.contrib.muon(RATE, **MUON, weight_decay=DECAY, adam_weight_decay=DECAY)),
    ],
)
def test_a_configuration_makes_optaxs_chain_with_the_link_at_its_end(name, options, outer, expected):
    """Decay is the optimizer's own, of vectors as of matrices; for SGD it is the L2 penalty of Eq. 11."""
    changes = {'outer': 'sgd', 'outer_options': OUTER} if outer else {}
    changes |= {'weight_decay': DECAY, 'ratio': 4, 'detach': DETACH}
    config = changed(optimizer=name, optimizer_options=options, **changes)
    outer = optax.sgd(**OUTER) if outer else None
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
        (def_jax.def_sgd, {'ratio': 256}, {'bits': 1}),
        (def_jax.def_adamw, {'ratio': 256, 'bits': 2}, {'bits': 2}),
    ],
    ids=['sgd', 'sgd options', 'adamw', 'adamw options', '1 bit at 256', '2 bits at 256'],
)
def test_def_q_is_the_preset_in_bytes_at_the_rate_that_the_user_has(preset, changes, options):
    changes |= {'optimizer': 'adamw'} if preset is def_jax.def_adamw else {}
    assert {'bits': 2, 'detach': 'auto'}.items() <= METHODS['def_q'].options.items()  # anywhere
    config = changed(method='def_q', weight_decay=DECAY, **changes)
    expected = preset(RATE, changes.get('ratio', 64), 'workers', weight_decay=DECAY, **options)
    assert complete(complete(config)).to_dict() == complete(config).to_dict()
    assert_same_updates(expected, make_optimizer(config, RATE, 'workers'))


@pytest.mark.parametrize('make', [def_jax.def_sgd, def_jax.def_adamw])
def test_the_presets_pass_their_options_on(monkeypatch, make):
    given = {}
    for name in ('error_feedback', 'random_block'):
        monkeypatch.setattr(presets, name, lambda *_, **options: given.update(options))
    options = {'bits': 4, 'seed': 3, 'detach': 0.5, 'skip_nonfinite': True, 'overlap': True}
    options |= {'order': 'cyclic', 'allocation': 'proportional'}
    make(0.1, 64, 'workers', **options)
    assert options.items() <= given.items()


def test_a_run_refuses_a_configuration_as_check_config_does():
    for changes in ({'batch_size': 100}, {'every': None, 'num_workers': 1}):
        with fixtures.refused(f'^config.{next(iter(changes))}='):
            experiment.build(changed(**changes))


def test_what_a_run_completes_is_not_set_in_the_users_configuration():
    config = changed()
    assert complete(config).bits == 32 and config.bits is None
    config.method = 'def_q'  # for the next run, whose method chooses again
    assert complete(config).bits == 2


def test_schedules_begin_without_a_warm_up_at_their_peak_and_end_where_they_are_told():
    """In between, see their examples."""
    for schedule, final in itertools.product(('cosine', 'wsd'), (0.0, 0.2)):
        changes = {'schedule': schedule, 'schedule_options': {'warmup': 0.0, 'final': final}}
        rate = schedule_of(changed(learning_rate=RATE, **changes))
        assert float(rate(0)) == pytest.approx(RATE)
        assert float(rate(100)) == pytest.approx(final * RATE, abs=1e-8)


@pytest.mark.parametrize(
    ('num_steps', 'drops', 'scales'),
    [
        (100, (0.5, 0.504), [1] * 50 + [0.01] * 50),  # both after 50 steps
        (4, (0.5, 0.75), [1, 1, 0.1, 0.01]),
        (3, (0.5, 0.75), [1, 1, 0.01]),
        (2, (0.5, 0.75), [1, 0.1]),
        (1, (0.5, 0.75), [1]),
        (4, (), [1] * 4),
    ],
)
def test_drops_on_one_step_multiply_and_none_comes_before_the_first(num_steps, drops, scales):
    config = changed(learning_rate=RATE, learning_rate_drops=drops)
    rate = parts.make_schedule(config, num_steps=num_steps)
    found = [float(rate(step)) / RATE for step in range(num_steps)]
    assert found == pytest.approx(scales)
