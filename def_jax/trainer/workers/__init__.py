"""Where a run's workers lie, and how one program runs on all of them: the seam between steps and devices."""

from collections.abc import Mapping
from typing import Any

from def_jax.trainer.launch.devices import worker_devices
from def_jax.trainer.workers.base import AXIS, Workers
from def_jax.trainer.workers.sharded import ShardedWorkers
from def_jax.trainer.workers.whole import WholeWorkers

__all__ = ['AXIS', 'ShardedWorkers', 'WholeWorkers', 'Workers', 'make_workers']


def make_workers(config: Mapping[str, Any]) -> Workers:
    """The workers of a checked configuration on their devices; ValueError if these are too few."""
    virtual, shards = config['workers_per_device'], config['shards_per_worker']
    devices = worker_devices(
        config['num_workers'] // virtual * shards * config['inside'], fake=config['fake_devices']
    )
    if shards > 1:
        return ShardedWorkers(devices, shards)
    return WholeWorkers(devices, virtual, sequential=config['sequential_workers'])
