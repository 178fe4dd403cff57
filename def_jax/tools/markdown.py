"""Markdown output, shared by all reports and programs."""

from collections.abc import Iterable

__all__ = ['replaced', 'table']


def table(rows: Iterable[Iterable[object]]) -> str:
    """Formats rows of cells as a Markdown table; the first row is the header.

    >>> print(table([['ratio', 'MB sent'], [64, 2.3]]))
    | ratio | MB sent |
    | --- | --- |
    | 64 | 2.3 |
    """
    head, *body = ([str(cell) for cell in row] for row in rows)
    return '\n'.join(f'| {" | ".join(row)} |' for row in [head, ['---'] * len(head), *body])


def replaced(text: str, begin: str, end: str, written: str) -> str:
    """Replaces what a page has between two marks; the marks stay, on lines of their own.

    Raises:
        ValueError: if a mark is missing.

    >>> print(replaced('before <!-- a --> old <!-- b --> after', '<!-- a -->', '<!-- b -->', 'new'))
    before <!-- a -->
    <BLANKLINE>
    new
    <BLANKLINE>
    <!-- b --> after
    """
    before, start, rest = text.partition(begin)
    _, stop, after = rest.partition(end)
    if not (start and stop):
        raise ValueError(f'the page needs the lines {begin!r} and {end!r}, between which the tables belong.')
    return f'{before}{begin}\n\n{written}\n\n{end}{after}'
