"""Multi-process training, one process per machine or per GPU, through `jax.distributed`.

What all processes must know or decide together goes through this module; alone, a process asks nobody.
"""

import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from def_jax import elastic
from def_jax.elastic import network
from def_jax.elastic.service import RefusedError, check_versions
from def_jax.tools.place import Place
from def_jax.trainer.launch.exits import LostProcessError

__all__ = [
    *('any_process', 'barrier', 'broadcast', 'connect', 'count', 'disconnect', 'gather', 'is_first'),
    *('naming_the_lost', 'retry_until_visible', 'rows'),
]

# A process that sends no heartbeat for this long is considered lost, and the others exit.
HEARTBEAT_SECONDS = 30
ELASTIC_HEARTBEAT_SECONDS = 10
LATE_SECONDS = 60  # for which a client of NFS, as it is usually mounted, may not see what others wrote
_OWN = 'RESOURCE_EXHAUSTED', 'INVALID_ARGUMENT'  # how errors begin that no other process causes

_alone = False  # in an elastic run
T = TypeVar('T')
_count = 1  # needed before JAX starts, to divide fake devices among the processes


def connect(place: Place, *, fake_devices: bool, elastic_devices: int = 0) -> None:
    """Joins the other processes; call before JAX is first used. If they never join, JAX's runtime aborts.

    With `elastic_devices`, how many this process trains on, it may die and join again, and asks the others
    through `def_jax.elastic` alone: this module's functions then ask nobody.
    """
    global _count, _alone
    if elastic_devices and None in (place.address, place.count, place.index):
        flags = '--coordinator_address, --num_processes and --process_id'
        raise ValueError(f'config.elastic=True needs {flags}, or python -m def_jax.launch.')
    if fake_devices and not elastic_devices:  # an elastic run: `elastic.initialize` does this
        jax.config.update('jax_platforms', 'cpu')
        network.gloo_listens_on(network.own_address(place.address) if place.address else None)
    bound = network.listening_address(place.address) if place.address else None
    try:
        if place.address and place.index == 0:
            _check_port(*network.split(bound or f':{network.split(place.address)[1]}'))
        if elastic_devices:
            assert place.address is not None and place.count is not None and place.index is not None
            elastic.initialize(
                place.address,
                place.count,
                place.index,
                local_devices=elastic_devices,
                heartbeat_seconds=ELASTIC_HEARTBEAT_SECONDS,
                cpu=fake_devices,
            )
            _count, _alone = place.count, True
            jax.devices()  # with spare ones, before the workers are counted
            return
        jax.distributed.initialize(
            place.address,
            place.count,
            place.index,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=HEARTBEAT_SECONDS,
            coordinator_bind_address=bound,
        )
        check_versions()
    except RefusedError:
        disconnect()  # in all, so that none is taken for lost
        raise
    except (OSError, RuntimeError, ValueError) as error:
        what = (
            f'cannot join the processes at {place.address or "the address given by the launcher"} ({error})'
        )
        cure = 'The port must be free on the machine of process 0 and reachable from the others'
        raise ValueError(f'{what}. {cure}.') from error
    _count = place.count or jax.process_count()


def _check_port(host: str, port: int) -> None:
    """Raises OSError if process 0 cannot listen there, which may crash JAX's runtime."""
    both = not host and socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both or ':' in host else socket.AF_INET
    socket.create_server((host, port), family=family, dualstack_ipv6=both).close()


def disconnect() -> None:
    """Waits for all processes to get here, then disconnects."""
    jax.distributed.shutdown()


def count() -> int:
    """The number of processes that `connect` joined."""
    return _count


def is_first() -> bool:
    """Whether this is the process that writes the run's files and shows progress."""
    return jax.process_index() == 0


def rows(devices: list[jax.Device], process: int | None = None) -> list[int]:
    """The indices into `devices` of those that belong to a process, by default this one."""
    process = jax.process_index() if process is None else process
    return [place for place, device in enumerate(devices) if device.process_index == process]


def gather(values: np.ndarray, devices: list[jax.Device]) -> np.ndarray:
    """The rows of all processes, [devices, ...], from an array [local devices, ...] of each."""
    if not _has_peers():
        return values
    everyone = np.asarray(multihost_utils.process_allgather(values))
    gathered = np.empty((len(devices), *values.shape[1:]), values.dtype)
    for process, part in enumerate(everyone):
        gathered[rows(devices, process)] = part
    return gathered


def any_process(flag: bool) -> bool:
    """Whether the flag is set in any process; every process must call this."""
    return bool(_has_peers() and _everywhere(flag).any()) or flag


def barrier(where: str) -> None:
    """Waits until all processes have reached this point."""
    if _has_peers():
        multihost_utils.sync_global_devices(where)


def broadcast(value: T) -> T:
    """The first process's boolean or integer, for decisions that one makes; every process must call this."""
    return _everywhere(value)[0].item() if _has_peers() else value


def retry_until_visible(look: Callable[[], T], is_good: Callable[[T], bool] = bool) -> T:
    """What `look` finds in files; every process must call this.

    Where the first process finds something good, all look again until the others do, or for a minute: a
    network file system may show late what another process has written.
    """
    for _ in range(LATE_SECONDS):
        found = look()
        if not broadcast(good := is_good(found)) or not any_process(not good):
            break
        time.sleep(1)
    return found


def is_loss(error: BaseException | None) -> bool:
    """Whether an error is due to another process; orbax raises TimeoutError if one does not respond."""
    told = LostProcessError, jax.errors.JaxRuntimeError, TimeoutError
    return jax.process_count() > 1 and isinstance(error, told) and not str(error).startswith(_OWN)


@contextlib.contextmanager
def naming_the_lost() -> Iterator[None]:
    """Converts the error of a collective whose peer died during the call into LostProcessError."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not is_loss(error):
            raise
        raise LostProcessError(str(error).split('\n')[0]) from error


def _has_peers() -> bool:
    """Whether there are others to ask: in an elastic run, its team asks them instead."""
    return jax.process_count() > 1 and not _alone


def _everywhere(value: Any) -> np.ndarray:
    return np.asarray(multihost_utils.process_allgather(np.array(value))).reshape(-1)
