"""The trainer on a tiny configuration: files, methods, divergence, virtual workers."""

import itertools
import json
import re
import shutil
import subprocess
from pathlib import Path
from unittest import mock

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import training_fixtures as fixtures

import def_jax
from def_jax.baselines import METHODS
from def_jax.trainer import experiment, loop, metrics, results, window
from def_jax.trainer.checkpointing import workdir
from def_jax.trainer.checkpointing.checkpoints import Checkpoints
from def_jax.trainer.data import in_memory

HERE = 'trainer.configuration.factories_to_find'

# --- The files of a run ---


def test_a_run_leaves_these_files_and_no_others(recorded):
    files = {'config.json', 'curves.png', 'lock', 'metrics.jsonl', 'result.json'}
    files |= {'x.safetensors', 'y.safetensors'}
    assert {path.name for path in recorded.folder.iterdir()} == files | {'checkpoints', 'tensorboard'}
    assert {path.name for path in (recorded.folder / 'checkpoints').iterdir()} == {'15', '20'}
    config = json.loads((recorded.folder / 'config.json').read_text())
    assert config == json.loads(recorded.experiment.config.to_json())


def test_metrics_are_recorded_when_due(recorded):
    records = fixtures.records(recorded.folder)
    losses, begin = np.stack(recorded.losses), 0
    training, tests = ([r for r in records if name in r] for name in ('loss', 'test_accuracy_x'))
    assert [r['step'] for r in training] == [3, 5, 6, 9, 10, 12, 15, 18, 20]
    for record in training:  # the mean since the last
        assert record['loss'] == pytest.approx(losses[begin : record['step']].mean(), rel=1e-6)
        begin = record['step']
    assert [r['step'] for r in tests] == [5, 10, 15, 20]
    points = {'test_accuracy_x', 'test_accuracy_y', 'test_loss_x', 'test_loss_y'}
    assert all(r.keys() == {'step', 'epoch', 'megabytes_sent'} | points for r in tests)
    for record in records:
        assert record['epoch'] == record['step'] / fixtures.STEPS_PER_EPOCH
        assert record['megabytes_sent'] == pytest.approx(record['step'] * 4 * fixtures.MESSAGE_SIZE / 1e6)


def test_result_says_what_was_run_and_what_came_out(recorded):
    result, records = recorded.result, fixtures.records(recorded.folder)
    assert result == json.loads((recorded.folder / 'result.json').read_text())
    assert (result['status'], result['diverged']) == ('finished', None)
    assert all(word in result['title'] for word in ('DEF', 'ratio 8', 'vgg_digits', 'digits', '4 workers'))
    assert result['config'] == json.loads(recorded.experiment.config.to_json())
    for name in ('test_accuracy_x', 'test_accuracy_y', 'test_loss_x', 'test_loss_y'):
        assert result['metrics'][name] == records[-1][name]
    assert result['metrics']['steps'] == fixtures.NUM_STEPS
    assert result['metrics']['seconds'] > 0
    assert [point['step'] for point in result['curve']] == [5, 10, 15, 20]
    for point, before in zip(result['curve'], (0, 5, 10, 15), strict=True):
        losses = {
            r['step']: r['loss'] for r in records if 'loss' in r and before < r['step'] <= point['step']
        }
        mean = np.average([*losses.values()], weights=np.diff([before, *losses]))  # of all steps
        assert point['train_loss'] == pytest.approx(mean)
        test = next(r for r in records if 'test_loss_y' in r and r['step'] == point['step'])
        assert test.items() <= point.items() and point['seconds'] > 0
    assert result['metrics']['train_loss'] == result['curve'][-1]['train_loss']  # of the last epoch


