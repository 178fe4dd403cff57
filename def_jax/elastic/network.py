"""Which addresses the processes of a run listen at: those that the run was given, not all interfaces."""

import contextlib
import ipaddress
import os
import random
import socket

import jax
from jax.extend.backend import register_backend_factory

from def_jax.elastic.private import gloo_client

__all__ = ['free_address', 'gloo_listens_on', 'listening_address', 'own_address', 'split']

# By default Linux gives lower ones to others meanwhile, and JAX uses higher ones under Slurm.
_PORTS = range(61_000, 61_440)


def free_address() -> str:
    """A host:port for processes that will be started on this machine."""
    for port in random.sample(_PORTS, len(_PORTS)):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(('127.0.0.1', port))
            return f'127.0.0.1:{port}'
    raise OSError(f'no port from {_PORTS[0]} to {_PORTS[-1]} is free on this machine.')


def split(address: str) -> tuple[str, int]:
    """Host and port of host:port.

    >>> split('[::1]:1234')
    ('::1', 1234)
    """
    host, _, port = address.rpartition(':')
    return host.strip('[]'), int(port)


def listening_address(address: str) -> str | None:
    """Where process 0 listens if others reach it at `address`; None for all interfaces.

    That is needed where the address is not of this machine, as behind NAT, or a name that means the loopback
    device here, as a machine's own name often does, and something else for others.

    >>> listening_address('localhost:1234')
    '127.0.0.1:1234'
    """
    host, port = split(address)
    found = _resolved(host)
    if found is None or os.environ.get('JAX_COORDINATOR_BIND_ADDRESS'):  # which JAX reads
        return None
    family, number = found
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind((number, 0))
    except OSError:
        return None
    return f'[{number}]:{port}' if family == socket.AF_INET6 else f'{number}:{port}'


def own_address(address: str) -> str | None:
    """The address of this machine from which it reaches process 0, which others can reach, too.

    None if that is not known. Nothing is sent.
    """
    if (found := _resolved(split(address)[0])) is None:
        return None
    family, number = found
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((number, 9))
            return probe.getsockname()[0]
    except OSError:
        return None


def gloo_listens_on(host: str | None) -> None:
    """Has CPUs communicate through gloo, at one of this machine's addresses; by default that of its name."""
    jax.config.update('jax_cpu_collectives_implementation', 'gloo')
    if host is not None and (client := gloo_client(host)) is not None:
        register_backend_factory('cpu', client, priority=0, fail_quietly=False)


def _resolved(host: str) -> tuple[socket.AddressFamily, str] | None:
    """Family and number of a host; None for a name that is unknown, or is the loopback device's only here."""
    try:
        infos = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return None
    family, *_, place = min(infos, key=lambda info: info[0] != socket.AF_INET)
    number = str(place[0])
    is_name = host not in ('localhost', number)
    return None if is_name and ipaddress.ip_address(number.split('%')[0]).is_loopback else (family, number)
