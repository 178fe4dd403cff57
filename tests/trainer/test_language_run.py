"""A language model in the trainer: what a run reports, and that one that was killed ends where others do."""

import io
import math

import jax
import numpy as np
import pytest
import rich.console
import small_stdlib
import training_fixtures as fixtures

from configs import language
from def_jax.trainer import experiment

TINY = {
    'num_workers': 2,
    'model_options': {'num_layers': 1, 'width': 8, 'num_heads': 2, 'context': 16},
    'test_examples': 0,
    'batch_size': 4,
    'num_steps': 13,  # the data have 9 steps an epoch
    'eval_every_steps': 5,
    'log_every_steps': 4,
}


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
    return small_stdlib.written(tmp_path_factory.getbasetemp())


def tiny_config(data_dir, **changes):
    config = language.get_config()
    options = {'context': 16, 'folder': str(data_dir)} | changes.get('dataset_options', {})
    with config.unlocked():
        for key, value in (TINY | changes | {'dataset_options': options}).items():
            config[key] = value  # options are replaced, not added
    return config


@pytest.fixture(scope='module')
def run(data_dir, tmp_path_factory):
    """A run's folder, its result and what it printed."""
    folder, printed = tmp_path_factory.mktemp('language') / 'run', io.StringIO()
    console = rich.console.Console(file=printed, width=200)
    result = fixtures.train(tiny_config(data_dir), folder, console)
    return folder, result, printed.getvalue()


def test_the_result_has_a_text_that_y_wrote(run, data_dir):
    folder, result, printed = run
    assert ''.join(result['sample'].split()) in ''.join(printed.split())
    of_run = experiment.build(tiny_config(data_dir))
    state = fixtures.restored(folder, of_run)
    points, _ = of_run.steps.outputs(state)
    assert of_run.task.sample(jax.device_get(points['y']['params']), jax.random.key(0)) == result['sample']


def test_what_a_run_reports_of_its_text(run, data_dir):
    """x and y are judged by nats, bits and perplexity per byte; lengths are steps, and speed is in tokens."""
    folder, result, printed = run
    metrics, records = result['metrics'], fixtures.records(folder)
    for point in ('x', 'y'):
        loss = metrics[f'test_loss_{point}']
        assert 3 < loss < math.log(256) + 1
        assert metrics[f'test_bits_per_byte_{point}'] == pytest.approx(loss / math.log(2))
        assert metrics[f'test_perplexity_{point}'] == pytest.approx(math.exp(loss))
    assert not any('accuracy' in name for name in metrics) and result['measure']['metric'] == 'loss'
    assert [r['step'] for r in records if 'test_loss_x' in r] == [5, 10, 13]
    losses = [r['loss'] for r in records if 'loss' in r and r['step'] > 13 - 5]
    assert (metrics['steps'], metrics['train_loss']) == (13, pytest.approx(np.mean(losses)))
    assert '13 in 1.44 epochs' in printed and 'tokens/s' in printed and 'DEF with AdamW (ratio 16' in printed
    train = experiment.build(tiny_config(data_dir)).dataset.train.corpus
    about = {'bytes': len(train), 'documents': len(train.ends), 'sha256': train.checksum}
    assert result['data']['train'] == about and result['data'].keys() >= {'name', 'validation', 'test'}


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'model_options': {'vocab_size': 100}}, 'task=.*vocab_size=100 of the model must be at least 256'),
        ({'model_options': {'context': 8}}, 'task=.*context=16 of the data set must be at most 8'),
        ({'dataset_options': {'context': 10**6}}, 'batch_size=4 must be between 1 and num_examples=1:'),
    ],
)
def test_parts_that_do_not_fit_are_refused_in_one_line(data_dir, tmp_path, changes, message):
    with fixtures.refused(rf'^config\..*{message}'):
        fixtures.train(tiny_config(data_dir, **changes), tmp_path / 'run')
    assert not (tmp_path / 'run').exists()