def test_result_says_what_was_sent_and_with_what_it_was_made(recorded):
    whole, message = fixtures.NUM_PARAMS, fixtures.MESSAGE_SIZE
    assert recorded.result['communication'] == pytest.approx(
        {
            'num_params': whole,
            'message_size': message,
            'true_ratio': whole / message,
            'visits_per_block': fixtures.NUM_STEPS * message / whole,
            'bytes_per_step': 4 * message,
            'dense_bytes_per_step': 4 * whole,
            'megabytes_sent': fixtures.NUM_STEPS * 4 * message / 1e6,
            'megabytes_dense': fixtures.NUM_STEPS * 4 * whole / 1e6,
        }
    )
    environment = recorded.result['environment']
    assert environment['def_jax'] == def_jax.__version__
    assert environment['packages']['jax'] == jax.__version__
    assert environment['packages']['numpy'] == np.__version__
    assert environment['num_devices'] == fixtures.NUM_WORKERS
    if (Path(def_jax.__file__).parents[1] / '.git').exists():
        assert re.fullmatch(r'[0-9a-f]{40}\+?', environment['commit'])


def test_the_commit_of_a_repository_that_the_library_is_only_installed_in_is_not_recorded(
    recorded, tmp_path, monkeypatch
):
    git = ['git', '-C', str(tmp_path), '-c', 'user.name=a', '-c', 'user.email=a@b']
    for arguments in (['init', '-q'], ['commit', '-q', '--allow-empty', '-m', 'theirs']):
        subprocess.run([*git, *arguments], check=True)
    (tmp_path / '__init__.py').touch()
    monkeypatch.setattr(def_jax, '__file__', str(tmp_path / '__init__.py'))
    log = metrics.MetricLog(tmp_path, 0, None)
    assert results.write(tmp_path, recorded.experiment, log)['environment']['commit'] is None
    log.close()


def test_a_finished_run_is_reported_again_not_trained_again(recorded, tmp_path):
    folder = shutil.copytree(recorded.folder, tmp_path / 'run')
    elsewhere = recorded.result['environment'] | {'device': 'another machine'}
    (folder / 'result.json').write_text(json.dumps(recorded.result | {'environment': elsewhere}))
    before = {name: (folder / name).read_bytes() for name in ('metrics.jsonl', 'result.json', 'config.json')}
    trains = mock.Mock(side_effect=AssertionError('trains'))
    with fixtures.changed_train_step(lambda step: trains):
        result, screen = fixtures.printed(recorded.config, folder)
    assert result == recorded.result | {'environment': elsewhere}
    assert before == {name: (folder / name).read_bytes() for name in before}
    assert 'resuming at step 20' in screen
    assert f'{100 * result["metrics"]["test_accuracy_y"]:.2f} %' in screen
    sent, dense = (f'{20 * 4 * size / 1000:.2f} kB' for size in (fixtures.MESSAGE_SIZE, fixtures.NUM_PARAMS))
    assert f'{sent} sent per worker, dense SGD {dense} (' in screen  # not 0.0 MB


def test_compute_dtype_is_that_of_the_network(data_dir):
    """That its parameters stay float32, see test_models.py and test_transformer.py."""
    run = experiment.build(fixtures.tiny_config(data_dir, compute_dtype='bfloat16'))
    assert run.task.model.dtype == jnp.bfloat16


# --- Every method ---


def config_of(data_dir, method):
    changes = {'num_workers': 1} if METHODS[method].single_worker else {}
    if method == 'onebit_adam':
        changes = {'freeze_after': 3, 'learning_rate': 1e-3, 'momentum': 0.0}
    if METHODS[method].in_bytes:
        changes = {'ratio': 64, 'learning_rate': 0.01}  # blocks of a quarter, in two bits
    return fixtures.tiny_config(data_dir, method=method, **changes)


@pytest.mark.slow
@pytest.mark.parametrize('method', METHODS)
def test_every_method_has_its_programs(method, data_dir):
    """Traced alone; that its updates are right, the library's oracles say."""
    run = experiment.build(config_of(data_dir, method))
    state = jax.eval_shape(run.steps.init)
    run.steps.train.lower(state, next(run.train_batches(0)))
    outputs = jax.eval_shape(run.steps.outputs, state)
    assert {*outputs} == {'x', *METHODS[method].points} - {'own'}
    if 'own' in METHODS[method].points:
        own = jax.eval_shape(run.steps.own_params, state, np.int32(0))
        assert jax.tree.map(jnp.shape, own) == jax.tree.map(jnp.shape, outputs['x']['params'])


