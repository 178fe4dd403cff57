"""One process of several, watched by its parent, so that it ends with a reason and an exit code.

Where a process of a run dies, JAX's runtime aborts the others from within, past every `except` and `finally`.
"""

import ctypes
import faulthandler
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from def_jax.launch import interruption
from def_jax.launch.exits import LostProcessError

__all__ = ['die_with_parent', 'supervised']

_KILL_WITH_PARENT = 1  # PR_SET_PDEATHSIG
_LIBC = ctypes.CDLL(None)


def supervised(program: str, run: Callable[[], int]) -> int:
    """Calls `run` in a child process and waits for it; call before JAX starts its devices.

    SIGTERM, SIGHUP and Ctrl-C are passed on to the child, and it dies where this process is killed.

    Args:
        program: the name that a line of error begins with.
        run: the work; returns its exit code.

    Returns:
        The exit code: what `run` returned, that of `LostProcessError` where the runtime aborted it, 128 + the
        number of another signal that ended the child.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        _work(run)
    _pass_on(child, *interruption.SIGNALS)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status):
        return os.waitstatus_to_exitcode(status)
    number = os.WTERMSIG(status)
    if number == signal.SIGABRT:
        lost = LostProcessError("ended by JAX's runtime, which says why above")
        print(f'{program}: {lost}', file=sys.stderr)
        return lost.exit_code
    print(f'{program}: killed by {signal.Signals(number).name}.', file=sys.stderr)
    return 128 + number


def die_with_parent() -> None:
    """From now on this process is killed where the one that started it ends; on Linux only."""
    if sys.platform == 'linux':
        _LIBC.prctl(_KILL_WITH_PARENT, signal.SIGKILL)


def _work(run: Callable[[], int]) -> None:
    """The child's whole life. It leaves without Python's farewells, which would wait for the dead."""
    code = 1
    try:
        os.setpgid(0, 0)  # or Ctrl-C would reach it twice
        die_with_parent()
        faulthandler.disable()  # the runtime's own message says more than where Python was
        code = run()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _pass_on(child: int, *numbers: int) -> None:
    def pass_on(number: int, frame: Any) -> None:
        del frame
        os.kill(child, number)

    for number in numbers:
        signal.signal(number, pass_on)
