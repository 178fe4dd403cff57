"""Devices that JAX cannot start are refused in one line."""

import jax
import pytest

from def_jax.launch import devices


@pytest.mark.parametrize(
    ('error', 'reason'),
    [
        (AssertionError(), 'no such device was found'),
        (
            RuntimeError("Unable to initialize backend 'rocm': ...\nmore"),
            "Unable to initialize backend 'rocm'",
        ),
    ],
)
def test_a_platform_that_is_not_here_is_refused_in_one_line(monkeypatch, error, reason):
    """As with JAX_PLATFORMS=cuda on a machine without a GPU."""

    def fail():
        raise error

    monkeypatch.setenv('JAX_PLATFORMS', 'cuda')
    monkeypatch.setattr(jax, 'devices', fail)
    with pytest.raises(
        ValueError, match=f"JAX_PLATFORMS='cuda' cannot be used .{reason}.*Unset it, or"
    ) as line:
        devices.worker_devices(1, fake=False)
    assert '\n' not in str(line.value)
