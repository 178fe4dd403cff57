"""What a link can do: times all-reduces between the workers that run now, and fits latency and bandwidth.

Workers are the processes of the run, one a rack or a node, each with all of its devices; with a single
process, its devices. On each of two hosts:

    python -m def_jax.plan --params=25.6e6 --step-time=0.12 --measure \\
        --coordinator-address=HOST:PORT --num-processes=2 --process-id=0    # on the other host 1

Under Slurm, Open MPI, on TPU pods and with `python -m def_jax.launch`, the last three flags are found.
"""

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from def_jax.tools.place import find

__all__ = ['Link', 'fit', 'join', 'measure_link']

SIZES = (2**14, 2**18, 2**22, 2**24)  # bytes that a worker contributes
_START = (
    'Start it once on every host, with the same --coordinator-address=HOST:PORT and --num-processes, and '
    'with --process-id from 0; or give --bandwidth and --workers.'
)


class Link(NamedTuple):
    """A measured link."""

    workers: int
    devices: int  # of a worker
    bandwidth: float  # of a worker, in bits per second
    latency: float  # of a message between neighbours, in seconds
    times: Mapping[int, float]  # seconds of an all-reduce, the median, by the bytes of a worker

    def describe(self) -> str:
        """What was timed, and what was found."""
        between = f'{self.workers} processes' if jax.process_count() > 1 else f'{self.workers} devices'
        times = ', '.join(f'{size / 1024:,.0f} KiB {1e3 * t:.3g} ms' for size, t in self.times.items())
        return (
            f'Measured between {between}: {self.bandwidth / 1e9:.3g} Gbit/s, {1e6 * self.latency:.3g} µs '
            f'a message ({times}).'
            + ('' if jax.process_count() > 1 else ' All are in this process: this is no network.')
        )


def join(address: str | None, count: int | None, index: int | None) -> None:
    """Joins the other processes, if there are any; call before JAX is first used.

    Raises:
        ValueError: if only some of the arguments are given, or one is out of range.
    """
    if place := find(address, count, index):
        jax.distributed.initialize(place.address, place.count, place.index)


def measure_link(sizes: Sequence[int] = SIZES, repeats: int = 9) -> Link:
    """Times an all-reduce of each size between the workers; all processes must call it.

    Args:
        sizes: bytes that a worker contributes, at least two different ones.
        repeats: of which the median counts, after two that warm up.

    Raises:
        ValueError: if there is one worker, or processes have different numbers of devices.
    """
    mesh = _mesh()
    workers, devices = mesh.devices.shape
    times = {size: _time(mesh, -(-size // (4 * devices)) * devices, repeats) for size in sizes}
    return Link(workers, devices, *fit(workers, times), times)


def fit(workers: int, times: Mapping[int, float]) -> tuple[float, float]:
    """Bandwidth in bits per second and latency in seconds, from times of ring all-reduces by their bytes.

    Least squares of the relative errors, neither negative.

    >>> times = {n: 2 * 3 / 4 * 8 * n / 1e9 + 2 * 3 * 50e-6 for n in (2**14, 2**18, 2**22)}
    >>> [float(f'{value:.4g}') for value in fit(4, times)]  # 1 Gbit/s, 50 µs
    [1000000000.0, 5e-05]
    """
    sizes, seconds = np.array(list(times)), np.array(list(times.values()))
    terms = np.stack([np.ones(len(sizes)), sizes.astype(float)], axis=1) / seconds[:, None]
    start, per_byte = np.linalg.lstsq(terms, np.ones(len(sizes)), rcond=None)[0]
    if start < 0:
        start, per_byte = 0.0, terms[:, 1].sum() / (terms[:, 1] ** 2).sum()
    if per_byte <= 0:  # too fast for these sizes: the largest bounds it
        per_byte = (seconds / sizes).min()
    hops = workers - 1
    return float(2 * hops / workers * 8 / per_byte), float(start / (2 * hops))


def _mesh() -> Mesh:
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    count = jax.process_count()
    if len(devices) < 2:
        raise ValueError(f'--measure needs two workers at least, but found one device. {_START}')
    if len(devices) % count or jax.local_device_count() != len(devices) // count:
        raise ValueError(
            f'--measure needs as many devices in every process: {len(devices)} devices in {count} processes.'
        )
    return Mesh(np.array(devices).reshape(count if count > 1 else len(devices), -1), ('workers', 'inside'))


def _time(mesh: Mesh, elements: int, repeats: int) -> float:
    spec = P('workers', 'inside')
    shape = (mesh.devices.shape[0], elements)
    message = jax.make_array_from_callback(
        shape, NamedSharding(mesh, spec), lambda index: np.ones(shape, np.float32)[index]
    )

    @jax.jit
    @jax.shard_map(mesh=mesh, in_specs=spec, out_specs=P(None, 'inside'))
    def all_reduce(x):
        return jax.lax.psum(x, 'workers')

    def once():
        start = time.perf_counter()
        jax.block_until_ready(all_reduce(message))
        return time.perf_counter() - start

    return statistics.median([once() for _ in range(repeats + 2)][2:])
