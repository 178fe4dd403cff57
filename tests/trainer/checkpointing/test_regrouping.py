"""A run of K workers goes on with K': x as it was, y to rounding, momentum and statistics by their mean."""

import dataclasses
import json
import signal

import chex
import jax
import numpy as np
import optax
import pytest
import training_fixtures as fixtures

from def_jax.state.ownership import each, link_states
from def_jax.state.regrouping import regroup, released
from def_jax.trainer import loop
from def_jax.trainer.checkpointing.checkpoints import Checkpoints
from def_jax.trainer.data.dataset import Dataset
from def_jax.trainer.experiment import build

STEP = 7


@pytest.mark.parametrize(
    ('workers', 'per_device'),
    [
        (3, 1),  # a number that does not divide the other, each with one on a device
        (8, 4),  # more, several on a device
        (1, 1),
    ],
)
def test_the_state_is_that_of_the_mean_worker(recorded, data_dir, workers, per_device):
    """All else but their numbers stays bit for bit; so y stays to the rounding of the mean residual."""
    sizes = {'num_workers': workers, 'workers_per_device': per_device, 'batch_size': 40 // workers * workers}
    run, before = build(fixtures.tiny_config(data_dir, **sizes)), fixtures.gathered(recorded.states[STEP])
    after = regroup(before, run.is_per_worker, recorded.experiment.workers.shape, run.workers.shape)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, jax.eval_shape(run.steps.init))

    def expected(own, x):
        if not own:
            return x
        mean = x.max(0) if np.issubdtype(x.dtype, np.integer) else x.mean(0, dtype=np.float64).astype(x.dtype)
        return np.broadcast_to(mean, (*run.workers.shape, *mean.shape))

    fixtures.assert_same_bits(after, each(expected, run.is_per_worker, released(before)))


# --- The whole trainer ---


def test_a_run_goes_on_with_other_workers_and_says_so(data_dir, tmp_path):
    """A run of four that was stopped after 7 steps, with losses not yet recorded."""
    with fixtures.signalled(signal.SIGTERM, STEP), pytest.raises(loop.InterruptedRunError):
        fixtures.train(fixtures.tiny_config(data_dir), tmp_path)
    before = fixtures.contents(tmp_path)
    for changes, message in (
        ({'seed': 1}, 'another configuration .seed: 0 there, 1 here'),
        ({'num_workers': 3, 'batch_size': 150}, r'step 7, but with config\.batch_size=150 .* only 4 steps'),
    ):
        with pytest.raises(ValueError, match=message):
            fixtures.train(fixtures.tiny_config(data_dir, **changes), tmp_path)
        assert fixtures.contents(tmp_path) == before
    config = fixtures.tiny_config(data_dir, num_workers=3, batch_size=39)
    result, text = fixtures.printed(config, tmp_path)
    assert 'resuming at step 7' in text
    assert 'workers: 4 before, 3 now; each receives the mean of the 4 residuals, momenta and' in text
    assert 'batch: 40 examples before, 39 now; epochs count by the new' in text
    assert (result['config']['num_workers'], result['config']['batch_size']) == (3, 39)
    assert json.loads((tmp_path / 'config.json').read_text())['num_workers'] == 3
    training = [r['step'] for r in fixtures.records(tmp_path) if 'loss' in r]
    assert training == [3, 5, 6, 9, 10, 12, 15, 18, 20]
    assert sorted(path.name for path in (tmp_path / 'checkpoints').iterdir()) == ['15', '20']


@pytest.mark.parametrize('sizes', [{'shards_per_worker': 2}, {'workers_per_device': 2}, {'num_workers': 2}])
def test_typed_keys_of_an_optimizer_are_restored(data_dir, tmp_path, sizes):
    """NumPy can't hold them; other workers get keys as they get means."""
    options = {'optimizer': 'trainer.configuration.factories_to_find:noisy', 'weight_decay': 0.0}
    runs = [build(fixtures.tiny_config(data_dir, **options | changes)) for changes in ({}, sizes)]
    state, like = (run.steps.init() for run in runs)
    keys = jax.random.split(jax.random.key(0), fixtures.NUM_WORKERS)
    placed = jax.device_put(keys, optax.tree.get(state, 'rng_key').sharding)
    with Checkpoints(tmp_path, runs[0]) as manager:
        manager.save(optax.tree.set(state, rng_key=placed))
    with Checkpoints(tmp_path, runs[1]) as manager:
        restored = manager.restore(like)
    found, of_init = (optax.tree.get(tree, 'rng_key') for tree in (restored, like))
    assert found.sharding == of_init.sharding
    words = jax.random.key_data(keys[: runs[1].config.num_workers])
    assert np.array_equal(jax.random.key_data(found), words.reshape(*of_init.shape, -1))


def test_devices_become_one_worker(data_dir, tmp_path):
    """Four workers of one device are stopped, two of two devices go on, are stopped, and go on again."""
    with fixtures.signalled(signal.SIGTERM, STEP), pytest.raises(loop.InterruptedRunError):
        fixtures.train(fixtures.tiny_config(data_dir, ratio=12), tmp_path)
    config = fixtures.tiny_config(data_dir, ratio=12, num_workers=2, inside=2)
    with fixtures.signalled(signal.SIGTERM, STEP + 5), pytest.raises(loop.InterruptedRunError):
        fixtures.train(config, tmp_path)
    result, text = fixtures.printed(config, tmp_path)
    assert '2 of 2 devices each on 4 fake CPU device(s)' in text
    assert (result['config']['num_workers'], result['config']['inside']) == (2, 2)
    experiment = build(config)
    with Checkpoints(tmp_path, experiment) as manager:
        state = manager.restore(experiment.steps.init())
    for link in link_states(state.opt_state):
        assert link.worker.tolist() == [[0, 2], [0, 2], [1, 2], [1, 2]]
        for residual in map(np.asarray, jax.tree.leaves(link.residual)):
            assert (residual[::2] == residual[1::2]).all()
        assert any((np.asarray(x)[0] != np.asarray(x)[2]).any() for x in jax.tree.leaves(link.residual))
    # A step of four workers sends 15 elements, and one of two devices 2 x 8.
    sent = {r['step']: r['megabytes_sent'] for r in fixtures.records(tmp_path) if 'megabytes_sent' in r}
    assert sent == {step: (60 * min(step, STEP) + 64 * max(step - STEP, 0)) / 1e6 for step in sent}
    assert result['communication']['megabytes_sent'] == sent[fixtures.NUM_STEPS]


def test_other_data_and_another_length_are_said(recorded, tmp_path, monkeypatch):
    fixtures.save(tmp_path, recorded, STEP)
    monkeypatch.setattr(Dataset, 'fingerprint', lambda self: 'other')
    shorter = dataclasses.replace(recorded.experiment, num_steps=fixtures.NUM_STEPS - 1)
    with Checkpoints(tmp_path, shorter) as manager:
        manager.restore(shorter.steps.init())
    assert [note.partition(';')[0] for note in manager.notes] == [
        f'steps: {fixtures.NUM_STEPS} in all before, {fixtures.NUM_STEPS - 1} now',
        'data: other examples than before',
    ]
