"""Program output: no duplicate messages, and no crash when standard output is closed."""

import contextlib
import logging as std_logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, TextIO

from absl import logging

__all__ = ['hush_orbax', 'lasting']


@contextlib.contextmanager
def lasting(program: str) -> Iterator[None]:
    """Within the block, output is discarded once writing fails, as in `train.py … | head -1`; a run goes on.

    Characters that standard output and error cannot encode become '?', e.g. λ.
    """
    notice = f'{program}: standard output can no longer be written to; continuing without it.'
    streams = [(stream, text) for stream, text in ((sys.stdout, notice), (sys.stderr, '')) if stream]
    for stream, text in streams:  # None is one that was closed before Python started
        stream.reconfigure(errors='replace')  # type: ignore[union-attr]
        for name in ('write', 'flush'):
            setattr(stream, name, _lasting(stream, getattr(stream, name), text))
    try:
        yield
    finally:
        for stream, _ in streams:
            stream.flush()
            del stream.write, stream.flush


def _lasting(stream: TextIO, method: Callable[..., Any], notice: str) -> Callable[..., Any]:
    def lasting(*args: Any) -> Any:
        try:
            return method(*args)
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())  # whatever is still buffered goes there too
            os.close(nowhere)
            if notice:
                print(notice, file=sys.stderr)
            return len(args[0]) if args else None

    return lasting


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
