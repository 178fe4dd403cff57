"""Starts the processes of a run on this machine and restarts those that die.

    python -m def_jax.launch --processes=8 python train.py --config=my.py --workdir=run --config.elastic=True

Each process is told its place by JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, which
`train.py` and `def_jax.elastic.initialize` read. One that dies, or stays frozen, is restarted after a pause
that doubles with each death. Process 0 runs JAX's coordination service: when it dies, all are restarted and
continue from their last checkpoint; with `--together`, for a run that is not elastic, when any of them dies.
A process that ends by itself, with an exit code of `train.py --help` other than 6, is not restarted.

127.0.0.1, where processes meet, is open to every user of a machine, who can read and change what they
exchange. With `--private`, all run in a network namespace of their own, on Linux: nobody else reaches them,
and they reach nothing else, so data have to be there. They see themselves as root, with the rights of who
started them.

SIGINT, SIGTERM and SIGHUP are passed on to all, and nothing is restarted after one. The exit code is 0, or
the first other one of a process that was given up or ended before process 0: 128 + N if signal N ended it.
"""

import argparse
import contextlib
import ctypes
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from def_jax.elastic.network import free_address
from def_jax.elastic.roll_call import SECRET
from def_jax.elastic.service import LAUNCHED
from def_jax.tools import private_network

__all__ = ['Launcher', 'die_with_parent', 'main']

_ENDED = (0, 2, 3, 4, 5)  # finished, refused, diverged, stopped, copies differ
_HEALTHY_SECONDS = 60  # after which a death is the first one again
_LONGEST_PAUSE = 60
_NOT_STARTED = 127  # as in a shell
_LIBC = ctypes.CDLL(None)


class Launcher:
    """The processes of a run.

    Args:
        command: what each of them runs.
        processes: how many processes.
        restarts: how many deaths of one process in a row, each within a minute of its start, are too many.
        frozen: seconds after which a stopped process (SIGSTOP) counts as dead, and after which the others are
            killed when process 0 has ended.
        pause: seconds before the first restart; doubled for each further death in a row.
        together: restart all when any process dies, not only process 0.
        log: the standard output and error of process I go to LOG-I.log; None for this program's.
        say: called with a line about each death, freeze and signal; by default it prints.
    """

    def __init__(
        self,
        command: Sequence[str],
        processes: int,
        *,
        restarts: int = 10,
        frozen: float = 30.0,
        pause: float = 1.0,
        together: bool = False,
        log: str | None = None,
        say: Callable[[str], None] | None = None,
    ):
        # Which no process of somebody else's on this machine knows.
        self._secret = {SECRET: os.environ.get(SECRET) or secrets.token_hex(32)}
        self._command, self._count, self._log, self._say = list(command), processes, log, say or _print
        self._restarts, self._frozen, self._pause, self._together = restarts, frozen, pause, together
        self._alive: dict[int, subprocess.Popen] = {}
        self._born: dict[int, float] = {}
        self._deaths = dict.fromkeys(range(processes), 0)  # in a row
        self._due: dict[int, float] = {}  # when those that died are started again; with 0, all
        self._stopped: dict[int, float] = {}  # since when
        self._codes: dict[int, int] = {}  # of those that ended by themselves
        self._ended = 0.0  # when one of them last did
        self._signal = 0  # the last one; nothing is started again after it
        self._signals: list[int] = []  # that are still to be passed on

    def pid(self, index: int) -> int | None:
        """The process id of a live process."""
        child = self._alive.get(index)
        return child.pid if child else None

    def run(self, meanwhile: Callable[[], None] = lambda: None) -> int:
        """Runs until all processes have ended; calls `meanwhile` ten times a second.

        Returns:
            0, or the first other code of a process that was given up or ended before process 0, 128 + N for
            signal N, 127 if it could not be started again; if a signal came while none was alive, that of
            the signal.

        Raises:
            OSError: if a process cannot be started the first time; none is left running.
        """
        self._start_all(first=True)
        while self._alive or self._due:
            meanwhile()
            self._pass_on()
            for index, child in list(self._alive.items()):
                self._look_after(index, child)
            if 0 in self._codes:
                self._due.clear()
                if self._alive and time.monotonic() > self._ended + self._frozen:
                    left = ', '.join(map(str, sorted(self._alive)))
                    self._say(f'process 0 has ended, and {left} has not for {self._frozen:g} s and is killed')
                    self._end_all()
            for index, due in list(self._due.items()):
                if time.monotonic() >= due and index in self._due and not self._signal:
                    if index:
                        self._start(index)
                    else:
                        self._start_all()
            time.sleep(0.1)
        codes = self._codes.values() or [128 + self._signal]  # none: all were to be started again
        return next(filter(None, codes), 0)

    def stop(self, number: int) -> None:
        """Has `run` pass a signal on to all, and start none again; for handlers of signals."""
        self._signal = number
        self._signals.append(number)

    def _pass_on(self) -> None:
        """One signal: of two that follow at once, a process may see one.

        Not in the handler, which may interrupt the start of a process that is to receive the signal, too.
        """
        if self._signals:
            number = self._signals.pop(0)
            self._due.clear()
            for child in self._alive.values():
                with contextlib.suppress(ProcessLookupError):
                    child.send_signal(number)
            self._say(f'{signal.Signals(number).name} is passed on, and nothing is started again')

    def _look_after(self, index: int, child: subprocess.Popen) -> None:
        if self._alive.get(index) is not child:  # ended with process 0
            return
        if (code := child.poll()) is None:
            self._end_if_frozen(index, child)
            return
        del self._alive[index]
        self._stopped.pop(index, None)
        shown = code if code >= 0 else 128 - code
        if code in _ENDED or self._signal:
            self._codes[index], self._ended = shown, time.monotonic()
            return
        how = f'exit code {code}' if code >= 0 else signal.Signals(-code).name
        lived = time.monotonic() - self._born[index]
        self._died(index, f'({how}) after {lived:.0f} s', shown, lived)

    def _died(self, index: int, how: str, code: int, lived: float) -> None:
        """Has a process started again, or all, or gives it up."""
        self._deaths[index] = 1 if lived > _HEALTHY_SECONDS else self._deaths[index] + 1
        if self._deaths[index] > self._restarts:
            self._say(
                f'process {index} died {how}, {self._deaths[index]} times in a row; it is not started again'
            )
            self._codes[index], self._ended = code, time.monotonic()
            if self._together:  # they cannot go on, and die one after the other
                self._end_all()
            return
        if 0 in self._codes:  # the others cannot go on without it
            return
        pause = min(_LONGEST_PAUSE, self._pause * 2 ** (self._deaths[index] - 1))
        if index and not self._together:
            self._say(f'process {index} died {how}; it is started again in {pause:g} s')
            self._due[index] = time.monotonic() + pause
            return
        self._say(f'process {index} died {how}; all are started again in {pause:g} s')
        self._end_all()
        self._codes.clear()
        self._due[0] = time.monotonic() + pause

    def _end_if_frozen(self, index: int, child: subprocess.Popen) -> None:
        if not _is_stopped(child.pid):
            self._stopped.pop(index, None)
        elif time.monotonic() - self._stopped.setdefault(index, time.monotonic()) > self._frozen:
            self._say(f'process {index} has been stopped for {self._frozen:g} s and is killed')
            child.kill()

    def _start_all(self, *, first: bool = False) -> None:
        self._due.clear()
        self._address = free_address()
        for index in range(self._count):
            if not self._start(index, first=first) and (index == 0 or self._together):
                break
            if self._signal:
                break

    def _start(self, index: int, *, first: bool = False) -> bool:
        """Whether the process was started; if not, and it is not the first time, that is a death."""
        self._due.pop(index, None)
        place = dict(zip(LAUNCHED, (self._address, str(self._count), str(index)), strict=True))
        try:
            with contextlib.ExitStack() as stack:
                out = stack.enter_context(open(f'{self._log}-{index}.log', 'ab')) if self._log else None
                self._alive[index] = subprocess.Popen(
                    self._command,
                    env=os.environ | place | self._secret,
                    stdout=out,
                    stderr=out,
                    preexec_fn=die_with_parent,
                    process_group=0,  # Ctrl-C reaches this program, which passes it on
                )
        except (OSError, subprocess.SubprocessError) as error:
            if first:
                self._end_all()
                raise
            self._died(index, f'as it was started ({error})', _NOT_STARTED, 0)
            return False
        self._born[index] = time.monotonic()
        return True

    def _end_all(self) -> None:
        self._due.clear()
        for child in self._alive.values():
            child.kill()
            child.wait()
        self._alive.clear()
        self._stopped.clear()


