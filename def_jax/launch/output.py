"""What a program prints: nothing twice, and nothing that ends it when nobody is left to read."""

import contextlib
import logging as std_logging
import os
import sys
import threading
from collections.abc import Iterator
from typing import Any, TextIO

from absl import logging

__all__ = ['Lasting', 'hush_orbax', 'lasting']


class Lasting:
    """A stream that falls silent, instead of raising, once it cannot be written to.

    A pipe whose reader has ended, as in `train.py … | head -1`, a terminal that was closed, a full disk: none
    of them is a reason to end a run.

    Args:
        stream: one with a file descriptor.
        notice: what to say on standard error then; '' for nothing.
    """

    def __init__(self, stream: TextIO, notice: str):
        self._stream, self._notice = stream, notice

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            self._fall_silent()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            self._fall_silent()

    def _fall_silent(self) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())  # what is still in the buffer goes there as well
        os.close(nowhere)
        if self._notice:
            print(self._notice, file=sys.stderr)


@contextlib.contextmanager
def lasting(program: str) -> Iterator[None]:
    """In the block standard output and error last; what their encoding lacks, as ASCII a λ, becomes '?'."""
    before = sys.stdout, sys.stderr
    notice = f'{program}: standard output cannot be written to any more; going on without it.'
    sys.stdout, sys.stderr = _lasting(sys.stdout, notice), _lasting(sys.stderr, '')
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        sys.stdout, sys.stderr = before


def _lasting(stream: Any, notice: str) -> Any:
    if stream is None:  # closed before Python started
        return None
    stream.reconfigure(errors='replace')
    return Lasting(stream, notice)


def hush_orbax() -> None:
    """Keeps orbax from logging every file, and the tracebacks of errors that it raises as well.

    A full disk makes 200 lines of them; `Checkpoints` says in one what went wrong.
    """
    std_logging.getLogger('asyncio').setLevel(std_logging.CRITICAL)  # here only orbax has tasks
    logging.get_absl_logger().addFilter(lambda record: '/orbax/' not in record.pathname)
    report, report_of_thread = sys.unraisablehook, threading.excepthook

    def unless_loop_closed(error: Any) -> None:
        if str(error.exc_value) != 'Event loop is closed':  # of writes of tensorstore's
            report(error)

    def unless_orbax(error: threading.ExceptHookArgs) -> None:
        if not type(error.thread).__module__.startswith('orbax.'):
            report_of_thread(error)

    sys.unraisablehook, threading.excepthook = unless_loop_closed, unless_orbax
