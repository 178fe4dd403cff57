"""What a configuration names is found and called, or refused in one line that says what to do."""

import jax.numpy as jnp
import pytest
import training_fixtures as fixtures
from configuration_values import changed
from trainer.configuration import factories_to_find

from def_jax.trainer.configuration import factories, parts
from def_jax.trainer.configuration.parts import make_optimizer, make_schedule
from def_jax.trainer.configuration.rules import check_config

HERE = 'trainer.configuration.factories_to_find'


def test_what_a_factory_takes_is_passed_and_an_option_comes_first():
    config = {'model': 'fractions:Fraction', 'model_options': {'numerator': 3}}
    assert factories.find('model', config).make(object, numerator=5, denominator=4, unused=5) == 3 / 4


def made_by(name, **changes):
    """An optimizer of factories_to_find.py, which decays nothing."""
    return {'optimizer': f'{HERE}:{name}', 'weight_decay': 0, **changes}


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'optimizer': 'adamww'}, r"config.optimizer='adamww' must be one of sgd, .* Did you mean 'adamw'\?"),
        ({'model': 'nothing.here:net'}, r"cannot be imported \(No module named 'nothing'\). Start"),
        ({'task': f'{HERE}:no_tsk'}, rf"AttributeError: module '{HERE}' has no attribute 'no_tsk'"),
        ({'dataset': f'{HERE}:NUMBER'}, rf"config.dataset='{HERE}:NUMBER' must be callable, but is int 3"),
        (made_by('no_rate'), "no_rate' must take the argument 'learning_rate'; it takes b1"),
        (made_by('no_optimizer'), "no_optimizer' must return optax.*GradientTransformation.*, but"),
        (made_by('failing'), rf"'{HERE}:failing': IndexError: list index out of range, .*find.py:\d+"),
        (made_by('refusing', optimizer_options={'depth': 3}), "options={'depth': 3}: depth=3 must be even"),
        ({'optimizer_options': {'nesterof': True}}, "is no option of optimizer='sgd'; .* mean 'nesterov'"),
        ({'optimizer_options': {'learning_rate': 1.0}}, 'cannot be set: config.learning_rate is passed'),
        ({'optimizer': 'adamw', 'momentum': 0.5}, "no effect on optimizer='adamw'.* Set momentum=0.9"),
        ({'optimizer': 'optax:adam'}, 'weight_decay=0.0005 has no effect on optimizer=.* Set weight'),
        ({'schedule': 'cosine', 'learning_rate_drops': (0.5,)}, "has no effect on schedule='cosine'"),
        ({'model': f'{HERE}:needs_depth', 'compute_dtype': 'bfloat16'}, 'no effect on .*takes no dtype'),
        ({'outer': 'sgd'}, "outer='sgd' with outer_options={}: TypeError: .* missing .*'learning_rate'"),
        ({'outer': 'sgd', 'method': 'diloco'}, "='sgd' has no effect on method='diloco', which fixes it or"),
    ],
)
def test_what_cannot_be_used_is_refused_with_the_configuration(changes, message):
    with fixtures.refused(rf'^(?=config\.).*{message}'):
        check_config(changed(**changes))


def schedule_of(config):
    return make_schedule(config, 100)


def task_of(config):
    return parts.make_task(config, factories_to_find.dataset_without_labels())


UNLABELLED = {'dataset': f'{HERE}:dataset_without_labels'}
UNTYPED = {'model': 'builtins:dict'}


@pytest.mark.parametrize(
    ('make', 'changes', 'message'),
    [
        (parts.make_dataset, {'dataset': f'{HERE}:no_dataset'}, 'must return .*Dataset, but returned Arrays'),
        (parts.make_dataset, {'dataset': 'image_folder'}, "dataset_options={}: .* missing .* 'folder'"),
        (parts.make_dataset, UNLABELLED | {'evaluate_train_examples': 65}, '=65 must be at most 64'),
        (parts.make_dataset, UNLABELLED | {'evaluate_on': 'validation'}, 'validation split.* Hold out tr'),
        (schedule_of, {'schedule': f'{HERE}:no_schedule'}, "returned no schedule.*'NoneType' object is not"),
        (schedule_of, {'schedule': f'{HERE}:schedule_of_vectors'}, 'schedule.*TypeError'),
        (schedule_of, {'schedule': 'wsd', 'schedule_options': {'warmup': 0.9}}, 'add up to more than 1'),
        (schedule_of, {'schedule': 'cosine', 'schedule_options': {'warmup': 20}}, r'=20 must be .* \[0, 1\]'),
        (task_of, UNTYPED, "task='image_classification': its data set must have images with labels"),
        (task_of, UNTYPED | {'task': f'{HERE}:no_task'}, 'must return def_jax.trainer.tasks.base.Task, but'),
    ],
)
def test_what_fails_is_refused_in_one_line(make, changes, message):
    with fixtures.refused(message):
        make(changed(**changes))


def test_an_optimizer_by_path_gets_what_it_takes():
    config = changed(optimizer=f'{HERE}:decayed', weight_decay=0.5, optimizer_options={'scale': 2.0})
    optimizer, params = make_optimizer(config, 0.1, None), {'w': jnp.float32(3.0)}
    updates, _ = optimizer.update({'w': jnp.float32(0)}, optimizer.init(params), params)
    assert updates['w'] == pytest.approx(-0.1 * 2.0 * 0.5 * 3.0)
