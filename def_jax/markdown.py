"""Markdown, as every page and program of the project writes it."""

from collections.abc import Iterable

__all__ = ['table']


def table(rows: Iterable[Iterable[object]]) -> str:
    """Rows of cells as a Markdown table; the first row is its head.

    >>> print(table([['ratio', 'MB sent'], [64, 2.3]]))
    | ratio | MB sent |
    | --- | --- |
    | 64 | 2.3 |
    """
    head, *body = ([str(cell) for cell in row] for row in rows)
    return '\n'.join(f'| {" | ".join(row)} |' for row in [head, ['---'] * len(head), *body])