# One of each kind: DEF is the recorded run, dense SGD below, PowerSGD, DiLoCo and top-k in
# tests/docs/test_readme.py.
TRAINED = ('psync', 'def_a', 'def_q', 'sgd_ia', 'cser', 'onebit_adam')


@pytest.mark.parametrize(
    'method', ['saef', *(pytest.param(name, marks=pytest.mark.slow) for name in TRAINED)]
)
def test_a_method_of_each_kind_trains(method, recorded, data_dir, tmp_path):
    config = config_of(data_dir, method)
    result = fixtures.train(config, tmp_path / 'run')  # what it sends: tests/trainer/test_compilation.py
    assert result['status'] == 'finished'
    records, points = fixtures.records(tmp_path / 'run'), METHODS[method].points
    assert {name for record in records for name in record if name.startswith('test_accuracy_')} == {
        f'test_accuracy_{point}' for point in (*points, *(('own_std',) if 'own' in points else ()))
    }
    assert ('y' in points) == (METHODS[method].kind == 'error_feedback')
    assert result['metrics']['train_loss'] < 3
    if method == 'def_a':  # the same run as DEF's; the two differ in the point that is their answer
        assert records == fixtures.records(recorded.folder)
    state = fixtures.restored(tmp_path / 'run', experiment.build(config))
    if method == 'saef':  # the last step averages the residuals
        for leaf in jax.tree.leaves(fixtures.residual(state)):
            np.testing.assert_array_equal(leaf, np.broadcast_to(leaf[:1], leaf.shape))


# --- Virtual workers, and what is communicated ---


def test_virtual_workers_in_sequence_give_the_same_trajectory(recorded, data_dir, tmp_path):
    """In parallel, see below."""
    config = fixtures.tiny_config(data_dir, workers_per_device=4, sequential_workers=True)
    result = fixtures.train(config, tmp_path / 'run')
    assert result['environment']['num_devices'] == 1
    expected = fixtures.records(recorded.folder)
    for ours, theirs in zip(fixtures.records(tmp_path / 'run'), expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=2e-3)
    state = fixtures.restored(tmp_path / 'run', experiment.build(config))
    expected = fixtures.gathered(recorded.states[-1])
    reshaped = jax.tree.map(lambda a, b: np.reshape(a, b.shape), state, expected)
    chex.assert_trees_all_close(reshaped, expected, rtol=1e-4, atol=1e-5)


# --- Divergence, and what cannot be run ---


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'train_examples': 2000}, r'config\.train_examples=2000 must be at most 1000'),
        ({'validation_examples': 1000}, 'config.validation_examples=1000 must be less than 1000'),
        ({'validation_examples': 801}, 'config.train_examples=200 must be at most 199'),
        ({'num_epochs': 2**31 - 1}, r'config\.num_epochs=2147483647 or num_steps=0 gives .* steps'),
        ({'num_workers': 10**9, 'batch_size': 10**9}, '1000000000 fake devices .* more than this CPU'),
        ({'model': 'vgg16'}, r'images\.shape=.* multiples of 32'),
        ({'method': f'{HERE}:apart'}, r"method='.*:apart' sends nothing, so .* Average over its axis_name"),
        ({'method': f'{HERE}:forgetful'}, r"forgetful' and .*'bias'\] would differ between workers"),
        ({'elastic': True}, 'needs several processes'),
    ],
)
def test_what_only_shows_when_a_run_is_put_together_is_refused_before_anything_is_written(
    data_dir, tmp_path, changes, message
):
    with pytest.raises(ValueError, match=message):
        fixtures.train(fixtures.tiny_config(data_dir, **changes), tmp_path / 'run')
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('late', [False, True])
def test_a_start_that_fails_before_its_first_record_leaves_the_folder_to_others(data_dir, tmp_path, late):
    """Where the disk has no room for a checkpoint, or the compiler none for the step."""
    folder = tmp_path / 'run'
    full = mock.patch.object(Checkpoints, 'check_room', side_effect=ValueError('no room'))
    failing = fixtures.changed_train_step(lambda step: mock.Mock(side_effect=RuntimeError('no room')))
    with failing if late else full, pytest.raises((ValueError, RuntimeError), match='no room'):
        fixtures.train(fixtures.tiny_config(data_dir), folder)
    assert list(folder.iterdir()) == []
    workdir.claim(folder, fixtures.tiny_config(data_dir, ratio=16))


