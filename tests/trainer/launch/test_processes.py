"""Several processes that train together: the same trajectory as one, and what happens where one dies."""

import json
import os
import signal
from unittest import mock

import jax
import numpy as np
import pytest
from faults import processes as launched

from def_jax.trainer.launch import devices, processes
from def_jax.trainer.workers import ShardedWorkers

SHORT = [
    '--config=configs/digits.py',
    *('--config.num_workers=4', '--config.workers_per_device=1', '--config.train_examples=256'),
    *('--config.batch_size=64', '--config.ratio=8', '--config.num_epochs=6', '--config.log_every_steps=3'),
    *('--config.eval_every_epochs=1', '--config.diagnostics_every=6', '--config.check_replicas_every=8'),
    '--config.keep_checkpoints=10',
]


# --- Where a process stands ---


@pytest.mark.parametrize(
    ('environment', 'place'),
    [
        ({'SLURM_STEP_NUM_TASKS': '1', 'SLURM_PROCID': '0'}, None),
        ({'SLURM_NTASKS': '4', 'SLURM_PROCID': '0'}, None),  # a batch script that runs train.py without srun
        ({'SLURM_STEP_NUM_TASKS': '4', 'SLURM_PROCID': '2'}, processes.Place(None, 4, 2)),
        ({'OMPI_COMM_WORLD_SIZE': '2', 'OMPI_COMM_WORLD_RANK': '1'}, processes.Place(None, 2, 1)),
        ({'TPU_WORKER_HOSTNAMES': 'localhost'}, None),
        ({'TPU_WORKER_HOSTNAMES': 'a,b'}, processes.Place(None, None, None)),
    ],
)
def test_launchers_are_recognised(environment, place):
    assert processes.find(None, None, None, environment) == place


def test_flags_go_before_the_launcher():
    slurm = {'SLURM_STEP_NUM_TASKS': '4', 'SLURM_PROCID': '2'}
    assert processes.find('host:1', 2, 1, slurm) == processes.Place('host:1', 2, 1)
    assert processes.find('host:1', 1, 0, slurm) is None


@pytest.mark.parametrize(
    ('given', 'words'),
    [
        (('host:1', None, None), '--num_processes and --process_id must be given'),
        ((None, 2, 0), '--coordinator_address must be given'),
        (('host', 2, 0), '--coordinator_address=host must be HOST:PORT'),
        ((':1', 2, 0), 'must be HOST:PORT'),
        (('host:1', 2, 2), '--process_id=2 must be in [0, --num_processes=2)'),
    ],
)
def test_flags_that_are_wrong_are_refused(given, words):
    with pytest.raises(ValueError) as error:
        processes.find(*given, {})
    assert words in str(error.value)


def test_workers_are_shared_out_among_processes(monkeypatch):
    owners = [mock.Mock(process_index=i // 3) for i in range(6)]
    monkeypatch.setattr(jax, 'process_count', lambda: 2)
    monkeypatch.setattr(jax, 'devices', lambda: owners)
    assert devices.worker_devices(4, fake=False) == [owners[i] for i in (0, 1, 3, 4)]
    with pytest.raises(ValueError, match=r'3 devices are needed .* must divide among the 2 processes'):
        devices.worker_devices(3, fake=False)
    with pytest.raises(ValueError, match='8 devices are needed'):
        devices.worker_devices(8, fake=False)
    with pytest.raises(ValueError, match=r'config\.shards_per_worker=2: all devices of a worker must belong'):
        ShardedWorkers(owners, 2)


# --- Runs ---


def under_srun(folder, environment):
    """Two processes, as srun starts them."""
    slurm = {
        'SLURM_JOB_ID': str(os.getpid()),  # JAX makes the port of it
        'SLURM_STEP_NODELIST': 'localhost',
        'SLURM_NTASKS': '2',
        'SLURM_STEP_NUM_TASKS': '2',
        'SLURM_STEP_NUM_NODES': '1',
    }
    return [
        launched.start(
            folder, SHORT, environment | slurm | {'SLURM_PROCID': str(i), 'SLURM_LOCALID': str(i)}, f'-{i}'
        )
        for i in range(2)
    ]


def logs(folder):
    return [folder.with_name(f'{folder.name}-{i}.log').read_text() for i in range(2)]


def assert_close(folder, reference, step, tolerance):
    ours, theirs = launched.saved_state(folder, step), launched.saved_state(reference, step)
    assert ours.keys() == theirs.keys() and len(ours) > 50
    for name, array in ours.items():
        assert (array.shape, array.dtype) == (theirs[name].shape, theirs[name].dtype)
        np.testing.assert_allclose(array, theirs[name], rtol=tolerance, atol=tolerance, err_msg=name)


@pytest.mark.slow
def test_two_processes_train_as_one_and_end_and_resume_together(environment, tmp_path):
    """The short form of benchmarks/reliability/kills.py --processes=2: the bits of a pair left alone."""
    folder, alone = tmp_path / 'run', tmp_path / 'alone'
    pair = under_srun(folder, environment)
    assert launched.wait_for(pair[0], lambda: launched.checkpoint_steps(folder))
    assert launched.kill(pair[1])
    assert pair[0].wait(timeout=90) == 6  # after 30 seconds without a heartbeat; JAX waits for 100
    assert 'Usually another process of the run has died' in logs(folder)[0]

    before = launched.log_size(folder)
    pair = launched.start_several(folder, SHORT, environment)
    assert launched.wait_for(pair[0], lambda: launched.log_size(folder) != before)
    pair[1].send_signal(signal.SIGTERM)
    assert [process.wait(timeout=900) for process in pair] == [4, 4]
    assert 'stopped by SIGTERM after step' in logs(folder)[1]
    assert 'stopped by a signal to another process after step' in logs(folder)[0]

    pair = launched.start_several(folder, SHORT, environment)
    assert [process.wait(timeout=900) for process in pair] == [0, 0], logs(folder)
    first, second = logs(folder)
    assert 'written to' in first and 'written to' not in second
    result = json.loads((folder / 'result.json').read_text())
    assert result['environment']['num_devices'] == 4 and result['environment']['num_processes'] == 2

    assert launched.start(alone, SHORT, environment).wait(timeout=900) == 0
    # Sums over workers are made in another order. Within some steps a rounding decides a tie in a pooling
    # window, and from there on the runs part; until then they differ in the last bits.
    assert (
        set(launched.checkpoint_steps(folder))
        >= set(launched.checkpoint_steps(alone))
        == set(range(4, 25, 4))
    )
    for step in (4, 8, 12):
        assert_close(folder, alone, step, 1e-6)
    ours, theirs = launched.records(folder), launched.records(alone)
    assert [record.keys() for record in ours] == [record.keys() for record in theirs]
    early = [(record, expected) for record, expected in zip(ours, theirs, strict=True) if record['step'] < 13]
    assert len(early) > 9
    for record, expected in early:
        assert record == pytest.approx(expected, rel=1e-4, abs=1e-6)
