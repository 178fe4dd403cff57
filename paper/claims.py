"""Writes the tables of the page of claims: statements against the committed runs, with intervals.

    python -m paper.claims --config=configs/claims.py --output=results/claims.md

A claim compares two cells of tables under results/. Its outcome follows from its interval alone, by rules
that are the same for all claims.
"""

import collections
import dataclasses
import functools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from absl import app, flags
from ml_collections import config_flags

from def_jax.tools import markdown
from def_jax.trainer.launch import command_line
from paper import cells as cells_lib
from paper import finished_runs, needed_runs
from paper.cells import Cell
from paper.statistics import MARGIN, Difference, paired_difference

__all__ = ['Claim', 'Source', 'outcome', 'page', 'tables']

Expected = Literal['equal', 'ahead', 'diverges']
_COLUMNS = ('claim', 'the paper', 'here', 'difference [95 % interval]', 'seeds', 'outcome', 'limits')
_OUTCOME = _COLUMNS.index('outcome')
_VERDICTS = ('holds', 'does not hold', 'open')
_NO_WIDTH = 1e-4  # in points; accuracies are float32, and what is below is rounding
_START, _END = '<!-- written by paper.claims -->', '<!-- end -->'


@dataclasses.dataclass(frozen=True)
class Source:
    """A cell of a committed table: a folder under results/, a row and a column."""

    folder: str
    row: str
    column: str


@dataclasses.dataclass(frozen=True)
class Claim:
    """A statement that runs can decide.

    Attributes:
        text: the statement, e.g. 'DEF equals SGD at ratio 64'.
        paper: the paper's numbers for it; empty for a claim of this project.
        ours: the cell that the statement is about.
        against: the cell that it is compared with; None for 'diverges'.
        expected: what the statement says of `ours`: it equals `against`, is ahead of it, or diverges.
        limits: what else a reader must know.
    """

    text: str
    paper: str
    ours: Source
    against: Source | None
    expected: Expected
    limits: str = ''


def outcome(expected: Expected, difference: Difference) -> str:
    """'holds', 'does not hold' or 'open', from the difference to the cell that a claim compares with.

    'equal' holds if the two are equivalent within `MARGIN`, and does not if the 95 % interval lies entirely
    outside it. 'ahead' holds if the 95 % interval is above zero, and does not if it is below. Seeds that all
    happen to differ by the same amount decide nothing: their interval has no width.

    >>> outcome('ahead', paired_difference([3.0, 3.1, 2.9], [1.0, 1.0, 1.0]))
    'holds'
    >>> outcome('equal', paired_difference([3.0, 1.1, 2.0], [1.0, 1.0, 1.0]))
    'open'
    """
    if not _decides(difference):
        return 'open'
    low, high = difference.interval()
    if expected == 'equal':
        if difference.equivalent():
            return 'holds'
        return 'does not hold' if low > MARGIN or high < -MARGIN else 'open'
    if low > 0:
        return 'holds'
    return 'does not hold' if high < 0 else 'open'


def _decides(difference: Difference) -> bool:
    return not difference.mean or not difference.standard_error < _NO_WIDTH


def tables(claims: Iterable[tuple[str, Sequence[Claim]]], results: Path) -> str:
    """The claims as tables in Markdown.

    Args:
        claims: headings, and the claims below each.
        results: the folder of the committed tables.

    Returns:
        The tables below their headings; the same files give the same text.

    Raises:
        ValueError: if a claim names a cell that is not there.
    """
    cell_of = functools.partial(_cell, functools.cache(_cells), results)
    parts = []
    for heading, group in claims:
        lines = [list(_COLUMNS)]
        lines += [_line(claim, cell_of) for claim in group]
        verdicts = collections.Counter(line[_OUTCOME] for line in lines[1:])
        counts = ', '.join(f'{verdict} {verdicts[verdict]}' for verdict in _VERDICTS)
        parts += [f'## {heading}', f'Outcomes of {len(group)} claims: {counts}.', markdown.table(lines)]
    return '\n\n'.join(parts)


