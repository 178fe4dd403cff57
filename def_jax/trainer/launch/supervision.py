"""Runs a program in a child process: if another process dies, JAX's runtime aborts it past any `finally`."""

import contextlib
import faulthandler
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from def_jax.tools.launcher import die_with_parent
from def_jax.trainer.launch import interruption
from def_jax.trainer.launch.exits import LostProcessError

__all__ = ['supervised']

_SECONDS = 0.05  # until a signal or the child's end is noticed, at most


def supervised(program: str, run: Callable[[], int]) -> int:
    """The exit code of `run` in a child process; call before JAX starts its devices.

    It is that of `LostProcessError` if the runtime aborted the child, 128 + the number of any other signal
    that ended it. Signals are forwarded. On Linux, the child dies if this process is killed.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        _work(run)

    def pass_on(number: int, frame: Any) -> None:
        with contextlib.suppress(ProcessLookupError):  # it has ended
            os.kill(child, number)

    for number in interruption.SIGNALS:
        signal.signal(number, pass_on)
    # A wait in the system would hold up a signal that arrived just before it until the child's end.
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0):
        time.sleep(_SECONDS)
    status = ended[1]
    for number in interruption.SIGNALS:  # the child's number may be given to another process from now on
        signal.signal(number, signal.SIG_IGN)
    if not os.WIFSIGNALED(status):
        return os.waitstatus_to_exitcode(status)
    if os.WTERMSIG(status) == signal.SIGABRT:
        lost = LostProcessError("aborted by JAX's runtime, which printed the reason above")
        print(f'{program}: {lost}', file=sys.stderr)
        return lost.exit_code
    print(f'{program}: killed by {signal.Signals(os.WTERMSIG(status)).name}.', file=sys.stderr)
    return 128 + os.WTERMSIG(status)


def _work(run: Callable[[], int]) -> None:
    """Runs the child, then skips atexit handlers, which would block on dead peers."""
    code = 1
    try:
        os.setpgid(0, 0)  # otherwise Ctrl-C would reach it twice
        die_with_parent()
        faulthandler.disable()  # the runtime's own message is more useful than a Python traceback
        code = run()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