def _print(line: str) -> None:
    with contextlib.suppress(OSError):  # the terminal may be gone
        print(f'launch: {line}', file=sys.stderr, flush=True)


def _is_stopped(pid: int) -> bool:
    """Whether a process, or one that it has started and may be waiting for, is stopped; Linux only."""
    with contextlib.suppress(OSError):
        with open(f'/proc/{pid}/stat', 'rb') as file:
            if file.read().rpartition(b')')[2].split()[0] == b'T':
                return True
        with open(f'/proc/{pid}/task/{pid}/children') as file:
            return any(_is_stopped(int(child)) for child in file.read().split())
    return False


def die_with_parent() -> None:
    """Arranges for this process to be killed when its parent exits; Linux only."""
    if sys.platform == 'linux':
        _LIBC.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog='python -m def_jax.launch',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--processes', type=int, required=True, help='how many processes to start')
    parser.add_argument(
        '--restarts', type=int, default=10, help='deaths of a process in a row before it is given up'
    )
    parser.add_argument(
        '--frozen',
        type=float,
        default=30,
        help='seconds until a stopped process is killed, or those left when process 0 ended',
    )
    parser.add_argument(
        '--together', action='store_true', help='restart all when one dies: for runs that are not elastic'
    )
    parser.add_argument(
        '--private', action='store_true', help='in a network of their own, which no other user reaches'
    )
    parser.add_argument('--log', help='write the output of process I to LOG-I.log')
    parser.add_argument('command', nargs=argparse.REMAINDER, help='the program and its flags')
    given = parser.parse_args(arguments)
    given.command = given.command[given.command[:1] == ['--'] :]
    if given.processes < 1 or not given.command:
        parser.error('--processes must be at least 1, and a command must follow, e.g. python train.py …')
    if given.private:
        own = sys.argv[1:] if arguments is None else arguments
        try:
            network = private_network.enter([sys.executable, '-m', 'def_jax.launch', *own])
        except private_network.NoNetworkError as error:
            print(f'launch: {error}', file=sys.stderr)
            return 2
        _print(f'the processes have a network of their own, {network}, with 127.0.0.1 and nothing else')
    launcher = Launcher(
        given.command,
        given.processes,
        restarts=given.restarts,
        frozen=given.frozen,
        together=given.together,
        log=given.log,
    )
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as SIGHUP is under nohup
            signal.signal(number, lambda number, frame: launcher.stop(number))
    try:
        return launcher.run()
    except (OSError, subprocess.SubprocessError) as error:
        print(f'launch: a process could not be started ({error}).', file=sys.stderr)
        return 2
