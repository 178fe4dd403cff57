"""Several processes, one a machine or one a GPU, that train together through `jax.distributed`.

Under pmap a process feeds and sees the rows of its own devices; what all processes must know or decide
together goes through here. With a single process each of these functions does nothing that costs.
"""

import contextlib
import dataclasses
import os
import socket
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from def_jax.launch.exits import LostProcessError

__all__ = [
    'Place',
    'agree',
    'anywhere',
    'connect',
    'count',
    'disconnect',
    'find',
    'gather',
    'is_first',
    'meet',
    'naming_the_lost',
    'rows',
]

# A process that is silent for so long is given up, and the others end.
HEARTBEAT_SECONDS = 30

_MPI, _SLURM = ('OMPI_COMM_WORLD_SIZE', 'OMPI_COMM_WORLD_RANK'), ('SLURM_STEP_NUM_TASKS', 'SLURM_PROCID')
_count = 1  # known before JAX starts its devices, where fake ones are shared out


@dataclasses.dataclass(frozen=True)
class Place:
    """Which of the processes of a run this one is.

    Attributes:
        address: host:port, where process 0 is to be found; None where JAX knows it from the environment.
        count: how many processes there are; None as above.
        index: which one this is, from 0; None as above.
    """

    address: str | None
    count: int | None
    index: int | None


def find(
    address: str | None, count: int | None, index: int | None, environment: Mapping[str, str] = os.environ
) -> Place | None:
    """The place that the flags give, or else SLURM's srun, Open MPI's mpirun, or a TPU pod.

    Args:
        address: host:port of process 0.
        count: how many processes there are.
        index: which one this is.
        environment: where the launchers leave their word.

    Returns:
        The place; None for a single process.

    Raises:
        ValueError: if some of the three are missing, or are out of range.

    >>> find('10.0.0.1:1234', 2, 0, {})
    Place(address='10.0.0.1:1234', count=2, index=0)
    >>> find(None, None, None, {'SLURM_STEP_NUM_TASKS': '4', 'SLURM_PROCID': '3'})
    Place(address=None, count=4, index=3)
    """
    given = {'coordinator_address': address, 'num_processes': count, 'process_id': index}
    if any(value is not None for value in given.values()):
        return _checked(given)
    for size, rank in (_SLURM, _MPI):
        if int(environment.get(size, 1)) > 1 and rank in environment:
            return Place(None, int(environment[size]), int(environment[rank]))
    if ',' in environment.get('TPU_WORKER_HOSTNAMES', ''):
        return Place(None, None, None)
    return None


def _checked(given: dict[str, Any]) -> Place | None:
    address, count, index = given.values()
    if missing := [f'--{name}' for name, value in given.items() if value is None]:
        raise ValueError(
            f'{" and ".join(missing)} must be given, too: all processes of a run get the same '
            '--coordinator_address=HOST:PORT and --num_processes, and each its own --process_id from 0.'
        )
    host, _, port = address.rpartition(':')
    if not host or not port.isdecimal():
        raise ValueError(
            f'--coordinator_address={address} must be HOST:PORT, where process 0 can be reached by all.'
        )
    if count < 1 or not 0 <= index < count:
        raise ValueError(
            f'--process_id={index} must be one of 0 … --num_processes - 1, and --num_processes={count} at '
            'least 1.'
        )
    return Place(address, count, index) if count > 1 else None


def connect(place: Place, *, fake_devices: bool) -> None:
    """Joins the other processes; call before JAX is first used.

    Args:
        place: what `find` returned.
        fake_devices: whether the devices are simulated on the processes' CPUs.

    Raises:
        ValueError: if the address cannot be used. Where the others do not come, the runtime aborts.
    """
    global _count
    if fake_devices:
        jax.config.update('jax_platforms', 'cpu')
        jax.config.update('jax_cpu_collectives_implementation', 'gloo')
    try:
        if place.address and place.index == 0:
            _check_port(int(place.address.rpartition(':')[2]))
        jax.distributed.initialize(
            place.address,
            place.count,
            place.index,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(
            f'the processes cannot be joined at {place.address or "the address that the launcher gives"} '
            f'({error}). Its port must be free on the machine of process 0, and reachable from the others.'
        ) from error
    _count = place.count or jax.process_count()


def _check_port(port: int) -> None:
    """Raises OSError where process 0 cannot listen there; JAX's runtime may crash on it."""
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    socket.create_server(('', port), family=family, dualstack_ipv6=both).close()


def disconnect() -> None:
    """Leaves, once all processes are as far as that."""
    jax.distributed.shutdown()


def count() -> int:
    """How many processes `connect` has joined."""
    return _count


def is_first() -> bool:
    """Whether this process writes the run's files and shows its progress."""
    return jax.process_index() == 0


def rows(devices: list[jax.Device], process: int | None = None) -> list[int]:
    """The places in `devices` of those that belong to a process, by default this one."""
    process = jax.process_index() if process is None else process
    return [place for place, device in enumerate(devices) if device.process_index == process]


def gather(values: np.ndarray, devices: list[jax.Device]) -> np.ndarray:
    """The rows of all processes.

    Args:
        values: an array [local devices, ...], of the same shape and dtype in all processes.
        devices: the devices of all.

    Returns:
        An array [devices, ...], the same in all processes.
    """
    if jax.process_count() == 1:
        return values
    everyone = np.asarray(multihost_utils.process_allgather(values))
    gathered = np.empty((len(devices), *values.shape[1:]), values.dtype)
    for process, part in enumerate(everyone):
        gathered[rows(devices, process)] = part
    return gathered


def anywhere(flag: bool) -> bool:
    """Whether the flag is set in any process; all have to ask."""
    return bool(jax.process_count() > 1 and _flags(flag).any()) or flag


def meet(where: str) -> None:
    """Waits until all processes are there."""
    multihost_utils.sync_global_devices(where)


def agree(flag: bool) -> bool:
    """The first process's flag, for what only one can decide; all have to ask."""
    return bool(_flags(flag)[0]) if jax.process_count() > 1 else flag


@contextlib.contextmanager
def naming_the_lost() -> Iterator[None]:
    """Turns what a collective says in whose midst another process has died into LostProcessError."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        raise LostProcessError(str(error).split('\n')[0]) from error


def _flags(flag: bool) -> np.ndarray:
    return np.asarray(multihost_utils.process_allgather(np.array(flag))).reshape(-1)