def page(text: str, written: str) -> str:
    """A page with the tables between its two marks replaced.

    Args:
        text: the page.
        written: the tables.

    Returns:
        The new page.

    Raises:
        ValueError: if a mark is missing.

    >>> print(page(f'before {_START} old {_END} after', 'new'))
    before <!-- written by paper.claims -->
    <BLANKLINE>
    new
    <BLANKLINE>
    <!-- end --> after
    """
    return markdown.replaced(text, _START, _END, written)


def _line(claim: Claim, cell_of: Any) -> list[str]:
    ours, our_edge = cell_of(claim.ours)
    link = f'[{ours.text}]({claim.ours.folder}/README.md)'
    if claim.against is None:
        verdict = 'holds' if ours.diverged == len(ours.results) else 'does not hold'
        limits = _joined(claim.limits, _edges(first=our_edge))
        return [claim.text, claim.paper, link, '', str(len(ours.results)), verdict, limits]
    theirs, their_edge = cell_of(claim.against)
    difference = paired_difference(ours.by_seed, theirs.by_seed)
    if difference is None:
        raise ValueError(f'{claim.text!r} compares cells that share no seed.')
    verdict = outcome(claim.expected, difference)
    close = (
        (claim.expected, verdict) == ('ahead', 'open') and _decides(difference) and difference.equivalent()
    )
    return [
        claim.text,
        claim.paper,
        f'{link} against {theirs.text}',
        difference.text(),
        str(difference.num_pairs),
        verdict,
        _joined(
            claim.limits,
            f'equal within {MARGIN:g} points' if close else '',
            _edges(first=our_edge, second=their_edge),
        ),
    ]


def _edges(**at_the_edge: bool) -> str:
    places = ' and '.join(place for place, edge in at_the_edge.items() if edge)
    return places and f'{places} at the edge'


def _joined(*limits: str) -> str:
    return '; '.join(filter(None, limits))


def _cell(cells_in: Any, results: Path, source: Source) -> tuple[Cell, bool]:
    for cell, at_the_edge in cells_in(results / source.folder):
        if (cell.row, cell.column) == (source.row, source.column) and cell.results:
            return cell, at_the_edge
    raise ValueError(f'{source} names no cell with finished runs.')


def _cells(folder: Path) -> list[tuple[Cell, bool]]:
    """The cells of a table, and whether something chosen for each is the least or most that was tried."""
    table = json.loads((folder / 'sweep.json').read_text(encoding='utf-8'))
    needed_runs.check_table(table, str(folder / 'sweep.json'))
    found = finished_runs.read(folder)
    described = zip(cells_lib.of_table(table, found), table['cells'], strict=True)
    return [(cell, _at_the_edge(table, description, found)) for cell, description in described]


def _at_the_edge(table: Any, cell: Any, found: finished_runs.Results) -> bool:
    tried = [settings for settings, _ in needed_runs.candidates(table, cell)]
    choice = needed_runs.cell_choice(table, cell, found) if tried else None
    if choice is None:
        return False
    grid = {key: [settings[key] for settings in tried] for key in choice}
    return any(value in (min(grid[key]), max(grid[key])) for key, value in choice.items())


def main(argv: list[str]) -> int:
    del argv
    config, output = flags.FLAGS.config, Path(flags.FLAGS.output)
    try:
        text = page(output.read_text(encoding='utf-8'), tables(config.claims, output.parent))
        output.write_text(text, encoding='utf-8')
    except (OSError, ValueError) as error:
        return command_line.refuse('claims', error)
    print(f'written to {output}')
    return 0


if __name__ == '__main__':
    config_flag = config_flags.DEFINE_config_file('config', 'configs/claims.py', 'The claims.')
    flags.DEFINE_string('output', 'results/claims.md', 'The page, in the folder of the committed tables.')
    app.run(main, flags_parser=command_line.config_flags_parser('claims', config_flag))
