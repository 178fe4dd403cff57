"""The train step: against the library without the trainer, worker by worker; and copies that must agree."""

import dataclasses
import functools
import itertools
import re
import signal

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import training_fixtures as fixtures

import def_jax
from def_jax.trainer import experiment, loop
from def_jax.trainer.data import augmentation, order


def test_a_record_is_fetched_while_the_next_step_computes(recorded, tmp_path, monkeypatch):
    dispatched, fetched, write = [], {}, loop.MetricLog.write

    def dispatching(train_step):
        return lambda state, batch: dispatched.append(1) or train_step(state, batch)

    def writing(log, record):
        if 'loss' in record:
            fetched[record['step']] = len(dispatched)
        write(log, record)

    monkeypatch.setattr(loop.MetricLog, 'write', writing)
    with fixtures.changed_train_step(dispatching):
        fixtures.train(recorded.config, tmp_path / 'run')
    assert fetched == {3: 4, 5: 5, 6: 7, 9: 10, 10: 10, 12: 13, 15: 15, 18: 19, 20: 20}


def test_sequential_workers_have_ordinary_convolutions(data_dir):
    """Under vmap they would be grouped by worker."""
    config = fixtures.tiny_config(data_dir, workers_per_device=4, sequential_workers=True)
    run = experiment.build(config)
    state = jax.eval_shape(run.steps.init)
    batch = next(run.train_batches(0))
    program = run.steps.train.lower(state, batch).as_text()
    groups = {int(count) for count in re.findall(r'(?:feature|batch)_group_count = (\d+)', program)}
    assert groups == {1}


def test_the_learning_rate_drops_after_half_and_three_quarters(recorded):
    states, rates = [fixtures.gathered(state) for state in recorded.states], []
    for before, after in itertools.pairwise(states):
        old, new = fixtures.residual(before)['Conv_0']['kernel'], fixtures.residual(after)['Conv_0']['kernel']
        momentum = optax.tree.get(after.opt_state, 'trace')['Conv_0']['kernel']
        step = momentum * (new != 0)  # what was not sent: r' = r - η·m'
        rates.append(np.sum((old - new) * step) / np.sum(step**2))
    np.testing.assert_allclose(rates, [0.1] * 10 + [0.01] * 5 + [0.001] * 5, rtol=1e-2)
    recorded_rates = {r['step']: r['learning_rate'] for r in fixtures.records(recorded.folder) if 'loss' in r}
    assert recorded_rates == pytest.approx({step: rates[step - 1] for step in recorded_rates}, rel=1e-2)


