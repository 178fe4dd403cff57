"""A cluster on one machine: network namespaces connected by a bridge, every interface shaped by tc.

Worker i runs in namespace PREFIX-PID-worker<i> with one interface, eth0, a veth pair whose other end is a
port of the bridge. The bridge is in a namespace too, so only namespaces and their folders in /etc/netns have
to be removed afterwards. Both ends of a pair are shaped: what a worker sends, and what it receives.

Nothing is left behind. The context manager removes everything on exit and on exceptions (the program turns
signals into exceptions). A watchdog process in its own session, which sees its pipe close when the program
dies, does the same after SIGKILL. And every start removes what dead programs have left.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

PREFIX = 'defjax-cluster'
INTERFACE = 'eth0'
HEADERS = 66  # header bytes counted in every packet: Ethernet 14, IP 20, TCP 32
_FOLDER = Path('/etc/netns')  # `ip netns exec` mounts FOLDER/NAME/hosts over /etc/hosts


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


class Network:
    """The namespaces of one run of the program; without a rate, interfaces are not shaped."""

    def __init__(self, num_workers: int, rate: str | None):
        self.num_workers, self.rate = num_workers, rate
        self.owner = f'{PREFIX}-{os.getpid()}'

    def namespace(self, worker: int) -> str:
        return f'{self.owner}-worker{worker}'

    def address(self, worker: int) -> str:
        return f'10.213.{worker // 250}.{worker % 250 + 1}'

    def command(self, worker: int, command: Sequence[str]) -> list[str]:
        """The command that runs `command` in a worker's namespace."""
        return ['ip', 'netns', 'exec', self.namespace(worker), *command]

    def set_up(self) -> None:
        switch = f'{self.owner}-switch'
        _run('ip', 'netns', 'add', switch)
        _run('ip', '-n', switch, 'link', 'add', 'bridge', 'type', 'bridge')
        _run('ip', '-n', switch, 'link', 'set', 'bridge', 'up')
        for worker in range(self.num_workers):
            name, port = self.namespace(worker), f'port{worker}'
            folder = _FOLDER / name
            folder.mkdir(parents=True)
            # gloo listens on the address to which the host's name resolves.
            lines = ['127.0.0.1 localhost', f'{self.address(worker)} {socket.gethostname()}']
            (folder / 'hosts').write_text('\n'.join(lines) + '\n')
            _run('ip', 'netns', 'add', name)
            ends = ['type', 'veth', 'peer', 'name', INTERFACE, 'netns', name]
            _run('ip', '-n', switch, 'link', 'add', port, *ends)
            _run('ip', '-n', switch, 'link', 'set', port, 'master', 'bridge', 'up')
            _run('ip', '-n', name, 'addr', 'add', f'{self.address(worker)}/16', 'dev', INTERFACE)
            for link in ('lo', INTERFACE):
                _run('ip', '-n', name, 'link', 'set', link, 'up')
            for owner, device in ((name, INTERFACE), (switch, port)) if self.rate else ():
                shape = ['rate', self.rate, 'burst', f'{burst(self.rate)}b', 'latency', '50ms']
                _run('tc', '-n', owner, 'qdisc', 'add', 'dev', device, 'root', 'tbf', *shape)


def burst(rate: str) -> int:
    """Bytes that pass a shaped interface at once after a pause: those of 2 ms, and at least some packets.

    A pause, such as a step's computation, fills the bucket. Were it as large as a message, the message would
    pass as if the network were not shaped.
    """
    from def_jax.tools.plan import parse_bandwidth  # PyTorch's workers, which import this module, have no JAX

    return max(10_000, round(0.002 * parse_bandwidth(rate) / 8))


@contextlib.contextmanager
def network(num_workers: int, rate: str | None) -> Iterator[Network]:
    """The cluster's network, removed on exit, however the program ends."""
    made = Network(num_workers, rate)
    remove_leftovers()
    command = [sys.executable, '-m', 'benchmarks.cluster.network', made.owner]
    watchdog = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    assert watchdog.stdin is not None
    try:
        made.set_up()
        yield made
    finally:
        with _signals_blocked():
            remove(made.owner)
            watchdog.stdin.close()
            watchdog.wait()


def counters() -> dict[str, int]:
    """Bytes and packets sent and received by the interface of this process's namespace."""
    folder = Path(f'/sys/class/net/{INTERFACE}/statistics')
    names = ('tx_bytes', 'tx_packets', 'rx_bytes', 'rx_packets')
    return {name: int((folder / name).read_text()) for name in names}


def remove(owner: str) -> None:
    """Removes the owner's namespaces, the processes in them and their folders."""
    for name in _namespaces(owner):
        _kill_all_in(name)
        subprocess.run(['ip', 'netns', 'del', name], capture_output=True)
    for folder in _FOLDER.glob(f'{owner}-*'):
        shutil.rmtree(folder, ignore_errors=True)


def remove_leftovers() -> None:
    """Removes what dead programs have left, in case their watchdogs were killed too."""
    names = {*_namespaces(PREFIX), *(folder.name for folder in _FOLDER.glob(f'{PREFIX}-*'))}
    for pid in {name.removeprefix(f'{PREFIX}-').split('-')[0] for name in names}:
        if not Path('/proc', pid).exists():
            remove(f'{PREFIX}-{pid}')


def _namespaces(owner: str) -> list[str]:
    listed = subprocess.run(['ip', 'netns', 'list'], capture_output=True, text=True).stdout
    names = [line.split()[0] for line in listed.splitlines() if line.strip()]
    return [name for name in names if name.startswith(f'{owner}-')]


def _kill_all_in(namespace: str) -> None:
    for _ in range(50):
        pids = subprocess.run(['ip', 'netns', 'pids', namespace], capture_output=True, text=True).stdout
        if not pids.split():
            return
        for pid in pids.split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        time.sleep(0.1)


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    blocked = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, blocked)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise Unavailable(f'{" ".join(command)} failed: {done.stderr.strip()}')


def _watch(owner: str) -> None:
    """The watchdog: waits until the program has died, then removes what is left of its network."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.read()
    remove(owner)


if __name__ == '__main__':
    _watch(sys.argv[1])
