"""How a run can end before its last step; each way has an exit code of its own."""

__all__ = ['EndedError']


class EndedError(RuntimeError):
    """A run ended early, for the reason that its message gives; earlier checkpoints are kept."""

    exit_code: int
