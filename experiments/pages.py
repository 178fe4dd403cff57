"""A page of results: what was asked, one picture, one table, limits, all from records."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from def_jax.tools import markdown, pictures
from experiments import methods, numbers, runner, statistics
from experiments.spec import Record, Records
from experiments.statistics import Difference
from experiments.tuning import Cell, Setting

__all__ = ['Row', 'draw', 'origins', 'rows', 'table', 'write', 'write_experiment']


class Row(NamedTuple):
    """A finished method, and its difference from the first of its setting, greater is better."""

    cell: Cell
    difference: Difference | None  # at the chosen rates; None for the first, and where a run diverged
    again: Difference | None  # for someone who tunes again; None likewise
    p_value: float  # of the former, adjusted by Holm for all differences of the page


def rows(finished: Sequence[Sequence[Cell]]) -> list[Row]:
    """The rows of a page, setting by setting."""
    made = [(cell, *_differences(cell, cells[0])) for cells in finished for cell in cells]
    tested = [
        here.p_value if here and math.isfinite(here.low) else None for _, here, _ in made
    ]  # not one seed
    adjusted = iter(statistics.holm([p for p in tested if p is not None]))
    return [
        Row(cell, here, again, 1.0 if p is None else next(adjusted))
        for (cell, here, again), p in zip(made, tested, strict=True)
    ]


def _differences(cell: Cell, first: Cell) -> tuple[Difference | None, Difference | None]:
    """At the chosen rates, and for someone who tunes again."""
    sides = cell.side, first.side
    if cell is first or not all(math.isfinite(side.mean) for side in sides):
        return None, None
    return statistics.at_chosen(*sides), statistics.tuned_again(*sides)


def table(found: Sequence[Row]) -> str:
    """Settings and methods with results, differences and what was chosen."""
    head = [
        'problem',
        'method',
        'bytes',
        'rate (share in %)',
        'seeds',
        'test, at the first rate',
        'minus the first',
        'tuned again',
        'p, Holm',
        'within the margin',
    ]
    papers = any(row.cell.contender.paper for row in found)
    lines = [[*_line(row), *([row.cell.contender.paper] if papers else [])] for row in found]
    return markdown.table([head + (['the paper'] if papers else []), *lines])


def _line(row: Row) -> Iterator[str]:
    cell, setting = row.cell, row.cell.setting
    digits, unit = (2, ' %') if setting.percent else (3, ' nats')
    shares = statistics.shares(cell.side.tried)
    yield setting.name
    yield cell.contender.title
    yield cell.bytes
    yield ', '.join(
        f'{setting.rate(cell.contender, k):.3g}'
        + (' at the edge' if cell.at_the_edge(k) else '')
        + f' ({100 * shares[k]:.0f})'
        for k in sorted(cell.side.fresh, key=lambda k: -shares[k])
    )
    yield str(len(setting.seeds))
    yield cell.headline + unit * math.isfinite(cell.side.mean)
    if row.difference is None or row.again is None:
        yield from [''] * 4
        return
    here, again = (each.text(digits) for each in (row.difference, row.again))
    yield here
    yield again if again != here else ''  # a choice is open
    known = math.isfinite(row.difference.low)
    yield f'{row.p_value:.2g}' if known else ''
    here, again = (each.within(setting.margin) for each in (row.difference, row.again))
    verdict = here if again == here else f'{here}, tuned again {again}'
    yield f'{verdict} ({setting.margin:g})' if known else ''


def _absent(found: Sequence[Row]) -> str:
    """A paragraph on the methods that have no row beside those of their setting."""
    shown = {(row.cell.setting.name, row.cell.contender.title) for row in found}
    settings = {row.cell.setting.name: row.cell.setting for row in found}.values()
    absent = [
        f'{setting.name}: {contender.title}'
        for setting in settings
        for contender in setting.contenders
        if (setting.name, contender.title) not in shown
    ]
    return f'\n\nWithout a row, as runs are missing: {"; ".join(absent)}.' if absent else ''


def _earlier(found: Sequence[Row]) -> str:
    """A paragraph where all rows in few bits are of an earlier revision, which no title says."""
    specs = [row.cell.spec for row in found]
    if any(spec.revision for spec in specs) or not any(map(methods.in_few_bits, specs)):
        return ''
    return (
        "\n\nRows in few bits ran before a worker's own chunk stayed exact "
        '([what that brings](../own_chunk/README.md)).'
    )


def draw(found: Sequence[Row], path: Path) -> None:
    """Differences with their intervals, a panel for each setting; the margin is dashed.

    A thin line is the interval of someone who tunes again.
    """
    settings = list(dict.fromkeys(row.cell.setting.name for row in found if row.difference))
    columns = min(2, len(settings))
    path.parent.mkdir(parents=True, exist_ok=True)
    with pictures.panels(path, -(-len(settings) // columns), columns) as axes:
        for panel in axes.flat[len(settings) :]:
            panel.set_axis_off()
        for panel, name in zip(axes.flat, settings, strict=False):
            shown = [row for row in found if row.cell.setting.name == name and row.difference][::-1]
            for height, row in enumerate(shown):
                mean, *_ = row.difference  # type: ignore[misc]
                for (_, *both, _), width in ((row.again, 0.8), (row.difference, 2.5)):  # type: ignore[misc]
                    if math.isfinite(both[0]):
                        panel.plot(both, [height] * 2, color=pictures.COLORS['DEF'], linewidth=width)
                panel.plot([mean], [height], 'o', color=pictures.COLORS['DEF'])
            setting = shown[0].cell.setting
            panel.axvline(0, color=pictures.COLORS['SGD'], linewidth=0.8)
            panel.axvline(-setting.margin, color=pictures.COLORS['SGD'], linewidth=0.8, linestyle='--')
            panel.locator_params(axis='x', nbins=5)
            panel.set_yticks(range(len(shown)), [row.cell.contender.title for row in shown])
            panel.set_ylim(-0.6, len(shown) - 0.4)
            first = shown[0].cell.setting.contenders[0].title
            panel.set(title=name, xlabel=f'{"points" if setting.percent else "nats"} better than {first}')


def origins(records: Sequence[Record]) -> str:
    """Where the records of a page come from, in a sentence for each machine and set of versions."""
    by_place: dict[str, set[str]] = {}
    for record in records:
        versions = ', '.join(f'{name} {version}' for name, version in record.origin['versions'].items())
        place = f'{record.origin["machine"]}; {versions}; commits'
        if record.origin.get('carried_over'):
            place = 'Machine and versions were not recorded; the results were first committed in'
        by_place.setdefault(place, set()).add(record.origin['commit'])
    counted = f'{len(records):,} records'
    places = (f'{place} {", ".join(sorted(commits))}.' for place, commits in sorted(by_place.items()))
    return f'{counted}: ' + ' '.join(places)


def write_experiment(settings: Sequence[Setting], text: str, folder: Path) -> None:
    """Writes an experiment's page and its picture from the records in a folder.

    Args:
        settings: those without records are left out.
        text: the page, with `{table}`, `{origins}` and marks for numbers in it, see `numbers`.
        folder: of the experiment, under results/.

    Raises:
        ValueError: if no setting has two finished methods.
    """
    records = Records(folder / 'runs.jsonl')
    found = rows(runner.finished(settings, records))
    if not any(row.difference for row in found):
        raise ValueError(
            f'in {folder} no setting has two finished methods to compare. '
            f'Run `python -m experiments run {folder.name} --results={folder.parent}`.'
        )
    draw(found, folder / 'differences.png')
    text = text.format(table=table(found) + _absent(found) + _earlier(found), origins=origins(list(records)))
    write(folder / 'README.md', numbers.filled(text, lambda name: (settings, found)))


def write(path: Path, text: str) -> None:
    """Writes a page and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding='utf-8')
