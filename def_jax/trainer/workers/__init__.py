"""Where a run's workers lie, and how one program runs on all of them: the seam between steps and devices."""

from collections.abc import Mapping
from typing import Any

from def_jax.trainer.launch.devices import worker_devices
from def_jax.trainer.workers.base import AXIS, Workers
from def_jax.trainer.workers.sharded import ShardedWorkers
from def_jax.trainer.workers.whole import WholeWorkers

__all__ = ['AXIS', 'ShardedWorkers', 'WholeWorkers', 'Workers', 'make_workers', 'num_devices']


def num_devices(config: Mapping[str, Any]) -> int:
    """How many devices the workers of a checked configuration need."""
    return config['num_workers'] // config['workers_per_device'] * config['shards_per_worker']


def make_workers(config: Mapping[str, Any]) -> Workers:
    """Finds the devices of a checked configuration.

    Raises:
        ValueError: if there are too few, too many to simulate, or they do not divide among the processes.
    """
    devices = worker_devices(num_devices(config), fake=config['fake_devices'])
    if config['shards_per_worker'] > 1:
        return ShardedWorkers(devices, config['shards_per_worker'])
    return WholeWorkers(devices, config['workers_per_device'], sequential=config['sequential_workers'])