def test_a_run_is_evaluated_on_what_it_does_not_train_on(data_dir, tmp_path, recorded):
    config = fixtures.tiny_config(data_dir, validation_examples=800, evaluate_on='validation')
    result = fixtures.train(config, tmp_path / 'run')
    assert result['measure']['split'] == 'validation'
    assert not any(name.startswith('test_') for record in result['curve'] for name in record)
    # The same training examples: the trajectory of a run that is evaluated on the test split.
    losses = [
        [r['loss'] for r in fixtures.records(f) if 'loss' in r] for f in (tmp_path / 'run', recorded.folder)
    ]
    assert losses[0] == losses[1]
    held_out = experiment.build(config).evaluated['validation']
    full, _ = in_memory.load_dataset('digits')
    np.testing.assert_array_equal(held_out.arrays['image'], full.arrays['image'][200:])
    # All that an epoch trains on, where train_examples does not limit it.
    every = experiment.build(fixtures.tiny_config(data_dir, train_examples=0, validation_examples=800))
    batches = itertools.islice(every.train_batches(0), every.steps_per_epoch)
    trained = {image.tobytes() for batch in batches for image in batch['image'].reshape(-1, 64)}
    assert len(trained) == 200 and not trained & {image.tobytes() for image in held_out.arrays['image']}
    correct = 800 * result['metrics']['validation_accuracy_x']
    assert correct == pytest.approx(round(correct), abs=1e-3)


def diverged_run(config, folder):
    with pytest.raises(loop.DivergedError) as error:
        fixtures.train(config, folder)
    result = json.loads((folder / 'result.json').read_text())
    assert result['status'] == 'diverged'
    assert result['diverged'] == {'step': error.value.step, 'worker': error.value.worker}
    assert result['metrics']['steps'] == error.value.step
    assert 'Try a smaller --config.learning_rate' in str(error.value) and '\n' not in str(error.value)
    return error.value


def test_a_nan_loss_names_step_and_worker_and_keeps_the_last_good_checkpoint(recorded, tmp_path):
    folder = tmp_path / 'run'
    with fixtures.poisoned_batch(step=7, worker=2):
        error = diverged_run(recorded.config, folder)
    assert (error.step, error.worker) == (7, 2)
    assert 'the loss of worker 2 is nan at step 7' in str(error)
    assert fixtures.records(folder) == [r for r in fixtures.records(recorded.folder) if r['step'] <= 6]
    fixtures.assert_restored(folder, recorded, 5)
    # Without the poison the run goes on from there as if nothing had been.
    assert fixtures.train(recorded.config, folder)['status'] == 'finished'
    assert fixtures.records(folder) == fixtures.records(recorded.folder)


def test_a_nan_on_the_test_set_is_never_checkpointed(recorded, tmp_path):
    with fixtures.poisoned_state(10, fixtures.poisoned_params):
        error = diverged_run(recorded.config, tmp_path / 'run')
    assert (error.step, error.worker) == (10, None)
    assert 'the loss of the test set is nan at step 10' in str(error)
    fixtures.assert_restored(tmp_path / 'run', recorded, 5)


# --- Steps that are skipped: left out, counted, and without a trace ---


@pytest.mark.parametrize(('step', 'record'), [(7, 9), (5, 6)])  # of three steps; of this one alone
def test_a_run_leaves_the_step_out_and_says_so(step, record, data_dir, tmp_path):
    config = fixtures.tiny_config(data_dir, skip_nonfinite=True)
    with fixtures.poisoned_batch(step=step, worker=2):
        result = fixtures.train(config, tmp_path / 'run')
    assert result['metrics']['skipped'] == 1 and result['metrics']['train_loss'] > 0
    found = {r['step']: r for r in fixtures.records(tmp_path / 'run') if 'skipped' in r}
    assert [step for step, r in found.items() if r['skipped']] == [record]
    assert all(('loss' in r) == (step != 6 or record != 6) for step, r in found.items())
    state = fixtures.restored(tmp_path / 'run', experiment.build(config))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(state)))
    assert (int(state.step), int(optax.tree.get(state.opt_state, 'step'))) == (20, 19)


