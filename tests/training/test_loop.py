"""The trainer on a tiny configuration: files, methods, the step itself, divergence, virtual workers."""

import io
import itertools
import json
import re
import shutil
import struct
from pathlib import Path
from unittest import mock

import chex
import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import optax
import pytest
import rich.console
import training_fixtures as fixtures
from tensorboardX.proto import event_pb2

import def_jax
from def_jax import METHODS, train
from def_jax.data import augmentation, in_memory
from def_jax.training import experiment, loop, steps

EVALUATIONS = [5, 10, 15, 20]


# --- The files of a run ---


def test_a_run_leaves_these_files_and_no_others(recorded):
    files = {'config.json', 'curves.png', 'lock', 'metrics.jsonl', 'result.json'}
    assert {path.name for path in recorded.folder.iterdir()} == files | {'checkpoints', 'tensorboard'}
    assert {path.name for path in (recorded.folder / 'checkpoints').iterdir()} == {'15', '20'}
    config = json.loads((recorded.folder / 'config.json').read_text())
    assert config == json.loads(recorded.config.to_json())


def test_metrics_are_recorded_when_due(recorded):
    records = fixtures.records(recorded.folder)
    assert [r['step'] for r in records if 'loss' in r] == [3, 5, 6, 9, 10, 12, 15, 18, 20]
    tests = [r for r in records if 'test_accuracy_x' in r]
    assert [r['step'] for r in tests] == EVALUATIONS
    points = {'test_accuracy_x', 'test_accuracy_y', 'test_loss_x', 'test_loss_y'}
    assert all(r.keys() == {'step', 'epoch', 'megabytes_sent'} | points for r in tests)
    for record in records:
        assert record['epoch'] == record['step'] / fixtures.STEPS_PER_EPOCH
        assert record['megabytes_sent'] == pytest.approx(record['step'] * 4 * fixtures.MESSAGE_SIZE / 1e6)


def test_a_training_record_is_the_mean_since_the_last(recorded):
    losses, begin = np.stack(recorded.losses), 0
    for record in fixtures.records(recorded.folder):
        if 'loss' in record:
            assert record['loss'] == pytest.approx(losses[begin : record['step']].mean(), rel=1e-6)
            begin = record['step']


def test_tensorboard_holds_the_same_figures(recorded):
    found = {}
    for path in (recorded.folder / 'tensorboard').iterdir():
        data, position = path.read_bytes(), 0
        while position < len(data):  # records of length, 4 bytes, event, 4 bytes
            (length,) = struct.unpack_from('<Q', data, position)
            event = event_pb2.Event.FromString(data[position + 12 : position + 12 + length])
            found |= {(event.step, value.tag): value.simple_value for value in event.summary.value}
            position += 16 + length
    expected = {
        (record['step'], name): value
        for record in map(json.loads, (recorded.folder / 'metrics.jsonl').read_text().splitlines())
        for name, value in record.items()
        if name != 'step'
    }
    assert found == pytest.approx(expected, rel=1e-6)


def test_curves_are_a_picture(recorded):
    picture = matplotlib.image.imread(recorded.folder / 'curves.png')
    height, width = picture.shape[:2]
    assert height > 200 and width > 600
    assert picture[..., :3].std() > 0.05  # not blank


def test_result_says_what_was_run_and_what_came_out(recorded):
    result = recorded.result
    assert result == json.loads((recorded.folder / 'result.json').read_text())
    assert (result['status'], result['diverged']) == ('finished', None)
    assert all(word in result['title'] for word in ('DEF', 'ratio 8', 'vgg_digits', 'digits', '4 workers'))
    assert result['config'] == json.loads(recorded.config.to_json())
    last = fixtures.records(recorded.folder)[-1]
    for name in ('test_accuracy_x', 'test_accuracy_y', 'test_loss_x', 'test_loss_y'):
        assert result['metrics'][name] == last[name]
    assert result['metrics']['steps'] == fixtures.NUM_STEPS
    assert result['metrics']['seconds'] > 0
    last_epoch = [r['loss'] for r in fixtures.records(recorded.folder) if r['step'] > 15 and 'loss' in r]
    assert result['metrics']['train_loss'] == pytest.approx(np.mean(last_epoch))


