"""A process and the others: how it joins and meets them, and why it may have to leave."""

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils

import def_jax
from def_jax.elastic import private
from def_jax.elastic.network import gloo_listens_on, listening_address, own_address

__all__ = [
    'LAUNCHED',
    'DiedError',
    'DifferError',
    'FailedError',
    'GivenUpError',
    'RefusedError',
    'TooFewError',
    'ask',
    'check_versions',
    'differing',
    'end',
    'failed',
    'has_ended',
    'initialize',
    'meeting',
    'retract',
    'tell',
    'versions',
]

LAUNCHED = ('JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID')  # see `def_jax.launch`
_ENDED = 'def_jax/ended'
_VERSIONS = 'def_jax/versions'
_SETTINGS = 'enable_x64', 'default_prng_impl', 'threefry_partitionable'
_ANSWER_SECONDS = 30  # within which those who meet tell what others ask; they place their arrays before
_state: Any = private.coordination()
_SPARE = 8  # sets of CPU devices of a process: gloo's communicators are kept by the devices, for good


class GivenUpError(RuntimeError):
    """The others go on without this process, as after a freeze, or have ended; it must exit and not write."""


class DiedError(RuntimeError):
    """Somebody died in a meeting; what was computed there counts for nobody."""


class DifferError(RuntimeError):
    """What all processes should have alike differs between them; none may save it."""


class FailedError(RuntimeError):
    """A meeting failed for somebody, though nobody died; what was computed there counts for nobody."""


class RefusedError(ValueError):
    """This process runs something different from the others."""


class TooFewError(RuntimeError):
    """There were fewer workers than `min_workers` for longer than `patience`."""


def initialize(
    address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    local_devices: int = 1,
    heartbeat_seconds: int = 10,
    cpu: bool = False,
) -> None:
    """Joins or rejoins the other processes; call it before JAX initializes its devices.

    Nothing on these connections is authenticated or encrypted: who reaches them can read and change what is
    exchanged, so they need a network that can be trusted. Process 0 listens at `address`, and gloo at the
    address from which a process reaches it: with 127.0.0.1, no other machine can connect, but every user of
    this one. `python -m def_jax.launch --private` gives processes a network of their own.

    Args:
        address: host:port of process 0; like the next two, set by `python -m def_jax.launch` by default.
        num_processes: the number of processes when all are alive.
        process_id: the index of this process, from 0.
        local_devices: how many devices this process trains on; only for CPUs.
        heartbeat_seconds: seconds without a heartbeat after which a process is given up.
        cpu: train on CPUs, with gloo.

    Raises:
        ValueError: if there is no address, neither here nor from the launcher; or with a JAX whose
            coordination service def_jax does not know.
    """
    if _state is None:
        what = f'JAX {jax.__version__} has no coordination service that def_jax {def_jax.__version__} knows'
        raise ValueError(f'{what}. Use an earlier JAX for elastic runs.')
    if cpu:
        os.environ['XLA_FLAGS'] = _xla_flags(os.environ.get('XLA_FLAGS', ''), heartbeat_seconds)
        jax.config.update('jax_platforms', 'cpu')
        jax.config.update('jax_num_cpu_devices', local_devices * _SPARE)
    jax.config.update('jax_enable_recoverability', True)
    if address is None:
        if missing := [name for name in LAUNCHED if name not in os.environ]:
            raise ValueError(
                f'the environment lacks {", ".join(missing)}: start the program by python -m def_jax.launch, '
                'or pass address, num_processes and process_id.'
            )
        address, num_processes, process_id = (
            convert(os.environ[name]) for name, convert in zip(LAUNCHED, (str, int, int), strict=True)
        )
    if cpu:
        gloo_listens_on(own_address(address))
    jax.distributed.initialize(
        address,
        num_processes,
        process_id,
        heartbeat_timeout_seconds=heartbeat_seconds,
        coordinator_bind_address=listening_address(address),
    )


def _xla_flags(given: str, heartbeat_seconds: int) -> str:
    """The user's XLA_FLAGS and ours.

    Without the timeout, a process that freezes holds up the others until it thaws. And where XLA combines
    all-reduces, one that fails for a process is followed by the next: what the others still send for the
    first does not fit into the second, and gloo aborts the process.
    """
    if given.strip() and not given.lstrip().startswith('-'):
        given = Path(given).read_text()  # XLA_FLAGS may name a file
    ours = (
        f'--xla_cpu_collective_timeout_seconds={heartbeat_seconds}',
        '--xla_disable_hlo_passes=cpu-all-reduce-combiner',  # XLA adds lists up
    )
    return ' '.join([given.strip(), *ours]).lstrip()


