"""Supervises child processes from their parent, which reports a reason and an exit code.

When a process of a run dies, JAX's runtime aborts the others, bypassing every `except` and `finally`.
"""

import contextlib
import faulthandler
import os
import signal
import sys
from collections.abc import Callable, Iterable
from typing import Any

from def_jax.tools.launch import die_with_parent
from def_jax.trainer.launch import interruption
from def_jax.trainer.launch.exits import LostProcessError

__all__ = ['side_by_side', 'supervised']


def supervised(program: str, run: Callable[[], int]) -> int:
    """Calls `run` in a child process and waits for it; call before JAX starts its devices.

    SIGTERM, SIGHUP and Ctrl-C are forwarded to the child. On Linux, the child dies if this process is killed.

    Returns:
        The exit code: the one `run` returned; that of `LostProcessError` if the runtime aborted the child; or
        128 + the number of any other signal that ended it. `program` prefixes the line with the reason.
    """
    return _ended(program, [run], aborted_by_jax=True)


def side_by_side(program: str, runs: Iterable[Callable[[], int]]) -> int:
    """Like `supervised`, for children that work independently; the first exit code that is not 0."""
    return _ended(program, runs, aborted_by_jax=False)


def _ended(program: str, runs: Iterable[Callable[[], int]], *, aborted_by_jax: bool) -> int:
    children = [_started(run) for run in runs]
    _pass_on(children)
    codes = []
    while children:
        _, status = os.waitpid(children[0], 0)
        del children[0]  # its number may be given to another process from now on
        codes.append(_exit_code(program, status, aborted_by_jax))
    return next(filter(None, codes), 0)


def _started(run: Callable[[], int]) -> int:
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        _work(run)
    return child


def _exit_code(program: str, status: int, aborted_by_jax: bool) -> int:
    if not os.WIFSIGNALED(status):
        return os.waitstatus_to_exitcode(status)
    number = os.WTERMSIG(status)
    if number == signal.SIGABRT and aborted_by_jax:
        lost = LostProcessError("aborted by JAX's runtime, which printed the reason above")
        print(f'{program}: {lost}', file=sys.stderr)
        return lost.exit_code
    print(f'{program}: killed by {signal.Signals(number).name}.', file=sys.stderr)
    return 128 + number


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


def _pass_on(children: list[int]) -> None:
    def pass_on(number: int, frame: Any) -> None:
        del frame
        for child in children:
            with contextlib.suppress(ProcessLookupError):  # one that has ended
                os.kill(child, number)

    for number in interruption.SIGNALS:
        signal.signal(number, pass_on)
