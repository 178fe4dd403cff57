"""`python -m def_jax.launch --private`: a network that no other user of the machine reaches."""

import os
import re
import subprocess
import sys

import pytest

from def_jax.tools import private_network
from def_jax.tools.launcher import main

# Process 0 listens where it was told, and process 1 reaches it.
MEETS = """
import os, socket, sys, time
host, port = os.environ['JAX_COORDINATOR_ADDRESS'].split(':')
if os.environ['JAX_PROCESS_ID'] == '0':
    with socket.create_server((host, int(port))) as server:
        print('met', os.readlink('/proc/self/ns/net'), server.accept()[0].recv(9))
else:
    while True:
        try:
            socket.create_connection((host, int(port))).send(b'hello')
            break
        except ConnectionRefusedError:
            time.sleep(0.05)
"""


def test_processes_meet_in_a_network_of_their_own():
    if subprocess.run([*private_network._UNSHARE, 'true'], capture_output=True).returncode:
        pytest.skip('this system refuses private networks')
    command = [sys.executable, '-m', 'def_jax.launch', '--private', '--processes=2', sys.executable, '-c']
    done = subprocess.run([*command, MEETS], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (network,) = re.findall(r"met (net:\[\d+\]) b'hello'", done.stdout)
    assert network != os.readlink('/proc/self/ns/net')
    assert f'launch: the processes have a network of their own, {network}' in done.stderr


@pytest.mark.parametrize(
    ('program', 'said'),
    [
        ('echo unshare failed: Operation not permitted >&2; exit 1', r'\(unshare failed: Operation not perm'),
        (None, 'need Linux and its program unshare'),
    ],
)
def test_where_that_is_refused_nothing_is_started(tmp_path, monkeypatch, capsys, program, said):
    monkeypatch.setenv('PATH', str(tmp_path))
    if program:
        (tmp_path / 'unshare').write_text(f'#!/bin/sh\n{program}\n')
        (tmp_path / 'unshare').chmod(0o755)
    assert (
        main(['--private', '--processes=2', sys.executable, '-c', f'open({str(tmp_path / "ran")!r}, "w")'])
        == 2
    )
    assert re.search(f'launch: .*{said}.*Without --private', capsys.readouterr().err)
    assert not (tmp_path / 'ran').exists()
