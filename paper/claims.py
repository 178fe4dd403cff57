"""Writes the tables of the page of claims: statements against the committed runs, with intervals.

    python -m paper.claims --config=configs/claims.py --output=results/claims.md

A claim compares two cells of tables under results/. Its outcome follows from its interval alone, by rules
that are the same for all claims.
"""

import dataclasses
import functools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from absl import app, flags
from ml_collections import config_flags

from def_jax.tools import markdown
from def_jax.trainer.launch import command_line
from paper import cells as cells_lib
from paper import finished_runs, needed_runs
from paper.cells import Cell
from paper.statistics import MARGIN, Difference, holm, seed_difference

__all__ = ['Claim', 'Source', 'joined', 'outcome', 'page', 'tables']

Expected = Literal['equal', 'ahead', 'diverges']
_COLUMNS = ('claim', 'the paper', 'here', 'tuned', 'difference [95 % interval]', 'seeds', 'outcome', 'limits')
_OUTCOME = _COLUMNS.index('outcome')
_VERDICTS = ('holds', 'does not hold', 'open')
_UNCORRECTED = 'not after Holm'
_NO_WIDTH = 1e-4  # in points; accuracies are float32, and what is below is rounding
_START, _END = '<!-- written by paper.claims -->', '<!-- end -->'


@dataclasses.dataclass(frozen=True)
class Source:
    """A cell of a committed table: a folder under results/, a row and a column.

    With `point`, its runs are measured at another point than the one that its rate was chosen at.
    """

    folder: str
    row: str
    column: str
    point: str = ''


class Found(NamedTuple):
    """A cell with its runs."""

    cell: Cell
    at_the_edge: bool  # whether something chosen for it is the least or most that was tried
    tuned: str  # how many candidates on how many seeds


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

    >>> outcome('ahead', seed_difference([3.0, 3.1, 2.9], [1.0, 1.0, 1.0]))
    'holds'
    >>> outcome('equal', seed_difference([3.0, 1.1, 2.0], [1.0, 1.0, 1.0]))
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
    parts, claims = [], [(heading, list(group)) for heading, group in claims]
    leads = {claim: lead for _, group in claims for claim in group if (lead := _lead(claim, cell_of))}
    certain = dict(zip(leads, holm([lead.p_value for lead in leads.values()]), strict=True))
    for heading, group in claims:
        lines = [list(_COLUMNS)]
        lines += [_line(claim, cell_of, certain.get(claim, True)) for claim in group]
        counts = ', '.join(_counted(verdict, lines[1:]) for verdict in _VERDICTS)
        parts += [f'## {heading}', f'Outcomes of {len(group)} claims: {counts}.', markdown.table(lines)]
    return '\n\n'.join(parts)


def _counted(verdict: str, lines: list[list[str]]) -> str:
    verdicts = [line[_OUTCOME] for line in lines if line[_OUTCOME].startswith(verdict)]
    uncorrected = sum(_UNCORRECTED in each for each in verdicts)
    return f'{verdict} {len(verdicts)}' + (f' ({uncorrected} {_UNCORRECTED})' if uncorrected else '')


def _lead(claim: Claim, cell_of: Any) -> Difference | None:
    """The difference that decides a claim of a lead, for Holm's correction; None for other claims."""
    if claim.expected != 'ahead' or claim.against is None:
        return None
    difference = _difference(cell_of(claim.ours).cell, cell_of(claim.against).cell)
    return difference if difference and _decides(difference) else None


def _difference(ours: Cell, theirs: Cell) -> Difference | None:
    return seed_difference(ours.by_seed, theirs.by_seed, same_runs=ours.shares_runs(theirs))


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


def _line(claim: Claim, cell_of: Any, certain: bool) -> list[str]:
    """The line of a claim; `certain` is whether a lead passes Holm's correction over the page."""
    ours, our_edge, our_tuning = cell_of(claim.ours)
    link = f'[{ours.text}]({claim.ours.folder}/README.md)'
    if claim.against is None:
        verdict = 'holds' if ours.diverged == len(ours.results) else 'does not hold'
        limits = joined(claim.limits, _edges(first=our_edge))
        return [claim.text, claim.paper, link, our_tuning, '', str(len(ours.results)), verdict, limits]
    theirs, their_edge, their_tuning = cell_of(claim.against)
    difference = _difference(ours, theirs)
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
        our_tuning if our_tuning == their_tuning else f'{our_tuning}, {their_tuning}',
        difference.text(),
        str(difference.num_seeds),
        verdict if certain or verdict == 'open' else f'{verdict}, {_UNCORRECTED}',
        joined(
            claim.limits,
            f'equal within {MARGIN:g} points' if close else '',
            _edges(first=our_edge, second=their_edge),
        ),
    ]


def _edges(**at_the_edge: bool) -> str:
    places = ' and '.join(place for place, edge in at_the_edge.items() if edge)
    return places and f'{places} at the edge'


def joined(*limits: str | None) -> str:
    """Those limits that there are, as a reader sees them."""
    return '; '.join(filter(None, limits))


def _cell(cells_in: Any, results: Path, source: Source) -> Found:
    for found in cells_in(results / source.folder):
        cell = found.cell
        if (cell.row, cell.column) == (source.row, source.column) and cell.results:
            return found._replace(cell=cell.at(source.point)) if source.point else found
    raise ValueError(f'{source} names no cell with finished runs.')


def _cells(folder: Path) -> list[Found]:
    """The cells of a table."""
    table = json.loads((folder / 'sweep.json').read_text(encoding='utf-8'))
    needed_runs.check_table(table, str(folder / 'sweep.json'))
    found = finished_runs.read(folder)
    described = zip(cells_lib.of_table(table, found), table['cells'], strict=True)
    return [
        Found(cell, _at_the_edge(table, description, found), _tuned(table, description))
        for cell, description in described
    ]


def _tuned(table: Any, cell: Any) -> str:
    tried = needed_runs.candidates(table, cell)
    return f'{len(tried)} × {len(table["tuning_seeds"])}' if tried else 'no'


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