def test_result_says_what_was_sent(recorded):
    sent = recorded.result['communication']
    assert sent == pytest.approx(
        {
            'num_params': fixtures.NUM_PARAMS,
            'message_size': fixtures.MESSAGE_SIZE,
            'true_ratio': fixtures.NUM_PARAMS / fixtures.MESSAGE_SIZE,
            'visits_per_block': fixtures.NUM_STEPS * fixtures.MESSAGE_SIZE / fixtures.NUM_PARAMS,
            'bytes_per_step': 4 * fixtures.MESSAGE_SIZE,
            'dense_bytes_per_step': 4 * fixtures.NUM_PARAMS,
            'megabytes_sent': fixtures.NUM_STEPS * 4 * fixtures.MESSAGE_SIZE / 1e6,
            'megabytes_dense': fixtures.NUM_STEPS * 4 * fixtures.NUM_PARAMS / 1e6,
        }
    )


def test_the_result_holds_the_curve(recorded):
    curve = recorded.result['curve']
    records = fixtures.records(recorded.folder)
    assert [point['step'] for point in curve] == [5, 10, 15, 20]
    for point, before in zip(curve, (0, 5, 10, 15), strict=True):
        losses = [r['loss'] for r in records if 'loss' in r and before < r['step'] <= point['step']]
        assert point['train_loss'] == pytest.approx(np.mean(losses))
        test = next(r for r in records if 'test_loss_y' in r and r['step'] == point['step'])
        assert test.items() <= point.items() and point['seconds'] > 0


def test_result_says_with_what_it_was_made(recorded):
    environment = recorded.result['environment']
    assert environment['def_jax'] == def_jax.__version__
    assert environment['packages']['jax'] == jax.__version__
    assert environment['packages']['numpy'] == np.__version__
    assert environment['num_devices'] == fixtures.NUM_WORKERS
    if (Path(def_jax.__file__).parents[1] / '.git').exists():
        assert re.fullmatch(r'[0-9a-f]{40}\+?', environment['commit'])


def test_a_finished_run_is_reported_again_not_trained_again(recorded, tmp_path):
    folder = shutil.copytree(recorded.folder, tmp_path / 'run')
    elsewhere = recorded.result['environment'] | {'device': 'another machine'}
    (folder / 'result.json').write_text(json.dumps(recorded.result | {'environment': elsewhere}))
    before = {name: (folder / name).read_bytes() for name in ('metrics.jsonl', 'result.json', 'config.json')}
    screen = io.StringIO()
    with mock.patch.object(in_memory, 'train_batch', side_effect=AssertionError('trains')):
        result = fixtures.train(recorded.config, folder, rich.console.Console(file=screen, width=200))
    assert result == recorded.result | {'environment': elsewhere}
    assert before == {name: (folder / name).read_bytes() for name in before}
    assert 'resuming at step 20' in screen.getvalue()
    assert f'{100 * result["metrics"]["test_accuracy_y"]:.2f} %' in screen.getvalue()


def test_compute_dtype_is_that_of_the_network_alone(data_dir):
    run = experiment.build(fixtures.tiny_config(data_dir, compute_dtype='bfloat16'))
    variables = run.task.init(jax.random.key(0))
    batch = next(run.train_batches(0))
    batch = {name: x[0] for name, x in batch.items()}

    def loss(params):
        return run.task.loss(params, variables['batch_stats'], batch, jax.random.key(0))[0]

    program, (value, grads) = jax.make_jaxpr(jax.value_and_grad(loss), return_shape=True)(variables['params'])
    assert 'bf16' in str(program)
    assert {leaf.dtype for leaf in jax.tree.leaves((variables, value, grads))} == {jnp.dtype('float32')}


# --- Every method ---


def method_config(data_dir, method):
    workers = {'num_workers': 1} if METHODS[method].single_worker else {}
    return fixtures.tiny_config(data_dir, method=method, **workers)


