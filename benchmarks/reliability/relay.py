"""Somebody between two processes: what an elastic run notices of a relay that changes what gloo sends.

    python -m benchmarks.reliability.relay --output=results/reliability

Three processes of `elastic_worker.py`, each a worker. As their group forms, the first address under which one
of them is to be found is replaced in the coordination service's store by the relay's. The service asks nobody
who they are; here process 0 does it, as it has a connection. In the messages of DEF the relay multiplies
numbers by -3: with `some`, in the second half of each ring all-reduce, in which the sums are passed on; with
`alike`, in the first half, in which they are still being added up. With `nobody`, there is no relay.
"""

import argparse
import contextlib
import itertools
import os
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from def_jax.elastic import private
from def_jax.elastic.network import free_address
from def_jax.elastic.roll_call import SECRET
from def_jax.elastic.service import LAUNCHED

__all__ = ['Relay']

WORKERS, STEPS, EVERY = 3, 40, 10  # of which there are, are made, and lie between checkpoints
HEAD = struct.Struct('<6Q')  # of gloo's messages: bytes with the head, kind, slot, offset, length, offset
DATA = (0, 1)  # the kinds that carry any
LENGTH = 768  # of a part of DEF's message, 1,152 numbers, which the ring passes on in 2 * WORKERS parts
PARTS = 4 * (WORKERS - 1)  # that a process sends in an all-reduce, as two segments in each round
HOST = '127.0.0.1'


class Relay:
    """Replaces an address as soon as there is one, and passes on what comes.

    Attributes:
        changed: how many messages it has changed.
    """

    def __init__(self, how: str):
        self.changed, self._halves = 0, {'some': (PARTS // 2, PARTS), 'alike': (0, PARTS // 2)}[how]
        self._client = private.coordination().client
        threading.Thread(target=self._replace, daemon=True).start()

    def _replace(self) -> None:
        while not (found := self._client.key_value_dir_get_bytes('cpu:gloo')):
            time.sleep(0.0005)
        key, value = found[0]
        place = value.index(socket.inet_aton(HOST)) - 2
        port = int.from_bytes(value[place : place + 2], 'big')
        listener = socket.socket()
        for near in range(port - 1, 1024, -1):  # of two processes, the one with the lower port listens
            with contextlib.suppress(OSError):
                listener.bind((HOST, near))
                break
        listener.listen()
        value = value[:place] + listener.getsockname()[1].to_bytes(2, 'big') + value[place + 2 :]
        self._client.key_value_set_bytes(key, value, allow_overwrite=True)
        while True:
            theirs = listener.accept()[0]
            mine = socket.create_connection((HOST, port))
            mine.sendall(exactly(theirs, 8))  # which connection it is
            for pair in ((theirs, mine), (mine, theirs)):
                threading.Thread(target=self._pass_on, args=pair, daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        numbers = itertools.count()
        with contextlib.suppress(OSError), source, target:
            while True:
                head = exactly(source, HEAD.size)
                size, kind, _, _, length, _ = HEAD.unpack(head)
                data = exactly(source, size - HEAD.size) if kind in DATA else b''
                if data and length == LENGTH and next(numbers) % PARTS in range(*self._halves):
                    data = (np.frombuffer(data, np.float32) * np.float32(-3)).tobytes()
                    self.changed += 1
                target.sendall(head + data)


def exactly(source: socket.socket, size: int) -> bytes:
    data = b''
    while len(data) < size:
        if not (more := source.recv(size - len(data))):
            raise OSError('closed')
        data += more
    return data


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--output', type=Path, required=True, help='folder of relay.json and README.md')
    arguments = parser.parse_args()
    from benchmarks import pages  # not in the workers
    from benchmarks.reliability import elastic, processes

    with elastic.workplace() as folder:
        results = [tried(folder, how) for how in ('nobody', 'some', 'alike')]
    processes.save(results, arguments.output, 'relay.json')
    text = f'{pages.origin("benchmarks.reliability.relay")}\n\n{pages.table(results)}'
    pages.write(arguments.output / 'README.md', {'relay': text})
    return 0


def tried(folder: Path, how: str) -> dict:
    """A run in which the relay came between two; by chance, all may have had the right address already."""
    for number in range(10):
        result = run(folder / f'{how}-{number}', how)
        if how == 'nobody' or result['messages changed']:
            return result
    raise RuntimeError('the relay never came between two processes.')


def run(folder: Path, how: str) -> dict:
    from benchmarks.reliability.elastic import WORKER, differences, read

    folder.mkdir()
    place, secret = (free_address(), str(WORKERS)), {SECRET: tempfile.mktemp()}
    command = [sys.executable, WORKER, folder, f'steps={STEPS}', f'checkpoint={EVERY}', 'heartbeat=30']
    group: list[subprocess.Popen] = []
    for index in range(WORKERS):
        places = dict(zip(LAUNCHED, (*place, str(index)), strict=True))
        environment = os.environ | {'PYTHONPATH': str(WORKER.parents[2])} | places | secret
        with (folder / f'{index}.log').open('w') as log:
            plan = [f'relay={how}'] * (how != 'nobody' and index == 0)
            group.append(subprocess.Popen([*command, *plan], env=environment, stdout=log, stderr=log))
    codes = [process.wait(timeout=600) for process in group]
    lines = [read(folder / f'{index}.jsonl') for index in range(WORKERS)]
    steps = [line for line in lines[0] if 'step' in line]
    logs = [(folder / f'{index}.log').read_text() for index in range(WORKERS)]
    saved = folder / 'checkpoint.npz'
    return {
        'changed': how,
        'messages changed': steps[-1].get('changed', 0),
        'steps made': len(steps),
        'steps after which copies differed': differences(lines),
        'DifferError in': f'{sum("DifferError" in log for log in logs)} of {WORKERS}',
        'exit codes': ', '.join(map(str, codes)),
        'last checkpoint': int(np.load(saved)['step']) if saved.exists() else 'none',
        'training loss': round(float(np.mean([line['loss'] for line in steps[-10:]])), 3),
    }


if __name__ == '__main__':
    sys.exit(main())
