"""The devices that host the workers: accelerators, or fake devices on this CPU."""

import glob
import os

import jax

from def_jax.trainer.launch import processes

__all__ = ['worker_devices']

MOST_FAKE_DEVICES = 1024
_DEVICE_FILES = '/dev/nvidia[0-9]*'


def worker_devices(num_devices: int, *, fake: bool) -> list[jax.Device]:
    """The first devices in JAX's order, equally many of each process; with `fake`, simulated on this CPU.

    >>> len(worker_devices(1, fake=True))
    1
    """
    keys = '--config.num_workers / workers_per_device * shards_per_worker * inside'
    needed = f'{num_devices} devices are needed ({keys})'
    if fake and num_devices > MOST_FAKE_DEVICES:
        most = f'more than this CPU can simulate, {MOST_FAKE_DEVICES}'
        raise ValueError(f'{num_devices} fake devices ({keys}) are {most}. Change one of these.')
    if not fake:
        _check_platform()
    num_processes = processes.count() if fake else jax.process_count()
    share, rest = divmod(num_devices, num_processes)
    if rest:
        raise ValueError(f'{needed}, and they must divide among the {num_processes} processes. Change one.')
    if fake:
        try:
            jax.config.update('jax_platforms', 'cpu')
            jax.config.update('jax_num_cpu_devices', share)
        except RuntimeError:
            pass  # JAX is already running; the check below decides whether it has enough devices
    devices = jax.devices()
    of_processes = [processes.rows(devices, process) for process in range(num_processes)]
    if all(len(rows) >= share for rows in of_processes):
        return [devices[row] for row in sorted(row for rows in of_processes for row in rows[:share])]
    if fake:
        cure = 'Start a new process with JAX_NUM_CPU_DEVICES and XLA_FLAGS unset'
        raise ValueError(f'{needed}, but JAX is already running with {len(devices)}. {cure}.')
    cure = 'Change one of these, or simulate devices on the CPU with --config.fake_devices=True'
    raise ValueError(f'{needed}, but {len(devices)} are here ({devices[0].platform}). {cure}.')


def _check_platform() -> None:
    """Raises ValueError if JAX cannot use the platform that JAX_PLATFORMS selects, or GPUs that are here."""
    try:
        platform = jax.devices()[0].platform
    except (AssertionError, RuntimeError) as error:  # JAX asserts that it knows at least one of the platforms
        reason = str(error).split('\n')[0] or 'no such device was found'
        what = f'JAX_PLATFORMS={os.environ.get("JAX_PLATFORMS")!r} cannot be used ({reason})'
        raise ValueError(f'{what}. Unset it, or set --config.fake_devices=True to simulate some.') from error
    chosen = 'cpu' in (jax.config.jax_platforms or '')  # type: ignore[attr-defined]
    hidden = os.environ.get('CUDA_VISIBLE_DEVICES') in ('', '-1')
    if platform == 'cpu' and not chosen and not hidden and (gpus := glob.glob(_DEVICE_FILES)):
        raise ValueError(
            f'this machine has NVIDIA GPUs ({len(gpus)}), but JAX sees none. Install it with pip install '
            "'.[training,cuda]' from a checkout, or train on the CPU with JAX_PLATFORMS=cpu."
        )