@pytest.mark.parametrize(('overlap', 'virtual'), [(False, 1), (True, 2)])
def test_a_skipped_step_holds_the_statistics_of_batch_normalisation(data_dir, overlap, virtual):
    """With `overlap`, those of the worker that leaves the step out."""
    changes = {'skip_nonfinite': True, 'overlap': overlap, 'workers_per_device': virtual}
    run = experiment.build(fixtures.tiny_config(data_dir, **changes))

    def by_worker(stats):
        return [
            np.reshape(leaf, (fixtures.NUM_WORKERS, -1)) for leaf in jax.tree.leaves(jax.device_get(stats))
        ]

    state, batch = run.steps.init(), next(run.train_batches(0))
    batch['label'].reshape(fixtures.NUM_WORKERS, -1)[2] = 99
    before, statistics = fixtures.shards(state.params), by_worker(state.batch_stats)
    state, metrics = run.steps.train(state, run.workers.place(batch))
    taken = [overlap and worker != 2 for worker in range(fixtures.NUM_WORKERS)]
    assert np.ravel(metrics['taken']).tolist() == taken
    pairs = zip(statistics, by_worker(state.batch_stats), strict=True)
    changed = [np.any(old != new, axis=1).tolist() for old, new in pairs]
    assert changed == [taken] * 2
    chex.assert_trees_all_equal(fixtures.shards(state.params), before)
    assert int(state.step) == 1


@pytest.mark.parametrize('most', [1, 50])
def test_a_run_of_which_nothing_is_left_has_diverged(most, data_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(window, '_MOST_SKIPPED', most)
    config = fixtures.tiny_config(data_dir, skip_nonfinite=True)
    with fixtures.poisoned_state(4, fixtures.poisoned_params), pytest.raises(loop.DivergedError) as error:
        fixtures.train(config, tmp_path / 'run')
    assert error.value.step == {1: 4, 50: 5}[most]  # the first step that was left out; the evaluation
    assert ('1 steps in a row were skipped' in str(error.value)) == (most == 1)


# --- A method by its import path: any optax transformation that averages over the workers ---


def test_a_plain_transformation_trains_as_the_librarys_own_on_virtual_workers_too(data_dir, tmp_path):
    """Where everything is sent it is uncompressed SGD."""
    losses = []
    for method, per_device in itertools.product(('sgd', f'{HERE}:average'), (1, 2)):
        changes = {'method': method, 'ratio': 1, 'workers_per_device': per_device, 'num_epochs': 1}
        folder = tmp_path / f'{method[-3:]}{per_device}'
        result = fixtures.train(fixtures.tiny_config(data_dir, **changes), folder)
        losses.append([record['loss'] for record in fixtures.records(folder) if 'loss' in record])
        assert result['points'] == ['x'] and result['communication']['true_ratio'] == 1
        assert result['environment']['num_devices'] == fixtures.NUM_WORKERS // per_device
    assert result['answers'] == {'x': 'average'}
    np.testing.assert_allclose(losses, [losses[0]] * 4, rtol=1e-4)


def test_its_state_is_of_each_worker_and_an_interrupted_run_goes_on(data_dir, recorded, tmp_path):
    method = {'method': f'{HERE}:average', 'method_options': {'scale': 0.5, 'ratio': 8}}
    config = fixtures.tiny_config(data_dir, num_epochs=2, **method)
    whole = fixtures.train(config, tmp_path / 'whole')
    with fixtures.signalled(15, 7), pytest.raises(loop.InterruptedRunError):
        fixtures.train(config, tmp_path / 'interrupted')
    resumed = fixtures.train(config, tmp_path / 'interrupted')
    assert resumed['metrics']['train_loss'] == whole['metrics']['train_loss']
    run = experiment.build(config)
    state = fixtures.restored(tmp_path / 'whole', run)
    residuals = [np.asarray(x) for x in jax.tree.leaves(state.opt_state[1].state)]
    assert all(np.ptp(x, axis=0).max() > 0 for x in residuals)  # [K, ...]
