"""An error, as a program prints it."""

import traceback

__all__ = ['one_line']


def one_line(error: BaseException) -> str:
    """An error in one line, with its place unless it speaks for itself.

    >>> one_line(ValueError('depth=3 must\\nbe even.'))
    'depth=3 must be even.'
    """
    while error.args and isinstance(error.args[0], Exception):  # config_flags nests exceptions this way
        error = error.args[0]
    text = ' '.join(str(error).split())
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename[:1] != '<']
    if (isinstance(error, (ValueError, ImportError, OSError)) and text) or not frames:
        return text or type(error).__name__
    return f'{type(error).__name__}: {text}, {frames[-1].filename}:{frames[-1].lineno}'