# Of the methods that are settings of error feedback, one with an outer optimizer and one of random elements.
TRAINED = [name for name in METHODS if name not in ('local_sgd', 'streaming_diloco', 'random_replicator')]
# DEF's is the recorded run; EF and SGD-IA differ from it in a number and in the compressor only.
SLOW = ('def', 'ef', 'sgd_ia')


@pytest.mark.parametrize(
    'method', [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in TRAINED]
)
def test_every_method_trains(method, recorded, data_dir, tmp_path):
    config = method_config(data_dir, method)
    result = fixtures.train(config, tmp_path / 'run')
    assert result['status'] == 'finished'
    records, points = fixtures.records(tmp_path / 'run'), METHODS[method].points
    assert {name for record in records for name in record if name.startswith('test_accuracy_')} == {
        f'test_accuracy_{point}' for point in (*points, *(('own_std',) if 'own' in points else ()))
    }
    assert ('y' in points) == (method not in ('sgd', 'ef21'))
    dense = method in ('sgd', 'sgd_ia', 'diloco')
    size = result['communication']['message_size']
    assert size == (fixtures.NUM_PARAMS if dense else fixtures.MESSAGE_SIZE)
    assert result['metrics']['train_loss'] < 3
    if method == 'def_a':  # the same run as DEF's; the two differ in the point that is their answer
        assert records == fixtures.records(recorded.folder)
    state = fixtures.restored(tmp_path / 'run', experiment.build(config))
    if method == 'saef':  # the last step averages the residuals
        for leaf in jax.tree.leaves(fixtures.residual(state)):
            np.testing.assert_array_equal(leaf, np.broadcast_to(leaf[:1], leaf.shape))


# --- The train step ---


def test_parameters_stay_the_same_on_all_devices(recorded):
    for state in recorded.states:
        shared = state.replace(batch_stats=(), opt_state=())
        for parts in jax.tree.leaves(shared, is_leaf=lambda node: isinstance(node, list)):
            assert len(parts) == fixtures.NUM_WORKERS
            assert len({part.tobytes() for part in parts}) == 1
    # What they are made of does differ.
    for tree in (fixtures.residual, fixtures.momentum, lambda s: s.batch_stats):
        for parts in jax.tree.leaves(tree(recorded.states[9]), is_leaf=lambda node: isinstance(node, list)):
            assert len({part.tobytes() for part in parts}) == fixtures.NUM_WORKERS


def test_a_record_is_fetched_while_the_next_step_computes(recorded, tmp_path, monkeypatch):
    dispatched, fetched = [], {}
    make_train_step, write = steps.make_train_step, loop.MetricLog.write

    def dispatching(run):
        train_step = make_train_step(run)
        return lambda state, batch: dispatched.append(1) or train_step(state, batch)

    def writing(log, record):
        if 'loss' in record:
            fetched[record['step']] = len(dispatched)
        write(log, record)

    monkeypatch.setattr(steps, 'make_train_step', dispatching)
    monkeypatch.setattr(loop.MetricLog, 'write', writing)
    fixtures.train(recorded.config, tmp_path / 'run')
    assert fetched == {3: 4, 5: 5, 6: 7, 9: 10, 10: 10, 12: 13, 15: 15, 18: 19, 20: 20}


def test_the_train_step_is_traced_once(recorded):
    assert len(recorded.losses) == fixtures.NUM_STEPS
    assert steps.make_train_step(recorded.experiment).traces() == 1


def test_the_learning_rate_drops_after_half_and_three_quarters(recorded):
    states, rates = [fixtures.gathered(state) for state in recorded.states], []
    for before, after in itertools.pairwise(states):
        old, new = fixtures.residual(before)['Conv_0']['kernel'], fixtures.residual(after)['Conv_0']['kernel']
        step = fixtures.momentum(after)['Conv_0']['kernel'] * (new != 0)  # what was not sent: r' = r - η·m'
        rates.append(np.sum((old - new) * step) / np.sum(step**2))
    np.testing.assert_allclose(rates, [0.1] * 10 + [0.01] * 5 + [0.001] * 5, rtol=1e-2)
    recorded_rates = {r['step']: r['learning_rate'] for r in fixtures.records(recorded.folder) if 'loss' in r}
    assert recorded_rates == pytest.approx({step: rates[step - 1] for step in recorded_rates}, rel=1e-2)


