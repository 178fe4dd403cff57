"""Several processes that train together: the same trajectory as one, and what happens where one dies."""

import json
import os
import signal
from unittest import mock

import jax
import numpy as np
import pytest
import training_fixtures as fixtures

from benchmarks.reliability import processes as launched
from def_jax.tools.place import Place, find
from def_jax.trainer.launch import devices, processes
from def_jax.trainer.launch.exits import LostProcessError
from def_jax.trainer.workers import ShardedWorkers

SHORT = [
    *launched.SMALL,
    *('--config.workers_per_device=1', '--config.train_examples=256'),
    *('--config.batch_size=64', '--config.ratio=8', '--config.num_epochs=3', '--config.log_every_steps=3'),
    *('--config.eval_every_epochs=1', '--config.diagnostics_every=6', '--config.check_replicas_every=8'),
    '--config.keep_checkpoints=10',
]


# --- Where a process stands ---


@pytest.mark.parametrize(
    ('environment', 'place'),
    [
        ({'SLURM_STEP_NUM_TASKS': '1', 'SLURM_PROCID': '0'}, None),
        ({'SLURM_NTASKS': '4', 'SLURM_PROCID': '0'}, None),  # a batch script that runs train.py without srun
        ({'SLURM_STEP_NUM_TASKS': '4', 'SLURM_PROCID': '2'}, Place(None, 4, 2)),
        ({'OMPI_COMM_WORLD_SIZE': '2', 'OMPI_COMM_WORLD_RANK': '1'}, Place(None, 2, 1)),
        ({'TPU_WORKER_HOSTNAMES': 'localhost'}, None),
        ({'TPU_WORKER_HOSTNAMES': 'a,b'}, Place(None, None, None)),
    ],
)
def test_launchers_are_recognised_and_flags_go_before_them(environment, place):
    assert find(None, None, None, environment) == place
    assert find('host:1', 2, 1, environment) == Place('host:1', 2, 1)
    assert find('host:1', 1, 0, environment) is None


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
        find(*given, {})
    assert words in str(error.value)