@contextlib.contextmanager
def meeting(name: Callable[[], str]) -> Iterator[None]:
    """Runs a block on all live processes; at its end, `live_devices.devices` tells them who still lives.

    Args:
        name: where those whose collectives failed tell the others; a name that has told of a failure serves
            no other meeting.

    Raises:
        DiedError: in all live processes, if one died meanwhile. What they see of it differs: nothing, or a
            collective that fails; and JAX names it from 0.10 on only.
        FailedError: in all live processes, if a collective failed for one and none died, as after a timeout
            on an overloaded machine. The others may have seen the same collective succeed.
    """
    live: Any = multihost_utils.live_devices
    before: dict[jax.Device, int] = {}
    try:
        with live(jax.devices()):
            before = live.devices
            try:
                yield
            except Exception as error:
                if not _is_failed_collective(error):
                    raise
                # Told before the meeting ends, and raised after it, in all.
                reason = f'process {jax.process_index()}: {str(error).splitlines()[0]}'
                _state.client.key_value_set(f'{name()}/{jax.process_index()}', reason)
    except Exception as error:
        if any(live.devices.get(device) != incarnation for device, incarnation in before.items()):
            raise DiedError('a process died in a meeting') from error
        raise
    if reasons := failed(name()):
        raise FailedError('; '.join(reasons))


def failed(name: str) -> list[str]:
    """Why a meeting of this name failed; nothing if none has."""
    return [reason for _, reason in sorted(_state.client.key_value_dir_get(name))]


def _is_failed_collective(error: Exception) -> bool:
    """gloo's errors are of one kind or the other, by where JAX notices them."""
    if isinstance(error, ValueError):
        return 'gloo' in str(error).lower()
    return isinstance(error, jax.errors.JaxRuntimeError)


def end() -> None:
    """Tells who comes now that the others make no more steps."""
    tell(f'{_ENDED}/{jax.process_index()}', '')


def has_ended() -> bool:
    return bool(_state.client.key_value_dir_get(_ENDED))


def tell(key: str, value: str) -> None:
    """Writes an entry of the coordination service, which every process may read."""
    _state.client.key_value_set(key, value, allow_overwrite=True)


def ask(key: str) -> str:
    """An entry that another process of the meeting writes; one that stays away is a failed collective."""
    return _state.client.blocking_key_value_get(key, _ANSWER_SECONDS * 1000)


def retract(key: str) -> None:
    _state.client.key_value_delete(key)


def versions() -> str:
    """What must be the same in all processes, for each compiles its own program of what all compute.

    With other settings of JAX, they would draw other parameters or exchange other types.
    """
    packages = {'def_jax': def_jax.__version__, 'JAX': jax.__version__}
    for name in ('jaxlib', 'flax', 'optax', 'numpy'):
        with contextlib.suppress(metadata.PackageNotFoundError):  # flax is an extra
            packages[name] = metadata.version(name)
    settings = {f'jax_{name}': getattr(jax.config, f'jax_{name}', None) for name in _SETTINGS}
    return ', '.join(f'{name} {value}' for name, value in (packages | settings).items())


def differing(one: str, other: str) -> tuple[str, str]:
    """What of two processes' versions is not the same.

    >>> differing('JAX 1, numpy 2, jax_enable_x64 False', 'JAX 1, numpy 2, jax_enable_x64 True')
    ('jax_enable_x64 False', 'jax_enable_x64 True')
    """
    parts, others = one.split(', '), other.split(', ')
    return ', '.join(p for p in parts if p not in others), ', '.join(p for p in others if p not in parts)


def check_versions() -> None:
    """For processes that all start together: raises RefusedError in all unless their versions agree.

    It asks before anything is computed, through the coordination service alone: nobody, if that is unknown.
    """
    if _state is None:
        return
    me, count = _state.process_id, _state.num_processes
    tell(f'{_VERSIONS}/{me}', versions())
    if me == 0:
        found = [ask(f'{_VERSIONS}/{process}') for process in range(count)]
        tell(_VERSIONS, json.dumps(found))
    first, *others = json.loads(ask(_VERSIONS))
    pairs = {process: differing(first, other) for process, other in enumerate(others, 1) if other != first}
    if differ := [f'process {i} has {other}, but process 0 {first}' for i, (first, other) in pairs.items()]:
        raise RefusedError(f'{"; ".join(differ[:3])}. Give all the same versions and settings of JAX.')
