"""Which process of a run this is: by flags, by `def_jax.launch`, srun or mpirun, or on a TPU pod."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from def_jax.elastic.service import LAUNCHED

__all__ = ['Place', 'find']

_MPI, _SLURM = ('OMPI_COMM_WORLD_SIZE', 'OMPI_COMM_WORLD_RANK'), ('SLURM_STEP_NUM_TASKS', 'SLURM_PROCID')


@dataclasses.dataclass(frozen=True)
class Place:
    """The identity of this process among those of a run; None is what JAX reads from the environment."""

    address: str | None  # host:port of process 0
    count: int | None
    index: int | None  # from 0


def find(
    address: str | None, count: int | None, index: int | None, environment: Mapping[str, str] = os.environ
) -> Place | None:
    """The place given by the flags, or else by `def_jax.launch`, srun, mpirun or a TPU pod.

    None for a single process. Raises ValueError if only some of the flags are given, or one is out of range.

    >>> find('10.0.0.1:1234', 2, 0, {})
    Place(address='10.0.0.1:1234', count=2, index=0)
    >>> find(None, None, None, {'SLURM_STEP_NUM_TASKS': '4', 'SLURM_PROCID': '3'})
    Place(address=None, count=4, index=3)
    """
    given = {'coordinator_address': address, 'num_processes': count, 'process_id': index}
    if any(value is not None for value in given.values()):
        return _checked(given)
    if all(name in environment for name in LAUNCHED):
        launched, size, rank = (environment[name] for name in LAUNCHED)
        return Place(launched, int(size), int(rank)) if int(size) > 1 else None
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
            f'{" and ".join(missing)} must be given too: all processes of a run take the same '
            '--coordinator_address=HOST:PORT and --num_processes, and each its own --process_id, from 0.'
        )
    host, _, port = address.rpartition(':')
    if not host or not port.isdecimal():
        raise ValueError(f'--coordinator_address={address} must be HOST:PORT, at which all reach process 0.')
    if not 0 <= index < count:
        raise ValueError(f'--process_id={index} must be in [0, --num_processes={count}).')
    return Place(address, count, index) if count > 1 else None
