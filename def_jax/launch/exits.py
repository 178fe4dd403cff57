"""How a run can end before its last step; each way has an exit code of its own."""

__all__ = ['EndedError', 'LostProcessError']


class EndedError(RuntimeError):
    """A run ended early, for the reason that its message gives; earlier checkpoints are kept."""

    exit_code: int


class LostProcessError(EndedError):
    """Of several processes that train together one has died or cannot be reached."""

    exit_code = 6

    def __init__(self, reason: str):
        super().__init__(
            f'{reason}. Usually another process of the run has died or cannot be reached: see what that one '
            'said. Start all of them again with the same command to resume from the last checkpoint.'
        )