@pytest.fixture(scope='module')
def worker_gradient(recorded):
    """A function from a point to one worker's loss and gradient, on one device and without the loop."""
    run, config = recorded.experiment, recorded.config

    @jax.jit
    def value_and_grad(point, batch_stats, image, label, step, worker):
        _, key = jax.random.split(jax.random.key(config.seed))
        key = jax.random.fold_in(jax.random.fold_in(key, step), worker)
        images = augmentation.augment(key, image, run.dataset.spec)

        def loss(params):
            variables = {'params': params, 'batch_stats': batch_stats}
            logits, _ = run.task.model.apply(variables, images, train=True, mutable=['batch_stats'])
            return optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()

        return jax.value_and_grad(loss)(point)

    def of(point, state, step, worker):
        batch = in_memory.train_batch(run.dataset.train, seed=0, step=step, batch_size=40, num_workers=4)
        stats = jax.tree.map(lambda s: s[worker], state.batch_stats)
        return value_and_grad(point, stats, batch['image'][worker], batch['label'][worker], step, worker)

    return of


@pytest.mark.parametrize('worker', range(fixtures.NUM_WORKERS))
def test_gradient_and_weight_decay_are_taken_at_the_detached_point(recorded, worker_gradient, worker):
    before, after = (fixtures.gathered(recorded.states[step]) for step in (8, 9))
    x = before.params
    r = jax.tree.map(lambda leaf: leaf[worker], fixtures.residual(before))
    detached = jax.tree.map(lambda x, r: x + 0.3 * r, x, r)
    decay = recorded.config.weight_decay

    def new_momentum(gradient_point, decay_point):
        _, grads = worker_gradient(gradient_point, before, 8, worker)
        old = jax.tree.map(lambda m: m[worker], fixtures.momentum(before))
        return jax.tree.map(lambda m, g, p: 0.9 * m + g + decay * p, old, grads, decay_point)

    momentum = jax.tree.map(lambda m: m[worker], fixtures.momentum(after))
    chex.assert_trees_all_close(momentum, new_momentum(detached, detached), rtol=1e-4, atol=1e-6)
    for wrong in ((x, detached), (detached, x)):  # which the tolerance can tell apart
        with pytest.raises(AssertionError, match='not approximately equal'):
            chex.assert_trees_all_close(momentum, new_momentum(*wrong), rtol=1e-4, atol=1e-6)
    loss, _ = worker_gradient(detached, before, 8, worker)
    assert recorded.losses[8][worker] == pytest.approx(float(loss), rel=1e-5)


