"""Evaluation: which points, with which BatchNorm statistics, and every test image exactly once."""

import dataclasses

import jax
import numpy as np
import pytest
import training_fixtures as fixtures

from def_jax.trainer import experiment, loop
from def_jax.trainer.data import augmentation
from def_jax.trainer.data.catalogue import DATASETS
from def_jax.trainer.models import layers

DATASET = DATASETS['digits']


@pytest.fixture(scope='module')
def random_state(recorded):
    """A state whose x, y and every worker's own model answer differently, and each with every class."""
    rng = np.random.default_rng(0)

    def noise(leaf):
        return rng.normal(size=leaf.shape).astype(np.float32)

    state = fixtures.gathered(recorded.states[-1])
    params = jax.tree.map(noise, state.params)
    params['Dense_0']['bias'] *= 0  # what varies from image to image decides
    link = state.opt_state
    link = link._replace(residual=jax.tree.map(lambda r: noise(r) / 2, link.residual))
    stats = jax.tree.map(lambda s: np.exp(noise(s) / 4) * s, state.batch_stats)
    return state.replace(params=params, opt_state=link, batch_stats=stats)


@pytest.fixture(scope='module')
def plain_evaluation(recorded):
    """A function from variables to accuracy and mean loss, in NumPy but for the network, on one device."""
    test = recorded.experiment.dataset.test
    pixels = (test.arrays['image'] / np.float32(255) - np.float32(DATASET.mean)) / np.float32(DATASET.std)
    logits_of = jax.jit(lambda variables, x: recorded.experiment.task.model.apply(variables, x, train=False))

    def evaluate(params, batch_stats, count=797):
        logits = np.asarray(logits_of({'params': params, 'batch_stats': batch_stats}, pixels), np.float64)
        labels = test.arrays['label'][:count]
        logits = logits[:count]
        log_sum = np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1)) + logits.max(1)
        loss = np.mean(log_sum - logits[np.arange(count), labels])
        return int((logits.argmax(1) == labels).sum()), loss

    return evaluate


def points_of(state):
    """The parameters at x and y, and the statistics, by NumPy alone; `state` as gathered on the host."""
    means = jax.tree.map(lambda r: r.mean(0, dtype=np.float64).astype(np.float32), fixtures.residual(state))
    return {'x': state.params, 'y': jax.tree.map(np.add, state.params, means)}


def mean_stats(state):
    return jax.tree.map(lambda s: s.mean(0, dtype=np.float64).astype(np.float32), state.batch_stats)


def test_records_of_a_run_equal_a_plain_evaluation(recorded, plain_evaluation):
    records = [r for r in fixtures.records(recorded.folder) if 'test_accuracy_x' in r]
    assert [r['step'] for r in records] == [5, 10, 15, 20]
    for record in records:
        state = fixtures.gathered(recorded.states[record['step']])
        for point, params in points_of(state).items():
            correct, loss = plain_evaluation(params, mean_stats(state))
            assert round(record[f'test_accuracy_{point}'] * 797) == correct
            assert record[f'test_loss_{point}'] == pytest.approx(loss, rel=1e-5)


# 400 images fill the four devices' batches once; those of a run do not.
@pytest.mark.parametrize('count', [1, 400])
def test_every_image_counts_once(recorded, random_state, plain_evaluation, count):
    test = recorded.experiment.dataset.test.part(0, count)
    dataset = dataclasses.replace(recorded.experiment.dataset, test=test)
    run = dataclasses.replace(recorded.experiment, dataset=dataset)
    record = loop.evaluate(run, fixtures.placed(random_state, run), 20)
    for point, params in points_of(random_state).items():
        correct, loss = plain_evaluation(params, mean_stats(random_state), count)
        assert record[f'test_accuracy_{point}'] == pytest.approx(correct / count, rel=1e-6)
        assert record[f'test_loss_{point}'] == pytest.approx(loss, rel=1e-5)
    assert record['test_loss_x'] != pytest.approx(record['test_loss_y'], rel=1e-3)  # the test could tell


def test_every_workers_own_model_sees_the_whole_test_set(recorded, random_state, plain_evaluation, data_dir):
    run = experiment.build(fixtures.tiny_config(data_dir, method='psync'))
    state = random_state.replace(opt_state=random_state.opt_state._replace(detach=np.float32(1)))
    record = loop.evaluate(run, fixtures.placed(state, run), 7)
    own = [
        plain_evaluation(
            jax.tree.map(lambda x, r, k=k: x + r[k], state.params, fixtures.residual(state)),
            mean_stats(state),
        )
        for k in range(fixtures.NUM_WORKERS)
    ]
    accuracies = np.array([correct for correct, _ in own]) / 797
    assert len(set(accuracies)) > 2  # the test could tell
    assert record['test_accuracy_own'] == pytest.approx(accuracies.mean(), rel=1e-6)
    assert record['test_accuracy_own_std'] == pytest.approx(accuracies.std(), rel=1e-4)
    assert record['test_loss_own'] == pytest.approx(np.mean([loss for _, loss in own]), rel=1e-5)


def test_statistics_are_recalibrated_at_each_point(random_state, plain_evaluation, data_dir, monkeypatch):
    monkeypatch.setattr(layers, 'STATISTICS_MOMENTUM', 0.99)  # whatever the model's is
    run = experiment.build(fixtures.tiny_config(data_dir, recalibrate_batches=2))
    record = loop.evaluate(run, fixtures.placed(random_state, run), 20)
    trained = loop.trained_variables(run, fixtures.placed(random_state, run))  # what a run leaves behind
    for point, params in points_of(random_state).items():
        stats = measured_statistics(run, random_state, params)
        _, expected = plain_evaluation(params, stats)
        assert plain_evaluation(**trained[point])[1] == pytest.approx(expected, rel=1e-4)
        assert record[f'test_loss_{point}'] == pytest.approx(expected, rel=1e-4)
        _, running = plain_evaluation(params, mean_stats(random_state))
        assert expected != pytest.approx(running, rel=1e-2)
        assert record[f'test_loss_{point}_running'] == pytest.approx(running, rel=1e-4)


def measured_statistics(run, state, params, num_batches=2):
    """Each worker's mean and variance of what enters the one BatchNorm, averaged over workers and batches."""
    found = []
    for batch, _ in zip(run.train_batches(int(state.step)), range(num_batches), strict=False):
        images_of = batch['image'].reshape(run.config.num_workers, -1, *batch['image'].shape[-3:])
        for worker in range(run.config.num_workers):
            key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
            images = augmentation.augment(jax.random.fold_in(key, worker), images_of[worker], DATASET)
            maps = jax.lax.conv_general_dilated(
                images, params['Conv_0']['kernel'], (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
            )
            found.append((np.mean(maps, (0, 1, 2)), np.var(maps, (0, 1, 2))))
    mean, var = np.mean(found, axis=0)
    return {'BatchNorm_0': {'mean': mean, 'var': var}}
