"""What strikes a run from outside, one strike after the other, each against a run that was left alone.

    python -m benchmarks.reliability.strikes --output=results/reliability

A perceptron on digits: it is frozen, its disk is too small, the clock that Python sees jumps, its compiled
programs or its newest checkpoint are damaged. Each run ends, or is started again by the same command until it
does, and then all arrays of the last checkpoint and all records have to be those of the run left alone. The
rows are written to strikes.json and to README.md as they come. Full disks need Linux with unprivileged user
namespaces, or root.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks import pages
from benchmarks.reliability import processes

FLAGS = [
    *(*processes.SMALL, '--config.num_workers=2', '--config.batch_size=96', '--config.ratio=16'),
    *('--config.num_steps=2000', '--config.eval_every_steps=500', '--config.log_every_steps=50'),
]
FROZEN = 45  # seconds, more than the 30 after which a silent process is given up
DISKS = (0.02, 0.4, 0.6, 0.8, 0.9, 0.97)  # of what a run needs at its end
# Imported by Python as it starts: every two seconds, the clock that it sees is another.
JUMPS = """
import time
clock, started, days = time.time, time.monotonic(), (0, 7, -7, 1, -3)
time.time = lambda: clock() + 86_400 * days[int((time.monotonic() - started) / 2) % len(days)]
"""
# In a mount namespace of its own; what the second command leaves is copied to a disk that remains.
SMALL_DISK = """
mount -t tmpfs -o size={size}k none {disk}; cd {root}
{command}; echo codes $?; mount -o remount,size=100m {disk}
{command}; echo codes $?; cp -r {disk}/run {folder}
"""


class Bench:
    """A run left alone, and what is done to others in the same folder."""

    def __init__(self, root: Path):
        self._root, self._count = root, 0
        cache = {'JAX_COMPILATION_CACHE_DIR': str(root / 'cache'), 'JAX_PLATFORMS': 'cpu'}
        self.cache, self.environment = root / 'cache', os.environ | cache
        self.environment['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
        self._alone: dict[int, Path] = {}

    def folder(self) -> Path:
        self._count += 1
        return self._root / f'run-{self._count}'

    def start(self, folder: Path, count: int = 1, **more: str) -> list[subprocess.Popen]:
        several = ['--config.workers_per_device=1'] * (count > 1)
        environment = self.environment | more
        return processes.start_several(folder, FLAGS + several, environment, count)

    def trains(self, folder: Path, process: subprocess.Popen) -> int:
        """Waits until it does; the last step of its records."""
        processes.wait_for(process, lambda: processes.log_size(folder) > 1000)
        return processes.records(folder)[-1]['step']

    def ends(self, group: list[subprocess.Popen]) -> list[int]:
        return [process.wait(timeout=600) for process in group]

    def alone(self, count: int = 1) -> Path:
        """The run of so many processes that is left alone."""
        if count not in self._alone:
            self._alone[count] = self._root / f'alone-{count}'
            self.ends(self.start(self._alone[count], count))
        return self._alone[count]

    def size(self) -> float:
        """Of a whole run on disk, kB."""
        blocks = subprocess.run(['du', '-sk', self.alone()], capture_output=True, text=True, check=True)
        return float(blocks.stdout.split()[0])

    def same(self, folder: Path, count: int = 1) -> str:
        found = processes.differences(folder, self.alone(count))
        return f'differs: {", ".join(found[:3])}' if found else 'the same'


def send(process: subprocess.Popen, number: int) -> None:
    """To the process that trains, a child of train.py's, and to that, which would kill it."""
    children = Path(f'/proc/{process.pid}/task/{process.pid}/children').read_text().split()
    for pid in (process.pid, *map(int, children)):
        os.kill(pid, number)


def frozen(bench: Bench) -> dict:
    folder = bench.folder()
    (process,) = group = bench.start(folder)
    step = bench.trains(folder, process)
    send(process, signal.SIGSTOP)
    time.sleep(FROZEN)
    send(process, signal.SIGCONT)
    return {'exit codes': bench.ends(group), 'end': bench.same(folder), 'after step': step}


def one_of_two_frozen(bench: Bench, index: int) -> dict:
    """Until the other has ended; then it thaws, and both are started again."""
    folder = bench.folder()
    group = bench.start(folder, 2)
    step = bench.trains(folder, group[0])
    send(group[index], signal.SIGSTOP)
    began = time.monotonic()
    code = group[1 - index].wait(timeout=600)
    seconds = time.monotonic() - began
    send(group[index], signal.SIGCONT)
    codes = [code, group[index].wait(timeout=600), *bench.ends(bench.start(folder, 2))]
    ended = {'after step': step, 'the other ended after, s': round(seconds)}
    return {'exit codes': codes, 'end': bench.same(folder, 2)} | ended


