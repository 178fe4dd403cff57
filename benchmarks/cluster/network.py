"""A cluster on one machine: network namespaces connected by a bridge, every interface shaped by tc.

Each node, of one worker or several, is a namespace node<i> with one interface, eth0, a veth pair whose other
end is a port of the bridge, in a namespace of its own. Both ends of a pair are shaped: what a node sends, and
what it receives. Workers of one node reach each other by its loopback, which is not shaped.

Nothing can be left behind: the namespaces have names only in the mount namespace of this program, so the
kernel removes them when the program and its workers, which die with it, have ended.
"""

import contextlib
import ctypes
import functools
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

INTERFACE = 'eth0'
HEADERS = 66  # header bytes counted in every packet: Ethernet 14, IP 20, TCP 32
_NAMES = Path('/var/run/netns')  # where `ip netns` keeps the names of namespaces
_FOLDER = Path('/etc/netns')  # `ip netns exec` mounts FOLDER/NAME/hosts over /etc/hosts
_NEW_MOUNTS = 0x20000  # CLONE_NEWNS


class Unavailable(Exception):
    """This machine cannot run the benchmark; the message says what is missing and what to do."""


def check_available() -> None:
    """Raises `Unavailable` if root or iproute2 is missing."""
    if os.geteuid() != 0:
        raise Unavailable(
            'needs root to create network namespaces: run it with sudo, or as root in a container.'
        )
    missing = [tool for tool in ('ip', 'tc') if shutil.which(tool) is None]
    if missing:
        raise Unavailable(f'needs iproute2 ({", ".join(missing)} not found): apt-get install iproute2.')


class Network(NamedTuple):
    """The namespaces of a cluster; without a rate, interfaces are not shaped."""

    num_workers: int
    rate: str | None
    per_node: int = 1  # workers, neighbours in their order

    @property
    def nodes(self) -> range:
        return range(self.num_workers // self.per_node)

    def address(self, worker: int) -> str:
        return _address(worker // self.per_node)

    def command(self, worker: int, command: Sequence[str]) -> list[str]:
        """The command that runs `command` in the namespace of a worker's node."""
        return ['ip', 'netns', 'exec', f'node{worker // self.per_node}', *command]

    def set_up(self) -> None:
        _run('ip', 'netns', 'add', 'switch')
        _run('ip', '-n', 'switch', 'link', 'add', 'bridge', 'type', 'bridge')
        _run('ip', '-n', 'switch', 'link', 'set', 'bridge', 'up')
        for node in self.nodes:
            name, port = f'node{node}', f'port{node}'
            (_FOLDER / name).mkdir(exist_ok=True)
            # gloo listens on the address to which the host's name resolves.
            lines = ['127.0.0.1 localhost', f'{_address(node)} {socket.gethostname()}']
            (_FOLDER / name / 'hosts').write_text('\n'.join(lines) + '\n')
            _run('ip', 'netns', 'add', name)
            ends = ['type', 'veth', 'peer', 'name', INTERFACE, 'netns', name]
            _run('ip', '-n', 'switch', 'link', 'add', port, *ends)
            _run('ip', '-n', 'switch', 'link', 'set', port, 'master', 'bridge', 'up')
            _run('ip', '-n', name, 'addr', 'add', f'{_address(node)}/16', 'dev', INTERFACE)
            for link in ('lo', INTERFACE):
                _run('ip', '-n', name, 'link', 'set', link, 'up')
            if self.rate:
                shape(node, self.rate)


def _address(node: int) -> str:
    return f'10.213.0.{node + 1}'


def shape(node: int, rate: str) -> None:
    """Shapes a node's link, both ends; a worker may do this, too."""
    limits = ['rate', rate, 'burst', f'{burst(rate)}b', 'latency', '50ms']
    for owner, device in (f'node{node}', INTERFACE), ('switch', f'port{node}'):
        _run('tc', '-n', owner, 'qdisc', 'replace', 'dev', device, 'root', 'tbf', *limits)


def burst(rate: str) -> int:
    """Bytes that pass a shaped interface at once after a pause: those of 2 ms, and at least some packets.

    A pause, such as a step's computation, fills the bucket. Were it as large as a message, the message would
    pass as if the network were not shaped.
    """
    from def_jax.tools.planner import (
        parse_bandwidth,  # PyTorch's workers, which import this module, have no JAX
    )

    return max(10_000, round(0.002 * parse_bandwidth(rate) / 8))


@contextlib.contextmanager
def network(num_workers: int, rate: str | None, per_node: int = 1) -> Iterator[Network]:
    """The cluster's network, removed on exit."""
    _hide_names()
    made = Network(num_workers, rate, per_node)
    try:
        made.set_up()
        yield made
    finally:
        _run('ip', '-all', 'netns', 'delete')


@functools.cache
def _hide_names() -> None:
    """Gives this process, and those it starts, folders of namespaces that no other process sees."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_NEW_MOUNTS):
        raise Unavailable(f'needs a mount namespace: {os.strerror(ctypes.get_errno())}.')
    _run('mount', '--make-rprivate', '/')
    for folder in (_NAMES, _FOLDER):
        folder.mkdir(parents=True, exist_ok=True)
        _run('mount', '-t', 'tmpfs', 'namespaces', str(folder))


def counters() -> dict[str, int]:
    """Bytes and packets sent and received by the interface of this process's namespace."""
    folder = Path(f'/sys/class/net/{INTERFACE}/statistics')
    names = ('tx_bytes', 'tx_packets', 'rx_bytes', 'rx_packets')
    return {name: int((folder / name).read_text()) for name in names}


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise Unavailable(f'{" ".join(command)} failed: {done.stderr.strip()}')
