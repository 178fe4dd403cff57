"""A method by its import path: any optax transformation that averages over the workers."""

import jax
import numpy as np
import pytest
import training_fixtures as fixtures

from def_jax.trainer import experiment, loop

HERE = 'trainer.configuration.factories_to_find'


@pytest.mark.parametrize('workers_per_device', [1, 2])
def test_a_plain_transformation_trains_as_the_librarys_own(data_dir, tmp_path, workers_per_device):
    """Where everything is sent it is uncompressed SGD."""
    losses = []
    for method in ('sgd', f'{HERE}:average'):
        changes = {'method': method, 'ratio': 1, 'workers_per_device': workers_per_device, 'num_epochs': 1}
        result = fixtures.train(fixtures.tiny_config(data_dir, **changes), tmp_path / method[-3:])
        losses.append(
            [record['loss'] for record in fixtures.records(tmp_path / method[-3:]) if 'loss' in record]
        )
        assert result['points'] == ['x'] and result['communication']['true_ratio'] == 1
    assert result['answers'] == {'x': 'average'}
    np.testing.assert_allclose(*losses, rtol=1e-5)


def test_its_state_is_of_each_worker_and_an_interrupted_run_goes_on(data_dir, recorded, tmp_path):
    config = fixtures.tiny_config(
        data_dir, method=f'{HERE}:average', method_options={'scale': 0.5}, num_epochs=2
    )
    whole = fixtures.train(config, tmp_path / 'whole')
    with fixtures.signalled(15, 7), pytest.raises(loop.InterruptedRunError):
        fixtures.train(config, tmp_path / 'interrupted')
    assert (
        fixtures.train(config, tmp_path / 'interrupted')['metrics']['train_loss']
        == whole['metrics']['train_loss']
    )
    run = experiment.build(config)
    state = fixtures.restored(tmp_path / 'whole', run)
    residuals = [np.asarray(x) for x in jax.tree.leaves(state.opt_state[1].state)]
    assert all(np.ptp(x, axis=0).max() > 0 for x in residuals)  # [K, ...]


def test_a_method_that_sends_nothing_is_refused(data_dir, tmp_path):
    with fixtures.refused(
        r"method='.*:apart' sends nothing, so workers would drift apart. Average over its axis_name"
    ):
        fixtures.train(fixtures.tiny_config(data_dir, method=f'{HERE}:apart'), tmp_path / 'run')
    assert not (tmp_path / 'run').exists()
