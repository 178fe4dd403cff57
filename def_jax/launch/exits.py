"""How a program ends. The exit codes are stated here and nowhere else."""

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
    REFUSED = 2, 'a flag, file or folder cannot be used, or a disk is full; what was there is kept'
    DIVERGED = 3, 'the loss became NaN or infinite'
    STOPPED = 4, 'stopped by SIGTERM, SIGHUP or Ctrl-C; the same command resumes'
    REPLICAS_DIFFER = 5, 'workers that should agree do not (--config.check_replicas_every)'
    PROCESS_LOST = 6, 'another process of the run was lost'


# A program appends this to its docstring, which --help prints.
EXIT_CODES = 'Exit codes:\n' + ''.join(f'  {code:d}  {code.description}\n' for code in ExitCode)


class EndedError(RuntimeError):
    """A run ended early, for the reason that its message gives; earlier checkpoints are kept."""

    exit_code: ExitCode


class LostProcessError(EndedError):
    """Of several processes that train together one has died or cannot be reached."""

    exit_code = ExitCode.PROCESS_LOST

    def __init__(self, reason: str):
        super().__init__(
            f'{reason}. Usually another process of the run has died or cannot be reached: see what that one '
            'said. Start all of them again with the same command to resume from the last checkpoint.'
        )
