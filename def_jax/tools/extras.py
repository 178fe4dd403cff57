"""Programs of the extra `training` in an installation of the library alone."""

import contextlib
import sys
from collections.abc import Iterator

__all__ = ['needs_training']


@contextlib.contextmanager
def needs_training(program: str) -> Iterator[None]:
    """Around imports: if a package is missing, the program exits with 2 and one line that has the remedy."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or '').partition('.')[0]
        if package == 'def_jax':
            raise
        remedy = "it comes with pip install 'def_jax[training]'"
        print(f'{program}: {package} is not installed; {remedy}', file=sys.stderr)
        raise SystemExit(2) from None
