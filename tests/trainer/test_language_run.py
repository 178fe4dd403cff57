"""A language model in the trainer: what a run reports; and workers of several devices, with everything on."""

import functools
import math

import jax
import numpy as np
import pytest
import small_stdlib
import training_fixtures as fixtures

from configs import language
from def_jax.trainer import experiment, loop
from def_jax.trainer.checkpointing.checkpoints import Checkpoints
from def_jax.trainer.workers import replicas

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
    for key, value in (TINY | changes | {'dataset_options': options}).items():
        config[key] = value  # options are replaced, not added
    return config


@pytest.fixture(scope='module')
def run(data_dir, tmp_path_factory):
    """A run's folder, its result and what it printed."""
    folder = tmp_path_factory.mktemp('language') / 'run'
    return folder, *fixtures.printed(tiny_config(data_dir), folder)


def test_the_result_has_a_text_that_the_methods_answer_wrote(run, data_dir):
    folder, result, printed = run
    assert ''.join(result['sample'].split()) in ''.join(printed.split())
    of_run = experiment.build(tiny_config(data_dir))
    state = fixtures.restored(folder, of_run)
    points = of_run.steps.outputs(state)
    assert of_run.method.answer == 'x'
    assert of_run.task.sample(jax.device_get(points['x']['params']), jax.random.key(0)) == result['sample']


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
    losses = [r['loss'] for r in records if 'loss' in r and r['step'] > 13 - 5]  # of steps 9-10, 11-12 and 13
    mean = np.average(losses, weights=[2, 2, 1])
    assert (metrics['steps'], metrics['train_loss']) == (13, pytest.approx(mean))
    assert '13 in 1.44 epochs; num_steps is set, so num_epochs has no effect' in printed
    assert 'tokens/s' in printed
    assert 'DEF-Q with AdamW (compression 64' in printed
    train = experiment.build(tiny_config(data_dir)).dataset.train.corpus
    about = {'bytes': len(train), 'documents': len(train.ends), 'sha256': train.checksum}
    assert result['data']['train'] == about and result['data'].keys() >= {'name', 'validation', 'test'}


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'model_options': {'vocab_size': 100}}, 'task=.*vocab_size=100 of the model must be at least 256'),
        ({'model_options': {'context': 8}}, 'task=.*context=16 of the data set must be at most 8'),
        ({'dataset_options': {'context': 10**6}}, 'batch_size=4 must be between 1 and num_examples=1:'),
        ({'recalibrate_batches': 2}, 'recalibrate_batches=2 needs BatchNorm statistics'),
        (
            {'shards_per_worker': 3, 'num_workers': 1, 'batch_size': 3},
            'shards_per_worker=3 divides no dimension',
        ),
    ],
)
def test_parts_that_do_not_fit_are_refused_in_one_line(data_dir, tmp_path, changes, message):
    with fixtures.refused(rf'^config\..*{message}'):
        fixtures.train(tiny_config(data_dir, **changes), tmp_path / 'run')
    assert not (tmp_path / 'run').exists()


def sharded(data_dir, shards=2, **changes):
    """Momentum SGD, since Adam's first steps turn the rounding of small gradients into signs."""
    usual = {'optimizer': 'sgd', 'optimizer_options': {}, 'learning_rate': 0.1, 'schedule': 'drops'}
    return tiny_config(data_dir, shards_per_worker=shards, **(usual | changes))


def trained(config, number=3):
    """An experiment, its state after some steps, and the losses."""
    run = experiment.build(config)
    state, train_step, losses = run.steps.init(), run.steps.train, []
    for _, batch in zip(range(number), run.train_batches(0), strict=False):
        state, metrics = train_step(state, run.workers.place(batch))
        losses.append(np.asarray(jax.block_until_ready(metrics)['loss']))
    return run, state, np.array(losses)


def assert_alike(parts, whole):
    """Two configurations train alike; the experiment of the first, and its state."""
    run, state, losses = trained(parts)
    _, expected, expected_losses = trained(whole)
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    jax.tree.map(close, jax.device_get(state), jax.device_get(expected))
    return run, state


