"""A task, a model and a data set that are not the library's own, trained without touching it."""

import jax
import numpy as np
import pytest
import sklearn.metrics
import training_fixtures as fixtures

from def_jax.trainer import experiment, metrics
from examples.own_task import config as own_config


def config_of(**changes):
    config = own_config.get_config()
    config.update({'num_epochs': 4, 'eval_every_epochs': 1} | changes)
    return config


ADAMW = {'optimizer': 'adamw', 'optimizer_options': {'b2': 0.95}, 'schedule': 'cosine', 'learning_rate': 0.01}


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """An uninterrupted run, and what it printed."""
    folder = tmp_path_factory.mktemp('own_task') / 'run'
    config = config_of(**ADAMW, diagnostics_every=20, evaluate_train_examples=100)
    return folder, config, *fixtures.printed(config, folder)


def test_what_is_reported_is_the_tasks(run):
    folder, _, result, printed = run
    assert result['measure'] == {'split': 'test', 'metric': 'r2'}
    keys = {key for record in metrics.read(folder / 'metrics.jsonl') for key in record}
    assert {'test_r2_x', 'test_r2_y', 'test_loss_x', 'train_r2_y', 'mean_absolute_error'} <= keys
    assert {'patients_per_second', 'variance', 'distance'} <= keys
    assert not [key for key in keys if 'accuracy' in key or 'images' in key]
    for words in ('test r2', 'test loss', 'patients/s', '354 training and 88 test and 100 train examples'):
        assert words in printed
    assert 'accuracy' not in printed and 'BatchNorm' not in printed
    for name in ('curves.png', 'diagnostics.png'):
        assert (folder / name).stat().st_size > 10_000


def test_the_metric_is_that_of_scikit_learn_on_every_example(run):
    folder, config, result, _ = run
    built = experiment.build(config)
    state = fixtures.restored(folder, built)
    params = jax.tree.map(lambda leaf: np.asarray(leaf), state.params)
    for name, split in (('test', built.dataset.test), ('train', built.dataset.train.part(0, 100))):
        predicted = built.task.model.apply({'params': params}, split.arrays['features'])
        expected = sklearn.metrics.r2_score(split.arrays['target'], predicted)
        assert result['metrics'][f'{name}_r2_x'] == pytest.approx(expected, abs=1e-5)