def test_workers_are_shared_out_among_processes(monkeypatch):
    owners = [mock.Mock(process_index=i // 3) for i in range(6)]
    monkeypatch.setattr(jax, 'process_count', lambda: 2)
    monkeypatch.setattr(jax, 'devices', lambda: owners)
    assert devices.worker_devices(4, fake=False) == [owners[i] for i in (0, 1, 3, 4)]
    with pytest.raises(ValueError, match=r'3 devices are needed .* must divide among the 2 processes'):
        devices.worker_devices(3, fake=False)
    with pytest.raises(ValueError, match=r'8 devices are needed .* but 6 are here .*fake_devices=True'):
        devices.worker_devices(8, fake=False)
    with pytest.raises(ValueError, match=r'config\.shards_per_worker=2: all devices of a worker must belong'):
        ShardedWorkers(owners, 2)


def test_rows_of_processes_lie_where_their_devices_do(monkeypatch):
    """Whose order is the mesh's, not that of the processes."""
    owners = [mock.Mock(process_index=process) for process in (1, 0, 0, 1)]
    told = np.array([[[1], [2]], [[0], [3]]])  # of each process, which has found its rows by `rows`
    monkeypatch.setattr(processes, '_has_peers', lambda: True)
    monkeypatch.setattr(processes.multihost_utils, 'process_allgather', lambda values: told)
    monkeypatch.setattr(jax, 'process_index', lambda: 1)
    assert processes.rows(owners) == [0, 3]
    assert processes.gather(told[1], owners).tolist() == [[0], [1], [2], [3]]


# --- Runs ---


def under_srun(folder, flags, environment):
    """Two processes, as srun starts them."""
    slurm = environment | {
        'SLURM_JOB_ID': str(os.getpid()),  # JAX makes the port of it
        'SLURM_STEP_NODELIST': 'localhost',
        **{f'SLURM_{name}': '2' for name in ('NTASKS', 'STEP_NUM_TASKS', 'STEP_NUM_NODES')},
    }
    places = [{'SLURM_PROCID': str(i), 'SLURM_LOCALID': str(i)} for i in range(2)]
    return [launched.start(folder, flags, slurm | place, f'-{i}') for i, place in enumerate(places)]


def logs(folder):
    return [folder.with_name(f'{folder.name}-{i}.log').read_text() for i in range(2)]


def assert_close(folder, reference, step, tolerance):
    ours, theirs = launched.saved_state(folder, step), launched.saved_state(reference, step)
    assert ours.keys() == theirs.keys() and len(ours) > 10
    for name, array in ours.items():
        assert (array.shape, array.dtype) == (theirs[name].shape, theirs[name].dtype)
        np.testing.assert_allclose(array, theirs[name], rtol=tolerance, atol=tolerance, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(('workers', 'shards'), [(4, 1), (2, 2)])
def test_two_processes_train_as_one_and_end_and_resume_together(environment, tmp_path, workers, shards):
    """Whole workers of which one process is killed; sharded ones of which one is told to stop."""
    folder, alone = tmp_path / 'run', tmp_path / 'alone'
    flags = [*SHORT, f'--config.num_workers={workers}', f'--config.shards_per_worker={shards}']
    if shards == 1:
        pair = under_srun(folder, flags, environment)
        assert launched.wait_for(pair[0], lambda: launched.checkpoint_steps(folder))
        assert launched.kill(pair[1])
        assert launched.start(alone, flags, environment).wait(timeout=900) == 0  # meanwhile
        assert pair[0].wait(timeout=90) == 6  # after 30 seconds without a heartbeat; JAX waits for 100
        assert 'Usually another process of the run has died' in logs(folder)[0]
    else:
        pair = launched.start_several(folder, flags, environment)
        assert launched.wait_for(pair[0], lambda: launched.log_size(folder))
        pair[1].send_signal(signal.SIGTERM)
        assert [process.wait(timeout=900) for process in pair] == [4, 4]
        assert 'stopped by SIGTERM after step' in logs(folder)[1]
        assert 'stopped by a signal to another process after step' in logs(folder)[0]
        assert launched.start(alone, flags, environment).wait(timeout=900) == 0

    pair = launched.start_several(folder, flags, environment)
    assert [process.wait(timeout=900) for process in pair] == [0, 0], logs(folder)
    first, second = logs(folder)
    assert 'written to' in first and 'written to' not in second
    assert ('ms as an all-reduce alone, ' in first) == (shards == 1)  # of a shard's it would be another
    result = json.loads((folder / 'result.json').read_text())
    assert result['environment']['num_devices'] == 4 and result['environment']['num_processes'] == 2

    # Sums over workers are made in another order: the runs differ in the last bits.
    assert {*launched.checkpoint_steps(folder)} >= {*launched.checkpoint_steps(alone)} == {4, 8, 12}
    for step in range(4, 13, 4):
        assert_close(folder, alone, step, 1e-5)
    ours, theirs = launched.records(folder), launched.records(alone)
    assert [record.keys() for record in ours] == [record.keys() for record in theirs]
    for record, expected in zip(ours, theirs, strict=True):
        assert record == pytest.approx(expected, rel=1e-4, abs=1e-6)


# --- Devices that JAX cannot start ---


@pytest.mark.parametrize(
    ('text', 'kind'),
    [
        ('RESOURCE_EXHAUSTED: Out of memory', jax.errors.JaxRuntimeError),
        ('INTERNAL: Gloo all-reduce failed', LostProcessError),
    ],
)
def test_memory_that_runs_out_is_no_lost_process(monkeypatch, text, kind):
    monkeypatch.setattr(jax, 'process_count', lambda: 2)
    with pytest.raises(kind, match=text), processes.naming_the_lost():
        raise jax.errors.JaxRuntimeError(text)


def test_a_platform_that_is_not_here_is_refused_in_one_line(monkeypatch):
    """As with JAX_PLATFORMS=cuda on a machine without a GPU."""

    def fail():
        raise RuntimeError("Unable to initialize backend 'cuda': ...\nmore")

    monkeypatch.setenv('JAX_PLATFORMS', 'cuda')
    monkeypatch.setattr(jax, 'devices', fail)
    message = r"JAX_PLATFORMS='cuda' cannot be used .Unable to initialize backend 'cuda'.*Unset it, or"
    with fixtures.refused(message):
        devices.worker_devices(1, fake=False)


@pytest.mark.parametrize(
    ('platforms', 'visible', 'refused'),
    [(None, None, True), (None, '0,1', True), ('cpu', None, False), (None, '-1', False)],
)
def test_gpus_that_this_jax_cannot_use_are_refused(monkeypatch, tmp_path, platforms, visible, refused):
    """As with `pip install .` alone on a machine with GPUs: JAX would train on the CPU."""
    for name in ('nvidia3', 'nvidia10', 'nvidiactl', 'nvidia-uvm'):
        (tmp_path / name).touch()
    monkeypatch.setattr(devices, '_DEVICE_FILES', f'{tmp_path}/nvidia[0-9]*')
    monkeypatch.delenv('JAX_PLATFORMS', raising=False)
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    if visible is not None:
        monkeypatch.setenv('CUDA_VISIBLE_DEVICES', visible)
    before = jax.config.jax_platforms
    jax.config.update('jax_platforms', platforms)
    try:
        if refused:
            with pytest.raises(ValueError, match=r'has NVIDIA GPUs \(2\), but JAX sees none.*training,cuda'):
                devices.worker_devices(1, fake=False)
        else:
            assert devices.worker_devices(1, fake=False)[0].platform == 'cpu'
    finally:
        jax.config.update('jax_platforms', before)
