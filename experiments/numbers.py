"""Numbers on pages: each that comes from a record stands in a mark, which is filled and checked.

    <!-- number: few_bits; digits, width 64; 1/64, 2 bits; difference -->+0.12<!-- /number -->

names an experiment, a setting, a method and one of `METRICS`. `python -m experiments numbers` fills the marks
of README.md, docs/ and results/; with `--check` it fails if one is stale or was not run.

    ```sh
    python -m def_jax.plan FLAGS
    ```

    <!-- printed -->
    <!-- /printed -->

is filled with what the command prints. A mark that begins with the page of a benchmark,

    <!-- number: benchmarks/cluster; mlp; dense; ms per step -->814<!-- /number -->

names a section, a row and a column of its tables; what stands in brackets there is left out.
"""

import contextlib
import io
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from def_jax.tools.planner import program

__all__ = ['METRICS', 'Found', 'filled', 'lacks']

_MARK = re.compile(r'(<!-- number: ([^>]*?) -->)(.*?)(<!-- /number -->)', re.DOTALL)
_PLAN = re.compile(
    r'(```sh\npython -m def_jax\.plan ([^`]*)\n```\n\n<!-- printed -->\n)(.*?)(<!-- /printed -->)', re.DOTALL
)
_TABLE = re.compile(r'(?:^\|.*\n)+', re.MULTILINE)
_MISSING, _NONE = '(not run)', '(no difference)'

# Texts of a row of `pages.rows`.
METRICS: Mapping[str, Callable[[Any], str]] = {
    'result': lambda row: row.cell.headline,
    'bytes': lambda row: row.cell.bytes,
    'difference': lambda row: row.difference.text(2 if row.cell.setting.percent else 3),
    'tuned again': lambda row: row.again.text(2 if row.cell.setting.percent else 3),
}

# An experiment's settings, and the rows of those that are finished.
Found = tuple[Sequence[Any], Sequence[Any]]


def filled(text: str, found: Callable[[str], Found], results: Path) -> str:
    """A text with every mark filled.

    Args:
        text: of a page.
        found: an experiment's settings and finished rows, by its name.
        results: the folder of benchmarks' pages.

    Returns:
        The text, with what its commands print; a mark of a run without a record says so.

    Raises:
        ValueError: if a mark names what is not there.
    """
    text = _PLAN.sub(lambda plan: f'{plan[1]}\n{_printed(plan[2])}\n{plan[4]}', text)
    return _MARK.sub(lambda mark: mark[1] + _value(mark[2], found, results) + mark[4], text)


def lacks(text: str) -> bool:
    """Whether a mark of a filled text has no number."""
    return any(mark[3] in (_MISSING, _NONE) for mark in _MARK.finditer(text))


def _printed(flags: str) -> str:
    """What the planner prints."""
    with contextlib.redirect_stdout(io.StringIO()) as output:
        program.main(shlex.split(flags.replace('\\\n', ' ')))
    return output.getvalue()


def _value(address: str, found: Callable[[str], Found], results: Path) -> str:
    parts = [part.strip() for part in address.split(';')]
    if parts[0].startswith('benchmarks/') and len(parts) == 4:
        return _cell((results / f'{parts[0]}.md').read_text(encoding='utf-8'), *parts)
    if len(parts) != 4 or parts[3] not in METRICS:
        raise ValueError(
            f'the mark {address!r} must name an experiment, a setting, a method and one of '
            f'{", ".join(METRICS)}, separated by semicolons.'
        )
    name, setting, title, metric = parts
    settings, rows = found(name)
    known = {each.name: [contender.title for contender in each.contenders] for each in settings}
    if setting not in known:
        raise ValueError(f'the mark {address!r} names no setting of {name}: {"; ".join(known)}.')
    if title not in known[setting]:
        raise ValueError(f'the mark {address!r} names no method of {setting}: {"; ".join(known[setting])}.')
    for row in rows:
        if (row.cell.setting.name, row.cell.contender.title) == (setting, title):
            has_one = row.difference is not None or metric in ('result', 'bytes')
            return (has_one and METRICS[metric](row)) or _NONE
    return _MISSING


def _cell(page: str, name: str, section: str, row: str, column: str) -> str:
    """A cell of a table of a benchmark's page."""
    inside = page.partition(f'<!-- {section} -->')[2].partition(f'<!-- end of {section} -->')[0]
    for table in _TABLE.findall(inside):
        lines = (line.strip('| ').split(' | ') for line in table.splitlines())
        head, _, *rows = [[cell.partition(' (')[0] for cell in line] for line in lines]
        for cells in rows:
            if cells[0] == row and column in head:
                return cells[head.index(column)]
    raise ValueError(f'{name}.md has no cell {row!r}, {column!r} in its section {section!r}.')
