"""A worker whose network is cut, for a moment or for good: processes in two network namespaces."""

import contextlib
import os
import shutil
import subprocess
import sys
import time

import pytest
from test_elastic import HANGS, Run

pytestmark = pytest.mark.slow
HERE, THERE = (f'def_jax-{os.getpid()}-{side}' for side in 'ab')
LINK, ADDRESSES = 'veth0', ('10.213.7.1', '10.213.7.2')


def ip(*arguments):
    subprocess.run(['ip', *arguments], check=True, capture_output=True)


def within(namespace, *command):
    return ['ip', 'netns', 'exec', namespace, *command]


class Apart(Run):
    """Processes 0 and 1 in one network, process 2 in another, and a cable between them."""

    def __init__(self, folder):
        super().__init__(folder)
        self.address = f'{ADDRESSES[0]}:{self.address.rpartition(":")[2]}'

    def python(self, index):
        return within(THERE if index == 2 else HERE, sys.executable)

    def cut(self):
        """What either side sends goes to a card that nobody has: it is lost, and nobody is told."""
        self.mend('replace', 'lladdr', '02:00:00:00:00:00', 'nud', 'permanent')

    def mend(self, change='delete', *nobody):
        for namespace, other in ((HERE, ADDRESSES[1]), (THERE, ADDRESSES[0])):
            ip('-netns', namespace, 'neighbour', change, other, 'dev', LINK, *nobody)


@pytest.fixture
def apart(tmp_path):
    if not shutil.which('ip'):
        pytest.skip('the program ip is missing')
    made = Apart(tmp_path)
    try:
        try:
            for namespace in (HERE, THERE):
                ip('netns', 'add', namespace)
                ip('-netns', namespace, 'link', 'set', 'lo', 'up')
            ip('link', 'add', LINK, 'netns', HERE, 'type', 'veth', 'peer', 'name', LINK, 'netns', THERE)
            for namespace, address in zip((HERE, THERE), ADDRESSES, strict=True):
                ip('-netns', namespace, 'address', 'add', f'{address}/24', 'dev', LINK)
                ip('-netns', namespace, 'link', 'set', LINK, 'up')
        except subprocess.CalledProcessError as error:
            pytest.skip(f'networks need root: {error.stderr.decode().strip()}')
        yield made
    finally:
        for process in made.processes:
            process.kill()
            process.wait()
        for namespace in (HERE, THERE):
            with contextlib.suppress(subprocess.CalledProcessError):
                ip('netns', 'delete', namespace)


def test_a_worker_whose_network_is_cut_ends_and_returns_and_the_others_go_on(apart):
    patience = 'heartbeat=15'  # a busy core can delay the others' heartbeats by more than six seconds
    first, second, third = apart.start_all(patience)
    apart.cut()
    apart.wait(lambda: apart.lines(0)[-1]['workers'] == 2)
    assert third.wait(timeout=HANGS) != 0
    apart.mend()
    third = apart.start(2, patience)
    apart.finish(first, second, third)
    apart.assert_same_bits()  # it made no step alone
    assert len(apart.changes()) == 2, apart.told()
    died, joined = apart.changes()
    assert 'process 2 died, 3 -> 2 workers' in died and 'process 2 joined, 2 -> 3 workers' in joined


def test_a_network_that_is_cut_for_a_moment_costs_no_worker(apart):
    processes = apart.start_all('heartbeat=20')
    apart.cut()
    time.sleep(3)
    first = apart.step(0)
    apart.mend()
    apart.wait(lambda: apart.step(0) > first + 10)
    apart.finish(*processes)
    apart.assert_same_bits()
    assert not apart.changes()
