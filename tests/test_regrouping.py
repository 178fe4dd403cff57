"""A run of K workers goes on with K': x as it was, y to rounding, momentum and statistics by their mean."""

import dataclasses
import io
import json
import shutil
import signal
from unittest import mock

import jax
import numpy as np
import pytest
import rich.console
import training_fixtures as fixtures

from def_jax.training import input_pipeline, regrouping, steps, trainer
from def_jax.training.experiment import build

STEP = 7


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
    with fixtures.tiny_network(tmp_path_factory) as folder:
        yield folder


def config_of(data_dir, workers, per_device=1, **changes):
    batch = round(40 / workers) * workers
    changes = {'average_every': 0, 'num_workers': workers, 'workers_per_device': per_device} | changes
    return fixtures.tiny_config(data_dir, **{'batch_size': batch} | changes)


@pytest.fixture(scope='module')
def saved(data_dir, tmp_path_factory):
    """Makes a folder with a checkpoint of `STEP`, in which nothing is zero and no two workers agree."""
    made = {}

    def save(workers, per_device=1, **changes):
        key = (workers, per_device, *changes.items())
        if key not in made:
            run = build(config_of(data_dir, workers, per_device, **changes))
            random = np.random.default_rng(workers)

            def filled(leaf):
                if leaf.dtype != np.float32:
                    return np.asarray(leaf)
                return random.normal(size=leaf.shape).astype(np.float32)

            like = steps.make_init(run)()
            state = jax.tree.map(filled, like).replace(step=np.int32(STEP))
            if changes.get('method') == 'ef21':
                state = state.replace(opt_state=tuple(map(with_mean, state.opt_state)))
            folder = tmp_path_factory.mktemp('saved')
            manager = fixtures.manager_of(folder, run)
            manager.save(jax.tree.map(lambda leaf, to: jax.device_put(leaf, to.sharding), state, like))
            manager.close()
            made[key] = folder, run, state
        return made[key]

    return save


def with_mean(link):
    """The state of EF21 with g = mean_k g_k."""
    if not hasattr(link, 'local'):
        return link
    return link._replace(mean=jax.tree.map(lambda g: g.mean(0), link.local))


def restore(folder, run):
    manager = fixtures.manager_of(folder, run)
    try:
        return manager.restore(steps.make_init(run)()), manager.notes
    finally:
        manager.close()


def by_worker(tree, shape):
    """Arrays [K, ...] as float64."""
    return jax.tree.map(lambda a: np.float64(a).reshape(-1, *a.shape[len(shape) :]), tree)


def output(state, run):
    """y in float64, flattened."""
    residual = by_worker(fixtures.residual(state), run.workers_shape)
    y = jax.tree.map(lambda x, r: np.float64(x) + r.mean(0), state.params, residual)
    return np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(y)])


# From K workers to K', each with the number on a device: fewer, more, no divisor, one, fake to virtual.
CHANGES = [((8, 1), (4, 1)), ((4, 1), (8, 1)), ((8, 1), (3, 1)), ((16, 2), (1, 1)), ((8, 1), (16, 4))]


@pytest.mark.parametrize(('old', 'new'), CHANGES, ids=lambda value: f'{value[0]}' if value else None)
def test_the_state_is_that_of_the_mean_worker(saved, data_dir, old, new):
    folder, old_run, before = saved(*old)
    new_run = build(config_of(data_dir, *new))
    placed, notes = restore(folder, new_run)
    like = steps.make_init(new_run)()
    assert jax.tree.map(lambda x: (x.shape, x.sharding), placed) == jax.tree.map(
        lambda x: (x.shape, x.sharding), like
    )
    after = jax.tree.map(np.asarray, placed)
    for shared in ('step', 'key', 'params'):
        fixtures.assert_same_bits(getattr(after, shared), getattr(before, shared))
    assert int(after.step) == STEP

    # y itself, by both states' own means.
    drift = np.abs(output(after, new_run) - output(before, old_run)).max()
    assert drift <= np.finfo(np.float32).eps * np.abs(output(before, old_run)).max()
    for part in (fixtures.residual, fixtures.momentum, lambda state: state.batch_stats):
        of_old, of_new = (
            by_worker(part(before), old_run.workers_shape),
            by_worker(part(after), new_run.workers_shape),
        )
        for a, b in zip(jax.tree.leaves(of_old), jax.tree.leaves(of_new), strict=True):
            assert len(b) == new[0] and (b == b[0]).all()
            np.testing.assert_array_equal(b[0], np.float32(a.mean(0)))
    assert any(len({worker.tobytes() for worker in a}) > 1 for a in jax.tree.leaves(of_old))
    assert f'workers: {old[0]} before, {new[0]} now' in notes[0] and 'mean' in notes[0]


def test_y_is_evaluated_where_it_was(saved, data_dir):
    """Computed as an evaluation computes it, in float32 on the devices."""
    folder, old_run, before = saved(8)
    new_run = build(config_of(data_dir, 3))
    placed, _ = restore(folder, new_run)
    y = jax.device_get(steps.make_outputs(new_run)(placed)['y']['params'])
    y = np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(y)])
    np.testing.assert_allclose(y, output(before, old_run), rtol=0, atol=4e-7 * np.abs(y).max())