def test_three_steps_equal_a_loop_over_the_library(recorded, worker_gradient):
    states = [fixtures.gathered(state) for state in recorded.states[:4]]
    optimizer = optax.chain(
        optax.add_decayed_weights(recorded.config.weight_decay),
        optax.sgd(0.1, momentum=0.9),
        def_jax.error_feedback(def_jax.random_block(8), 'k', seed=recorded.config.seed, detach=0.3),
    )
    params = states[0].params
    local = [optimizer.init(params) for _ in range(fixtures.NUM_WORKERS)]
    update = jax.jit(jax.vmap(optimizer.update, axis_name='k'))
    for step in range(3):
        points = [def_jax.detached_params(params, opt_state) for opt_state in local]
        grads = [worker_gradient(p, states[step], step, k)[1] for k, p in enumerate(points)]
        stack = [jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees) for trees in (grads, local, points)]
        updates, opt_state = update(*stack)
        params = optax.apply_updates(params, jax.tree.map(lambda u: u[0], updates))
        local = [jax.tree.map(lambda leaf, k=k: leaf[k], opt_state) for k in range(fixtures.NUM_WORKERS)]
    chex.assert_trees_all_close(params, states[3].params, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(opt_state[-1].residual, fixtures.residual(states[3]), rtol=1e-4, atol=1e-6)


# --- Virtual workers, and what is communicated ---


@pytest.mark.parametrize('workers_per_device', [2])
def test_virtual_workers_give_the_same_trajectory(recorded, data_dir, tmp_path, workers_per_device):
    config = fixtures.tiny_config(data_dir, workers_per_device=workers_per_device)
    result = fixtures.train(config, tmp_path / 'run')
    assert result['environment']['num_devices'] == fixtures.NUM_WORKERS // workers_per_device
    expected = fixtures.records(recorded.folder)
    for ours, theirs in zip(fixtures.records(tmp_path / 'run'), expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=2e-3)
    state = fixtures.restored(tmp_path / 'run', experiment.build(config))
    expected = fixtures.gathered(recorded.states[-1])
    reshaped = jax.tree.map(lambda a, b: np.reshape(a, b.shape), state, expected)
    chex.assert_trees_all_close(reshaped, expected, rtol=1e-4, atol=1e-5)


# --- Divergence, and what cannot be run ---


@pytest.mark.parametrize('key', ['train_images', 'test_images'])
def test_more_images_than_there_are_are_refused_before_anything_is_written(data_dir, tmp_path, key):
    with pytest.raises(ValueError, match=rf'config\.{key}=2000 must be at most (1000|797)'):
        fixtures.train(fixtures.tiny_config(data_dir, **{key: 2000}), tmp_path / 'run')
    assert list(tmp_path.iterdir()) == []


def test_a_batch_larger_than_the_data_is_refused_before_anything_is_written(data_dir, tmp_path):
    with pytest.raises(ValueError, match=r'batch_size=204 must be between 1 and num_examples=200'):
        fixtures.train(fixtures.tiny_config(data_dir, batch_size=204), tmp_path / 'run')
    assert list(tmp_path.iterdir()) == []


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
    state = fixtures.restored(folder, recorded.experiment)
    fixtures.assert_same_bits(fixtures.shards(state), recorded.states[5])
    # Without the poison the run goes on from there as if nothing had been.
    assert fixtures.train(recorded.config, folder)['status'] == 'finished'
    assert fixtures.records(folder) == fixtures.records(recorded.folder)


def test_a_nan_in_one_residual_is_noticed_at_the_next_step(recorded, tmp_path):
    def poison(state):
        *links, link = state.opt_state
        residual = jax.tree.map(lambda r: fixtures.nan_like(r, where=1), link.residual)
        return state.replace(opt_state=(*links, link._replace(residual=residual)))

    with fixtures.poisoned_state(9, poison):
        error = diverged_run(recorded.config, tmp_path / 'run')
    assert (error.step, error.worker) == (9, 1)
    assert int(fixtures.restored(tmp_path / 'run', recorded.experiment).step) == 5


def test_a_nan_on_the_test_set_is_never_checkpointed(recorded, tmp_path):
    def poison(state):
        return state.replace(params=jax.tree.map(fixtures.nan_like, state.params))

    with fixtures.poisoned_state(10, poison):
        error = diverged_run(recorded.config, tmp_path / 'run')
    assert (error.step, error.worker) == (10, None)
    assert 'the loss of the test set is nan at step 10' in str(error)
    state = fixtures.restored(tmp_path / 'run', recorded.experiment)
    fixtures.assert_same_bits(fixtures.shards(state), recorded.states[5])


def test_divergence_is_exit_code_3_and_a_hint(data_dir, tmp_path, capsys, monkeypatch):
    config = fixtures.tiny_config(data_dir, learning_rate=1e30)
    monkeypatch.setattr(train, '_CONFIG', mock.Mock(value=config))
    monkeypatch.setattr(train, '_WORKDIR', mock.Mock(value=str(tmp_path / 'run')))
    for flag in ('_ADDRESS', '_COUNT', '_INDEX'):
        monkeypatch.setattr(train, flag, mock.Mock(value=None))
    assert train.main(['train.py']) == 3
    message = capsys.readouterr().err
    result = json.loads((tmp_path / 'run' / 'result.json').read_text())
    where = 'the loss of worker {worker} is nan at step {step}.'.format(**result['diverged'])
    assert message.startswith(f'train.py: {where}') and message.count('\n') == 1
    assert result['status'] == 'diverged'
