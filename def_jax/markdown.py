"""Markdown output, shared by all reports and programs."""

from collections.abc import Iterable

__all__ = ['table']


def table(rows: Iterable[Iterable[object]]) -> str:
    """Formats rows of cells as a Markdown table; the first row is the header.

    >>> print(table([['ratio', 'MB sent'], [64, 2.3]]))
    | ratio | MB sent |
    | --- | --- |
    | 64 | 2.3 |
    """
    head, *body = ([str(cell) for cell in row] for row in rows)
    return '\n'.join(f'| {" | ".join(row)} |' for row in [head, ['---'] * len(head), *body])