@pytest.mark.parametrize(('old', 'new'), [((8, 1), (8, 4)), ((8, 4), (8, 1)), ((8, 2), (8, 4))])
def test_on_other_devices_the_same_workers_keep_every_bit(saved, data_dir, old, new):
    folder, old_run, before = saved(*old)
    new_run = build(config_of(data_dir, *new))
    after, notes = restore(folder, new_run)
    expected = regrouping.Layout.of(old_run).map(
        lambda own, leaf: leaf.reshape(8, *leaf.shape[len(old_run.workers_shape) :]) if own else leaf, before
    )
    found = regrouping.Layout.of(new_run).map(
        lambda own, leaf: (
            leaf.reshape(8, *leaf.shape[len(new_run.workers_shape) :]) if own else np.asarray(leaf)
        ),
        jax.tree.map(np.asarray, after),
    )
    fixtures.assert_same_bits(found, expected)
    assert 'the same 8' in notes[0]


def test_ef21_keeps_its_sum(saved, data_dir):
    """g = mean_k g_k, on which EF21 rests, holds for the new workers too."""
    folder, _, before = saved(4, method='ef21', average_every=0)
    after, _ = restore(folder, build(config_of(data_dir, 2, method='ef21')))
    (state,) = (s for s in after.opt_state if hasattr(s, 'local'))
    (old,) = (s for s in before.opt_state if hasattr(s, 'local'))
    fixtures.assert_same_bits(jax.device_get(state.mean), old.mean)
    for local, mean in zip(jax.tree.leaves(state.local), jax.tree.leaves(state.mean), strict=True):
        np.testing.assert_allclose(
            np.asarray(local), np.broadcast_to(mean, local.shape), rtol=1e-4, atol=1e-6
        )


# --- The whole trainer ---


@pytest.fixture(scope='module')
def stopped(data_dir, tmp_path_factory):
    """A run of four workers that was stopped by a signal after 7 steps, with losses not yet recorded."""
    folder, train_batch = tmp_path_factory.mktemp('stopped'), input_pipeline.train_batch

    def signalling(*args, **kwargs):
        if kwargs['step'] == STEP - 1:
            signal.raise_signal(signal.SIGTERM)
        return train_batch(*args, **kwargs)

    interrupted = pytest.raises(trainer.InterruptedRunError)
    with mock.patch.object(input_pipeline, 'train_batch', signalling), interrupted:
        fixtures.train(config_of(data_dir, 4), folder)
    return folder


def test_a_run_goes_on_with_other_workers_and_says_so(data_dir, stopped, tmp_path):
    folder = shutil.copytree(stopped, tmp_path / 'run')
    console = rich.console.Console(record=True, width=300, file=io.StringIO())
    result = fixtures.train(config_of(data_dir, 3), folder, console)
    text = console.export_text()
    assert 'resuming at step 7' in text
    assert 'workers: 4 before, 3 now; every one takes on the mean of the 4 residuals, momenta and' in text
    assert 'batch: 40 images before, 39 now; step numbers go on' in text
    assert (result['config']['num_workers'], result['config']['batch_size']) == (3, 39)
    assert json.loads((folder / 'config.json').read_text())['num_workers'] == 3
    training = [r['step'] for r in fixtures.records(folder) if 'loss' in r]
    assert training == [3, 5, 6, 9, 10, 12, 15, 18, 20]
    assert sorted(path.name for path in (folder / 'checkpoints').iterdir()) == ['15', '20']


def test_a_batch_with_which_the_run_is_over_is_refused(data_dir, stopped, tmp_path):
    folder = shutil.copytree(stopped, tmp_path / 'run')
    before = {path: path.read_bytes() for path in folder.rglob('*') if path.is_file()}
    with pytest.raises(
        ValueError, match=r'is of step 7, but with config\.batch_size=150 .* has only 4 steps'
    ):
        fixtures.train(config_of(data_dir, 3, batch_size=150), folder)
    assert before == {path: path.read_bytes() for path in folder.rglob('*') if path.is_file()}


def test_the_same_batch_gives_the_same_images_at_every_step(data_dir):
    few, many = (build(config_of(data_dir, workers)) for workers in (2, 8))
    for _, a, b in zip(range(3), few.train_batches(STEP), many.train_batches(STEP), strict=False):
        assert a['image'].shape[:2] == (2, 20) and b['image'].shape[:2] == (8, 5)
        np.testing.assert_array_equal(a['image'].reshape(b['image'].shape), b['image'])


def test_layouts_name_what_differs_between_workers(data_dir):
    layout = regrouping.Layout.of(build(config_of(data_dir, 4)))
    assert dataclasses.asdict(layout)['workers'] == (4,)
    own = layout.own
    assert (own.step, own.key, own.params, own.batch_stats) == (False, False, False, True)
    assert all(jax.tree.leaves(fixtures.residual(own))) and all(jax.tree.leaves(fixtures.momentum(own)))
