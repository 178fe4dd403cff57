"""The exit codes, defined here only, and the errors that carry them."""

import enum

__all__ = ['EXIT_CODES', 'EndedError', 'ExitCode', 'LostProcessError']


class ExitCode(enum.IntEnum):
    """The exit codes of all programs."""

    description: str

    def __new__(cls, code: int, description: str):
        member = int.__new__(cls, code)
        member._value_, member.description = code, description
        return member

    FINISHED = 0, 'finished'
    REFUSED = 2, 'a flag, file or folder cannot be used, or a disk is full; existing files are kept'
    DIVERGED = 3, 'the loss became NaN or infinite'
    STOPPED = 4, 'stopped by SIGTERM, SIGHUP or Ctrl-C; the same command resumes'
    REPLICAS_DIFFER = 5, 'workers that should agree do not (elastic, or --config.check_replicas_every)'
    PROCESS_LOST = 6, 'another process of the run was lost'


# A program appends this to its docstring, which --help prints.
EXIT_CODES = 'Exit codes:\n' + ''.join(f'  {code:d}  {code.description}\n' for code in ExitCode)


class EndedError(RuntimeError):
    """A run ended early, for the reason in its message; earlier checkpoints are kept."""

    exit_code: ExitCode


class LostProcessError(EndedError):
    """One of the processes of a run has died or cannot be reached."""

    exit_code = ExitCode.PROCESS_LOST

    def __init__(self, reason: str):
        super().__init__(
            f'{reason}. Usually another process of the run has died or cannot be reached: check its output. '
            'Restart all processes with the same commands to resume from the last checkpoint.'
        )
