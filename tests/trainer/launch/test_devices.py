"""Devices that JAX cannot start are refused in one line."""

import subprocess

import jax
import pytest
import training_fixtures as fixtures

from def_jax.trainer.launch import devices


def test_a_platform_that_is_not_here_is_refused_in_one_line(monkeypatch):
    """As with JAX_PLATFORMS=cuda on a machine without a GPU."""

    def fail():
        raise RuntimeError("Unable to initialize backend 'cuda': ...\nmore")

    monkeypatch.setenv('JAX_PLATFORMS', 'cuda')
    monkeypatch.setattr(jax, 'devices', fail)
    message = r"JAX_PLATFORMS='cuda' cannot be used .Unable to initialize backend 'cuda'.*Unset it, or"
    with fixtures.refused(message):
        devices.worker_devices(1, fake=False)


def nvidia_smi(monkeypatch, output):
    """The program prints `output`; None for a machine that does not have it."""

    def run(command, **options):
        if output is None:
            raise FileNotFoundError(command[0])
        return subprocess.CompletedProcess(command, 0, output, '')

    monkeypatch.setattr(subprocess, 'run', run)


@pytest.fixture(autouse=True)
def device_files(tmp_path, monkeypatch):
    """Those of two GPUs, as in a container that has no nvidia-smi."""
    for name in ('nvidia3', 'nvidia10', 'nvidiactl', 'nvidia-uvm'):
        (tmp_path / name).touch()
    monkeypatch.setattr(devices, '_DEVICE_FILES', f'{tmp_path}/nvidia[0-9]*')


@pytest.mark.parametrize(
    ('environment', 'output', 'expected'),
    [
        ({}, '0\n1\n', ['0', '1']),
        ({'CUDA_VISIBLE_DEVICES': '5, GPU-8932f937,7'}, '0\n1\n', ['5', 'GPU-8932f937', '7']),
        ({'CUDA_VISIBLE_DEVICES': '-1'}, '0\n1\n', []),
        ({'JAX_PLATFORMS': 'cpu'}, '0\n', []),
        ({}, None, ['0', '1']),
    ],
)
def test_gpus_are_those_that_jax_would_see(monkeypatch, environment, output, expected):
    nvidia_smi(monkeypatch, output)
    assert devices.visible_gpus(environment) == expected


@pytest.mark.parametrize(
    ('platforms', 'hidden', 'output', 'refused'),
    [
        (None, None, '0\n1\n', True),
        ('cpu', None, '0\n1\n', False),  # chosen
        (None, '', '0\n1\n', False),
        (None, '0', '', False),  # set, but there is no GPU
    ],
)
def test_gpus_that_this_jax_cannot_use_are_refused(monkeypatch, platforms, hidden, output, refused):
    """As with `pip install .` alone on a machine with GPUs: JAX would train on the CPU."""
    nvidia_smi(monkeypatch, output)
    monkeypatch.delenv('JAX_PLATFORMS', raising=False)
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    if hidden is not None:
        monkeypatch.setenv('CUDA_VISIBLE_DEVICES', hidden)
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