def small_disk(bench: Bench, share: float) -> dict:
    folder, disk = bench.folder(), bench.folder()
    disk.mkdir()
    size = round(share * bench.size())
    command = ' '.join([sys.executable, 'train.py', *FLAGS, f'--workdir={disk}/run'])
    script = SMALL_DISK.format(size=size, disk=disk, root=processes.ROOT, command=command, folder=folder)
    shell = ['unshare', '--user', '--map-root-user', '--mount', 'sh', '-c', script]
    done = subprocess.run(shell, env=bench.environment, capture_output=True, text=True, timeout=1200)
    codes = [int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith('codes ')]
    return {'exit codes': codes, 'end': bench.same(folder), 'kB': size}


def jumping_clock(bench: Bench) -> dict:
    folder, path = bench.folder(), bench.folder()
    path.mkdir()
    (path / 'sitecustomize.py').write_text(JUMPS)
    return {'exit codes': bench.ends(bench.start(folder, PYTHONPATH=str(path))), 'end': bench.same(folder)}


def damaged_programs(bench: Bench, damage: Callable[[bytes], bytes]) -> dict:
    folder, kept = bench.folder(), bench.folder()
    shutil.copytree(bench.cache, kept)
    for path in bench.cache.iterdir():
        if path.is_file():
            path.write_bytes(damage(path.read_bytes()))
    try:
        return {'exit codes': bench.ends(bench.start(folder)), 'end': bench.same(folder)}
    finally:
        shutil.rmtree(bench.cache)
        kept.rename(bench.cache)


def damaged_checkpoint(bench: Bench, damage: Callable[[bytes], bytes]) -> dict:
    """The largest file of the newest, of a run that was killed; the one before is restored."""
    folder = bench.folder()
    (process,) = bench.start(folder)
    processes.wait_for(process, lambda: len(processes.checkpoint_steps(folder)) > 1)
    processes.kill(process)
    newest = folder / 'checkpoints' / str(processes.checkpoint_steps(folder)[-1])
    files = [path for path in newest.rglob('*') if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    largest.write_bytes(damage(largest.read_bytes()))
    return {'exit codes': bench.ends(bench.start(folder)), 'end': bench.same(folder)}


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    'cut in half': lambda data: data[: len(data) // 2],
    'with a flipped bit': lambda data: data[: len(data) // 2] + flipped(data[len(data) // 2 :]),
    'emptied': lambda data: b'',
}


def flipped(data: bytes) -> bytes:
    return bytes([data[0] ^ 1]) + data[1:]


def strikes(bench: Bench) -> Iterator[tuple[str, Callable[[], dict]]]:
    yield f'SIGSTOP for {FROZEN} s', lambda: frozen(bench)
    for index in (1, 0):
        yield f'SIGSTOP of process {index} of two', lambda index=index: one_of_two_frozen(bench, index)
    for share in DISKS:
        yield f'a disk of {share:.0%} of the run', lambda share=share: small_disk(bench, share)
    yield 'the clock jumps by up to 7 days every 2 s', lambda: jumping_clock(bench)
    for name, damage in DAMAGES.items():
        yield f'compiled programs {name}', lambda damage=damage: damaged_programs(bench, damage)
        yield f'the newest checkpoint {name}', lambda damage=damage: damaged_checkpoint(bench, damage)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--output', type=Path, required=True, help='folder of strikes.json and README.md')
    parser.add_argument('--only', default='', help='of the strikes whose name holds this')
    arguments = parser.parse_args()
    origin, path = pages.origin('benchmarks.reliability.strikes'), arguments.output / 'strikes.json'
    known = {row['strike']: row for row in (json.loads(path.read_text()) if path.exists() else [])}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        for name, strike in strikes(bench):
            if arguments.only not in name:
                continue
            row = {'strike': name} | strike()
            known[name] = row | {'exit codes': ', '.join(map(str, row['exit codes']))}
            print(json.dumps(known[name]), flush=True)
            path.write_text(json.dumps([*known.values()], indent=2) + '\n')
            text = f'{origin}\n\n{pages.table(known.values())}'
            pages.write(arguments.output / 'README.md', {'strikes': text})
    return 0 if all(row['end'] == 'the same' for row in known.values()) else 1


if __name__ == '__main__':
    sys.exit(main())