def test_statistics_are_averaged_but_counts_stay_integers(recorded):
    run = recorded.experiment
    mean, count = np.linspace(0, 1, 4, dtype=np.float32), np.arange(5, 9)
    state = dataclasses.replace(run.steps.init(), batch_stats={'mean': mean, 'count': count})
    found = jax.device_get(run.steps.outputs(state)['x']['batch_stats'])
    assert found['count'] == 8 and found['count'].dtype.kind == 'i' and found['mean'] == pytest.approx(0.5)


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
        batch = order.train_batch(run.dataset.train, seed=0, step=step, batch_size=40, num_workers=4)
        stats = jax.tree.map(lambda s: s[worker], state.batch_stats)
        return value_and_grad(point, stats, batch['image'][worker], batch['label'][worker], step, worker)

    return of


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
        found = [worker_gradient(p, states[step], step, k) for k, p in enumerate(points)]
        losses, grads = zip(*found, strict=True)
        np.testing.assert_allclose(recorded.losses[step], losses, rtol=1e-5)
        stack = [jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees) for trees in (grads, local, points)]
        updates, opt_state = update(*stack)
        params = optax.apply_updates(params, jax.tree.map(lambda u: u[0], updates))
        local = [jax.tree.map(lambda leaf, k=k: leaf[k], opt_state) for k in range(fixtures.NUM_WORKERS)]
    chex.assert_trees_all_close(params, states[3].params, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(opt_state[-1].residual, fixtures.residual(states[3]), rtol=1e-4, atol=1e-6)


# --- Workers that stop agreeing: the run ends, names the leaf and the device, without a checkpoint of it ---


def with_unequal(leaf_of):
    """Poisons a state: one of four workers' copies of a leaf differs in the last bits."""

    def flipped(copy):
        return (copy.view(np.uint32) ^ 1).view(copy.dtype)

    def poison(state):
        unequal = functools.partial(fixtures.with_changed_copy, device=2, change=flipped)
        return jax.tree.map(lambda leaf: unequal(leaf) if leaf is leaf_of(state) else leaf, state)

    return poison


# Evaluations, each with a checkpoint, come every 5 steps.
def test_a_planted_difference_stops_the_run_with_its_name(data_dir, tmp_path):
    config = fixtures.tiny_config(data_dir, check_replicas_every=2)
    poison = with_unequal(lambda state: state.params['Dense_0']['bias'])
    with fixtures.poisoned_state(4, poison), pytest.raises(loop.ReplicasDifferError) as error:
        fixtures.train(config, tmp_path)
    assert (error.value.step, error.value.workers) == (4, [2])
    assert 'do not agree on params.Dense_0.bias: device(s) 2' in str(error.value)


def test_several_processes_start_alike_or_not_at_all(data_dir, tmp_path, monkeypatch):
    """Each draws the first parameters for itself, and with another setting of JAX draws others."""
    run = experiment.build(fixtures.tiny_config(data_dir))
    poison = with_unequal(lambda state: state.params['Dense_0']['kernel'])
    monkeypatch.setitem(run.steps.__dict__, 'init', lambda init=run.steps.init: poison(init()))
    monkeypatch.setattr(
        loop, '_check_same', lambda run: monkeypatch.setattr(loop.processes, 'count', lambda: 2)
    )
    with pytest.raises(
        loop.ReplicasDifferError, match=r'after step 0 .* do not agree on params.Dense_0.kern'
    ):
        fixtures.train(fixtures.tiny_config(data_dir), tmp_path)
    assert not (tmp_path / 'metrics.jsonl').exists()


@pytest.mark.parametrize(('deliver', 'step'), [(bool, 5), (signal.raise_signal, 3)])
def test_no_checkpoint_is_made_of_workers_that_differ(data_dir, tmp_path, deliver, step):
    """A checkpoint takes one copy and would hide it: the check comes before, whatever its period."""
    config = fixtures.tiny_config(data_dir, check_replicas_every=1000)
    unequal = with_unequal(lambda state: optax.tree.get(state.opt_state, 'key'))
    poison = fixtures.poisoned_state(3, lambda state: (deliver(signal.SIGTERM), unequal(state))[1])
    with poison, pytest.raises(loop.ReplicasDifferError) as error:
        fixtures.train(config, tmp_path)
    # Different blocks in the steps until 5 have made the parameters differ as well.
    assert (error.value.step, len(error.value.leaves) > 1) == (step, step == 5)
    assert not (tmp_path / 'checkpoints').exists()


def test_the_variance_between_workers_is_that_of_workers_of_several_devices(data_dir):
    """Devices of a worker have parts of its batch, whose gradients differ more than those of the whole."""
    runs = [experiment.build(fixtures.tiny_config(data_dir, num_workers=2, inside=n)) for n in (1, 2)]
    figures = []
    for run in runs:
        batch = run.workers.place(next(run.train_batches(0)))
        figures.append(jax.device_get(run.steps.diagnose(run.steps.init(), batch)))
    # Nearly: batch normalisation sees a device's part. That of devices is larger by far more.
    np.testing.assert_allclose(figures[1]['variance'], figures[0]['variance'], rtol=0.02)


def test_the_devices_of_a_single_worker_agree(data_dir):
    """They have no others to exchange anything with."""
    experiment.build(fixtures.tiny_config(data_dir, num_workers=1, inside=4)).check_agreement()