def test_the_trajectory_is_that_of_whole_workers(data_dir):
    """Blocks are cut from shards, so that is so where all is sent."""
    parts, whole = (sharded(data_dir, shards, ratio=1, bits=32) for shards in (2, 1))
    run, state = assert_alike(parts, whole)
    kernel = state.params['block_0']['mlp_input']['kernel']
    assert kernel.addressable_shards[0].data.shape == (8, 16) and kernel.shape == (8, 32)
    residual = fixtures.residual(state)['block_0']['mlp_input']['kernel']
    assert residual.addressable_shards[0].data.shape == (1, 8, 16) and residual.shape == (2, 8, 32)
    assert len(run.workers.devices) == 4


@pytest.mark.slow
def test_batch_normalisation_is_over_the_whole_worker(tmp_path_factory):
    with fixtures.tiny_network(tmp_path_factory) as folder:
        assert_alike(*(fixtures.tiny_config(folder, shards_per_worker=n, ratio=1) for n in (2, 1)))


@pytest.fixture(scope='module')
def full_run(data_dir, tmp_path_factory):
    """A run with everything on: its configuration, folder, result and what it printed."""
    config, folder = full_config(data_dir), tmp_path_factory.mktemp('sharded') / 'run'
    return config, folder, *fixtures.printed(config, folder)


def full_config(data_dir, **changes):
    """The settings of configs/language.py, AdamW among them, with 2 workers of 2 devices."""
    workers = {'shards_per_worker': 2, 'batch_size': 8, 'detach': 'auto'}
    more = {'check_replicas_every': 4, 'diagnostics_every': 5, 'evaluate_train_examples': 3}
    return tiny_config(data_dir, **(workers | more | changes))


@pytest.mark.slow
def test_a_run_reports_what_others_do(full_run):
    _, folder, result, printed = full_run
    assert result['environment']['num_devices'] == 4
    assert '2 of 2 devices each on 4' in printed and result['sample']
    for point in ('x', 'y'):
        assert result['metrics'][f'test_loss_{point}'] > 0 and f'train_loss_{point}' in result['metrics']
    assert [record['step'] for record in result['diagnostics']] == [0, 5, 10]
    assert all(record['detach_optimum_own_std'] >= 0 for record in result['diagnostics'])
    assert (folder / 'diagnostics.png').exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ('changes', 'note'),
    [
        ({'shards_per_worker': 1, 'workers_per_device': 2}, 'the same 2, now as 1 x 2 devices x virtual'),
        ({'num_workers': 4}, 'workers: 2 before, 4 now; each receives the mean'),
    ],
    ids=str,
)
def test_other_workers_take_over_the_state(full_run, data_dir, changes, note):
    """The same workers on other devices keep it bit for bit; others get the mean of the old ones."""
    config, folder, _, _ = full_run
    before = jax.device_get(fixtures.restored(folder, experiment.build(config)))
    other = experiment.build(full_config(data_dir, **changes))
    manager = Checkpoints(folder, other)
    after = jax.device_get(manager.restore(other.steps.init()))
    manager.close()
    assert any(note in line for line in manager.notes)
    fixtures.assert_same_bits(after.params, before.params)
    if 'num_workers' not in changes:
        # Virtual workers have two axes.
        fixtures.assert_same_bits(*(jax.tree.map(np.ravel, state) for state in (after, before)))


@pytest.mark.slow
def test_a_device_that_differs_is_found(data_dir):
    """A kernel is sharded inside each worker, a scale lies whole on each device."""
    run, state, _ = trained(sharded(data_dir, num_workers=4, batch_size=8), 1)
    check = functools.partial(replicas.check, run.workers, run.is_per_worker)
    check(state, 1)

    def corrupted(leaf, path, x):
        if not jax.tree_util.keystr(path, simple=True, separator='.').endswith(leaf):
            return x
        return fixtures.with_changed_copy(x, 3, lambda copy: copy + 1)

    for leaf in ('mlp_input.kernel', 'mlp_norm.scale'):
        bad = jax.tree_util.tree_map_with_path(functools.partial(corrupted, leaf), state.params)
        with pytest.raises(loop.ReplicasDifferError, match=rf'{leaf}: device\(s\) 3 differ'):
            check(state.replace(params=bad), 1)


@pytest.mark.slow
def test_one_worker_of_several_devices_is_evaluated_and_saved(data_dir, tmp_path):
    """An axis of one worker is manual, too, and so are the means over it."""
    config = full_config(data_dir, num_workers=1, shards_per_worker=4, diagnostics_every=0)
    result = fixtures.train(config, tmp_path / 'run')
    assert result['environment']['num_devices'] == 4 and result['metrics']['test_loss_y'] > 0
    fixtures.restored(tmp_path / 'run', experiment.build(config))
