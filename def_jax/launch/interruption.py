"""SIGTERM, SIGHUP and Ctrl-C: a training loop stops at the end of its step, all else at once.

Python handles signals between two instructions of the main thread, and while XLA compiles or a data set is
downloaded there is none for minutes. So a thread hears of them as well, through `signal.set_wakeup_fd`.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

from def_jax.launch.exits import EndedError, ExitCode

__all__ = ['SIGNALS', 'InterruptedRunError', 'Watch', 'ending_at_once', 'watch']

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_END = b'\0'  # no signal has this number


class InterruptedRunError(EndedError):
    """A signal ended the run; its state is in the checkpoint of that step."""

    exit_code = ExitCode.STOPPED

    def __init__(self, name: str, step: int):
        super().__init__(
            f'stopped by {name} after step {step}; the checkpoint is written. Run the same command again to '
            'resume.'
        )
        self.step = step


class Watch:
    """Whether a signal has arrived, and which."""

    name: str | None = None


_watched: Watch | None = None


@contextlib.contextmanager
def watch() -> Iterator[Watch]:
    """In the block the first signal is only noted; the second acts as it would without the block.

    Outside the main thread signals cannot be caught, and nothing changes.

    >>> with watch() as seen:
    ...     signal.raise_signal(signal.SIGTERM)
    ...     print(seen.name)
    SIGTERM
    """
    global _watched
    seen = Watch()
    if threading.current_thread() is not threading.main_thread():
        yield seen
        return

    def note(number: int, frame: Any) -> None:
        del frame
        seen.name = signal.Signals(number).name
        restore()

    restore = _handled_by(note)
    _watched = seen
    try:
        yield seen
    finally:
        _watched = None
        restore()


@contextlib.contextmanager
def ending_at_once(program: str) -> Iterator[None]:
    """In the block a signal, within `watch` the second, ends the process at once, with exit code 4.

    Nothing is unwound: an exception that leaves a thread at work in XLA behind ends in a segmentation fault.
    Files are as after a kill, which every writer of the project allows for.

    Args:
        program: the name that the line begins with.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    restore = _handled_by(lambda number, frame: None)
    wakeup_before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    thread = threading.Thread(target=_listen, args=(reader, program), name='signals', daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup_before)
        restore()
        os.write(writer, _END)
        thread.join()
        os.close(reader)
        os.close(writer)


def _listen(reader: int, program: str) -> None:
    """Answers each signal; in its own thread, by system calls that wait for nobody."""
    acknowledged: Watch | None = None
    while (byte := os.read(reader, 1)) != _END:
        if byte[0] not in SIGNALS:
            continue
        name, watched = signal.Signals(byte[0]).name, _watched
        if watched is None or watched is acknowledged:
            _say(f'{program}: stopped by {name}. Run the same command again to resume.')
            os._exit(ExitCode.STOPPED)
        acknowledged = watched
        _say(f'{program}: {name}: stopping after the step at hand, with a checkpoint; again to stop at once')


def _say(line: str) -> None:
    with contextlib.suppress(OSError):  # the terminal may be gone
        os.write(2, f'{line}\n'.encode())


def _handled_by(handler: Any) -> Callable[[], None]:
    """Sets a handler for the signals that are not ignored; returns a function that restores the old ones."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    # A shell starts jobs in the background with SIGINT ignored, nohup a command with SIGHUP.
    before = {number: old for number, old in before.items() if old is not signal.SIG_IGN}
    for number in before:
        signal.signal(number, handler)

    def restore() -> None:
        for number, old in before.items():
            signal.signal(number, old)

    return restore
