"""An error, as a program prints it."""

import contextlib
import traceback
from collections.abc import Iterator

__all__ = ['explained', 'one_line']

_LONGEST = 500


@contextlib.contextmanager
def explained(what: str, kinds: tuple[type[Exception], ...] = (Exception,)) -> Iterator[None]:
    """Raises an error of the block, which may be anyone's code, as a ValueError about `what`, in one line."""
    try:
        yield
    except FileNotFoundError:
        raise  # data that are missing, with their own remedy
    except kinds as error:
        raise ValueError(f'{what}: {one_line(error, place=True)}') from error


def one_line(error: BaseException, *, place: bool = False) -> str:
    """An error's text in one line; of a long text, such as tensorstore's, only the first line.

    Args:
        error: the error; of nested ones, as config_flags raises, the innermost.
        place: whether to add its type and place, unless it speaks for itself: of code that may be anyone's.

    >>> one_line(ValueError('depth=3 must\\nbe even.')), one_line(KeyError('no such key'))
    ('depth=3 must be even.', 'no such key')
    """
    while error.args and isinstance(error.args[0], Exception):
        error = error.args[0]
    quoted = isinstance(error, LookupError) and error.args and isinstance(error.args[0], str)
    text = str(error.args[0] if quoted else error).strip()
    text = ' '.join((text if quoted or len(text) < _LONGEST else text.splitlines()[0]).split())
    if not place or (isinstance(error, (ValueError, ImportError)) and text):
        return text or type(error).__name__
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename[:1] != '<']
    return f'{type(error).__name__}: {text}, {frames[-1].filename}:{frames[-1].lineno}'
