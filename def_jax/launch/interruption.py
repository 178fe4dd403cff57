"""SIGTERM and Ctrl-C: a training loop is asked to stop, and stops at the end of its step."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

from def_jax.launch.exits import EndedError, ExitCode

__all__ = ['InterruptedRunError', 'Watch', 'watch']

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


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


@contextlib.contextmanager
def watch() -> Iterator[Watch]:
    """In the block the first SIGTERM or Ctrl-C is only noted; the second acts as it would without the block.

    Outside the main thread signals cannot be caught, and nothing changes.

    >>> with watch() as seen:
    ...     signal.raise_signal(signal.SIGTERM)
    ...     print(seen.name)
    SIGTERM
    """
    seen = Watch()
    if threading.current_thread() is not threading.main_thread():
        yield seen
        return
    before: dict[signal.Signals, Any] = {}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, frame: Any) -> None:
        del frame
        seen.name = signal.Signals(number).name
        restore()

    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as a shell starts jobs in the background
            before[number] = signal.signal(number, note)
    try:
        yield seen
    finally:
        restore()
