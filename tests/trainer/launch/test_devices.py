"""Devices that JAX cannot start are refused in one line."""

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


@pytest.mark.parametrize(
    ('platforms', 'visible', 'refused'),
    [(None, None, True), (None, '0,1', True), ('cpu', None, False), (None, '', False), (None, '-1', False)],
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
