"""What a task gets wrong is said before the run writes anything, in one line."""

import dataclasses
import types

import jax.numpy as jnp
import numpy as np
import pytest

from def_jax.trainer import experiment
from def_jax.trainer.tasks import check as task_check
from def_jax.trainer.tasks.base import Metric
from examples.own_task import config as own_config
from examples.own_task.diabetes import Regression


@pytest.fixture(scope='module')
def built():
    return experiment.build(own_config.get_config())


def changed(built, **methods):
    """The experiment with a task in which some methods are replaced."""
    task = Regression(built.task.model, built.task.num_features)
    for name, value in methods.items():
        method = types.MethodType(value, task) if callable(value) else value
        setattr(task, name, method)
    return dataclasses.replace(built, task=task)


def without_mask(self, variables, batch):
    sums = Regression.test_sums(self, variables, batch | {'mask': jnp.ones_like(batch['mask'])})
    return sums | {'count': batch['mask'].sum()}


def constant_count(self, variables, batch):
    return Regression.test_sums(self, variables, batch) | {'count': jnp.float32(8)}


def no_count(self, variables, batch):
    sums = Regression.test_sums(self, variables, batch)
    return {'loss': sums['loss']}


def vector(self, variables, batch):
    return {'loss': batch['mask'], 'count': batch['mask'].sum()}


def no_params(self, key):
    return {'weights': jnp.zeros(3)}


def wrong_features(self, params, batch_stats, batch, key):
    return Regression.loss(self, params, batch_stats, {**batch, 'features': batch['features'][:, :3]}, key)


def bare_loss(self, params, batch_stats, batch, key):
    return jnp.mean(batch['target'])


def losses(self, params, batch_stats, batch, key):
    return batch['target'], ({}, batch_stats)


def taken(self, params, batch_stats, batch, key):
    return jnp.float32(0), ({'taken': jnp.float32(1)}, batch_stats)


def other_stats(self, params, batch_stats, batch, key):
    return jnp.float32(0), ({}, {'mean': jnp.zeros(3)})


@pytest.mark.parametrize(
    ('methods', 'message'),
    [
        (
            {'test_sums': without_mask},
            r"the sum 'loss' of test_sums ignores batch\['mask'\], so padding would count",
        ),
        ({'test_sums': constant_count}, "the sum 'count' of test_sums ignores"),
        ({'test_sums': no_count}, "test_sums must return a dict with 'loss' and 'count'"),
        ({'test_sums': vector}, r"'loss' of test_sums must be a float \[\], but is float32\[1\]"),
        ({'init': no_params}, "init must return a dict of 'params' and 'batch_stats', which may be {}"),
        ({'loss': wrong_features}, r'loss fails on a training batch of features float32\[8, 10\], target'),
        ({'loss': bare_loss}, r'loss must return \(loss, \(metrics, batch_stats\)\)'),
        ({'loss': losses}, r"'loss' of loss must be a float \[\], but is float32\[8\]"),
        ({'loss': taken}, "metrics of loss must not be called 'loss' or 'taken'"),
        ({'loss': other_stats}, 'loss must return statistics of the shapes that init returns'),
        ({'headline': Metric('r3')}, r"metrics lacks 'r3', the headline metric; it has \['loss', 'r2'\]"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(built, methods, message):
    with pytest.raises(ValueError, match=message) as error:
        task_check.check(changed(built, **methods))
    assert '\n' not in str(error.value) and str(error.value).startswith('config.task=')


@pytest.mark.parametrize(
    'changes',
    [
        {'optimizer': 'adamw', 'momentum': 0.9, 'optimizer_options': {'b1': 'foo'}},
        {'outer': 'sgd', 'outer_options': {'learning_rate': 'foo'}},
    ],
    ids=['optimizer', 'outer'],
)
def test_an_optimizer_that_cannot_make_an_update(changes):
    config = own_config.get_config()
    config.update(changes)
    with pytest.raises(ValueError, match="'foo'} cannot make an update: ") as error:
        task_check.check(experiment.build(config))
    assert '\n' not in str(error.value) and str(error.value).startswith(f'config.{next(iter(changes))}=')


def test_a_task_that_is_right_is_accepted(built):
    task_check.check(built)


def listed(self, key):
    variables = Regression.init(self, key)
    return variables | {'params': [variables['params'], {'mask': jnp.zeros(2)}]}


def loss_of_listed(self, params, *others):
    loss, (metrics, batch_stats) = Regression.loss(self, params[0], *others)
    return loss + params[1]['mask'].sum(), (metrics, batch_stats)


def sums_of_listed(self, variables, batch):
    return Regression.test_sums(self, variables | {'params': variables['params'][0]}, batch)


def test_parameters_in_a_list_one_of_which_is_called_mask(built):
    task_check.check(changed(built, init=listed, loss=loss_of_listed, test_sums=sums_of_listed))


def test_a_split_needs_arrays_of_one_length():
    from def_jax.trainer.data.in_memory import Arrays

    for arrays in ({'a': np.zeros(3), 'b': np.zeros(4)}, {}, {'a': np.zeros(3), 'mask': np.zeros(3)}):
        with pytest.raises(ValueError, match='must have one length, and names other than mask'):
            Arrays(arrays)
