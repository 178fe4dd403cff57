"""Program output: no duplicate messages, and no crash when standard output is closed."""

import contextlib
import logging as std_logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, TextIO

from absl import logging

__all__ = ['Lasting', 'hush_orbax', 'lasting']


class Lasting:
    """A stream that discards its output once writing fails, as in `train.py … | head -1`; a run goes on."""

    def __init__(self, stream: TextIO, notice: str):
        self._stream, self._notice = stream, notice

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        self._lasting(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._lasting(self._stream.flush)

    def _lasting(self, action: Callable[[], Any]) -> None:
        try:
            action()
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())  # whatever is still buffered goes there too
            os.close(nowhere)
            if self._notice:
                print(self._notice, file=sys.stderr)


@contextlib.contextmanager
def lasting(program: str) -> Iterator[None]:
    """Makes standard output and error `Lasting`; characters they cannot encode become '?', e.g. λ."""
    before = sys.stdout, sys.stderr
    notice = f'{program}: standard output can no longer be written to; continuing without it.'
    sys.stdout, sys.stderr = _lasting(sys.stdout, notice), _lasting(sys.stderr, '')
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        sys.stdout, sys.stderr = before


def _lasting(stream: Any, notice: str) -> Any:
    if stream is not None:  # closed before Python started
        stream.reconfigure(errors='replace')
        return Lasting(stream, notice)


def hush_orbax() -> None:
    """Stops orbax from logging every file, and tracebacks of errors that it also raises."""
    std_logging.getLogger('asyncio').setLevel(std_logging.CRITICAL)  # only orbax uses asyncio here
    logging.get_absl_logger().addFilter(lambda record: '/orbax/' not in record.pathname)
    report, report_of_thread = sys.unraisablehook, threading.excepthook

    def unless_loop_closed(error: Any) -> None:
        if str(error.exc_value) != 'Event loop is closed':  # from pending tensorstore writes
            report(error)

    def unless_orbax(error: threading.ExceptHookArgs) -> None:
        if not type(error.thread).__module__.startswith('orbax.'):
            report_of_thread(error)

    sys.unraisablehook, threading.excepthook = unless_loop_closed, unless_orbax
