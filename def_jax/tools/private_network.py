"""A network of a run's own, as `python -m def_jax.launch --private` begins in: a namespace of Linux.

127.0.0.1 is open to every user of a machine, who can so read and change what processes exchange there. That
of a namespace is open to those alone who are in it.
"""

import fcntl
import os
import shutil
import socket
import struct
import subprocess
import sys
from collections.abc import Sequence

__all__ = ['NoNetworkError', 'enter']

_OUTSIDE = 'DEF_JAX_OUTSIDE_NETWORK'  # the environment variable with what is left
_UNSHARE = ['unshare', '--user', '--map-root-user', '--net']
_READS_FLAGS, _SETS_FLAGS, _UP = 0x8913, 0x8914, 1  # SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP
_WITHOUT = 'Without --private, every user of this machine can reach the processes.'


class NoNetworkError(OSError):
    """This machine gives its users no network of their own."""


def enter(program: Sequence[str]) -> str:
    """Within the private network: its name. Outside: begins this program again within one.

    Args:
        program: this program, and its arguments.

    Raises:
        NoNetworkError: if the system refuses, with what it said and what helps.
    """
    here = os.readlink('/proc/self/ns/net') if sys.platform == 'linux' else ''
    if outside := os.environ.pop(_OUTSIDE, ''):
        if outside == here:
            raise NoNetworkError('unshare has left this program in the network that all share.')
        _start_loopback()
        return here
    if not here or not shutil.which('unshare'):
        raise NoNetworkError(
            'private networks need Linux and its program unshare, of util-linux. ' + _WITHOUT
        )
    tried = subprocess.run([*_UNSHARE, 'true'], capture_output=True, text=True)
    if tried.returncode:
        raise NoNetworkError(
            f'this system refuses private networks ({tried.stderr.strip()}). Have its administrator allow '
            'user namespaces (sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone=1, or '
            f'kernel.apparmor_restrict_unprivileged_userns=0), or start this as root. {_WITHOUT}'
        )
    os.environ[_OUTSIDE] = here
    os.execvp(_UNSHARE[0], [*_UNSHARE, *program])


def _start_loopback() -> None:
    """A new namespace has 127.0.0.1, switched off."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack('16sh14x', b'lo', 0)
        flags = struct.unpack('16sh14x', fcntl.ioctl(any_socket, _READS_FLAGS, request))[1]
        fcntl.ioctl(any_socket, _SETS_FLAGS, struct.pack('16sh14x', b'lo', flags | _UP))
