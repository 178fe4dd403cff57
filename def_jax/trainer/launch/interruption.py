"""SIGTERM, SIGHUP and Ctrl-C: a training loop finishes its step; anything else stops immediately.

Python's handlers wait while XLA compiles or data download, so a second thread receives signals.

JAX's `multihost_utils.reached_preemption_sync_point` was tried with two processes: both stopped at the same
step after SIGTERM, but SIGHUP killed one, and Ctrl-C in one left the other training.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from def_jax.trainer.launch.exits import EndedError, ExitCode

__all__ = ['SIGNALS', 'InterruptedRunError', 'Watch', 'ending_at_once', 'watch']

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SAME = 0.5  # seconds within which a signal to all processes arrives twice: the supervisor passes it on
_END = b'\0'  # no signal has this number


class InterruptedRunError(EndedError):
    """A signal ended the run; the checkpoint of that step holds its state."""

    exit_code = ExitCode.STOPPED

    def __init__(self, name: str, step: int):
        saved = f'stopped by {name} after step {step}; a checkpoint was saved'
        super().__init__(f'{saved}. Run the same command again to resume.')


class Watch:
    """Records whether a signal has arrived, and which one."""

    name: str | None = None


_watched: Watch | None = None


@contextlib.contextmanager
def watch() -> Iterator[Watch]:
    """Within the block, the first signal is only recorded; only the main thread can catch signals.

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
    """Within the block, a signal (inside `watch`, the second) exits the process immediately with code 4.

    The stack is not unwound, which can segfault while another thread is in XLA: files are as after a kill.
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
    """Responds to each signal, in its own thread, using only system calls that do not block."""
    acknowledged: Watch | None = None
    at = 0.0
    while (byte := os.read(reader, 1)) != _END:
        if byte[0] not in SIGNALS:
            continue
        name, watched = signal.Signals(byte[0]).name, _watched
        if acknowledged is not None and time.monotonic() - at < _SAME:
            continue
        if watched is None or watched is acknowledged:
            _say(f'{program}: stopped by {name}. Run the same command again to resume.')
            os._exit(ExitCode.STOPPED)
        acknowledged, at = watched, time.monotonic()
        _say(f'{program}: {name}: stopping with a checkpoint; send it again to stop now')


def _say(line: str) -> None:
    with contextlib.suppress(OSError):  # the terminal may be gone
        os.write(2, f'{line}\n'.encode())


def _handled_by(handler: Any) -> Callable[[], None]:
    """Handles every signal that is not ignored; returns a function that restores the old handlers."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    # Shells start background jobs with SIGINT ignored; nohup ignores SIGHUP.
    before = {number: old for number, old in before.items() if old is not signal.SIG_IGN}
    for number in before:
        signal.signal(number, handler)

    def restore() -> None:
        for number, old in before.items():
            signal.signal(number, old)

    return restore
