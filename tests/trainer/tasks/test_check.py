"""What a task gets wrong is said before the run writes anything, in one line."""

import dataclasses
import types

import jax.numpy as jnp
import numpy as np
import pytest
import training_fixtures as fixtures

from def_jax.trainer import experiment
from def_jax.trainer.data.in_memory import Arrays
from def_jax.trainer.tasks import check as task_check
from def_jax.trainer.tasks.base import Metric
from examples.own_task import config as own_config
from examples.own_task.diabetes import Regression


@pytest.fixture(scope='module')
def built():
    return experiment.build(own_config.get_config())


def sums(change):
    """A method that changes the sums of a batch."""
    return lambda self, variables, batch: change(Regression.test_sums(self, variables, batch), batch)


def loss(make):
    """A method that returns what `make` makes of the statistics and the batch."""
    return lambda self, params, batch_stats, batch, key: make(batch_stats, batch)


def params(tree):
    """A method that returns these parameters."""
    return lambda self, key: {'params': tree, 'batch_stats': {}}


ZERO = jnp.float32(0)
WRONG = [
    ({'test_sums': sums(lambda s, b: s | {'loss': b['target'].sum()})}, r"ignores batch\['mask'\], so pad"),
    ({'test_sums': sums(lambda s, b: {'loss': s['loss']})}, "must return a dict with 'loss' and 'count'"),
    ({'test_sums': sums(lambda s, b: s | {'loss': b['mask']})}, r'a float \[\], but is float32\[\d+\]'),
    ({'init': lambda self, key: {'weights': jnp.zeros(3)}}, "a dict of 'params' and 'batch_stats'"),
    (
        {'init': params([jnp.ones(1)])},
        r"init returns a list as 'params'; make it a dict of arrays or of such",
    ),
    ({'init': params({'a': (jnp.ones(1),)})}, "init returns a tuple as 'params/a'; make it a dict of arrays"),
    ({'init': params({'a': jnp.ones(1), 'b': None})}, "init returns None as 'params/b'; make it a dict of"),
    ({'init': params({'a': jnp.ones(1), 'b': {}})}, "init returns an empty dict as 'params/b'; make it"),
    ({'init': params({'a': {0: jnp.ones(1)}})}, "init returns the key 0 in 'params/a'; .* not be loaded"),
    ({'loss': loss(lambda s, b: b['features'] @ jnp.zeros(3))}, r'fails on a .* features float32\[8, 10\]'),
    ({'loss': loss(lambda s, b: b['target'].mean())}, r'loss must return \(loss, \(metrics, batch_stats\)\)'),
    ({'loss': loss(lambda s, b: (b['target'], ({}, s)))}, r'must be a float \[\], but is float32\[8\]'),
    ({'loss': loss(lambda s, b: (ZERO, ({'taken': ZERO}, s)))}, "must not be called 'taken'"),
    ({'loss': loss(lambda s, b: (ZERO, ({'step': ZERO}, s)))}, "must not be called 'step', as the records"),
    ({'metrics': lambda self, sums: {'r2': sums['r']}}, 'metrics fails on sums of one: KeyError: r, '),
    ({'loss': loss(lambda s, b: (ZERO, ({}, {'mean': ZERO})))}, 'of the shapes that init returns'),
    ({'headline': Metric('r3')}, r"metrics lacks 'r3', the headline metric; it has \['loss', 'r2'\]"),
]


@pytest.mark.parametrize(('methods', 'message'), WRONG, ids=[message for _, message in WRONG])
def test_what_is_wrong_is_said_in_one_line(built, methods, message):
    task = Regression(built.task.model, built.task.num_features)
    for name, value in methods.items():
        setattr(task, name, types.MethodType(value, task) if callable(value) else value)
    with fixtures.refused(f'^config.task=.*{message}'):
        task_check.check(dataclasses.replace(built, task=task))


@pytest.mark.parametrize(
    ('key', 'changes'),
    [
        ('optimizer', {'optimizer': 'adamw', 'optimizer_options': {'b1': 'foo'}}),
        ('outer', {'outer': 'sgd', 'outer_options': {'learning_rate': 'foo'}}),
        ('optimizer', {'schedule': 'trainer.configuration.factories_to_find:schedule_of_vectors'}),
    ],
    ids=['optimizer', 'outer', 'schedule'],
)
def test_an_optimizer_that_cannot_make_an_update(key, changes):
    config = own_config.get_config()
    config.update(changes)
    with fixtures.refused(f'^config.{key}=.* cannot make an update: TypeError: '):
        task_check.check(experiment.build(config))


def test_a_split_needs_arrays_of_one_length():
    lengths = {'a': 3, 'b': 4}, {}, {'a': 3, 'mask': 3}, {'a': 0}
    for arrays in ({name: np.zeros(length) for name, length in each.items()} for each in lengths):
        with pytest.raises(ValueError, match='must have one length, not 0, and names other than mask'):
            Arrays(arrays)
