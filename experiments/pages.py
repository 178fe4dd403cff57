"""A page of results: what was asked, one picture, one table, limits, all from records."""

import itertools
import math
import textwrap
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from def_jax.tools import markdown, pictures
from experiments import methods, numbers, problems, runner, statistics
from experiments.spec import Record, Records
from experiments.statistics import Difference
from experiments.tuning import Cell, Setting

__all__ = [
    'Row',
    'draw',
    'draw_along',
    'draw_curves',
    'origins',
    'rows',
    'table',
    'write',
    'write_experiment',
]

_LABEL = 40  # characters of a line beside a panel or above it
_MANY = 60  # rows, of which nobody can find one in a picture


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

    A thin line is the interval of someone who tunes again. A panel is as high as it has rows, so that labels
    stay legible. On a page of very many rows, panels have the best of each method, and stand in two columns.
    """
    compared = [row for row in found if row.difference]
    many = len(compared) > _MANY
    shown, columns = (_best(compared), 2) if many else (_by_setting(compared), 1)
    sizes = [*map(_height, shown.values())]
    heights = [max(sizes[i : i + columns]) for i in range(0, len(sizes), columns)]
    path.parent.mkdir(parents=True, exist_ok=True)
    with pictures.panels(path, len(heights), columns, heights=heights) as axes:
        for panel in axes.flat[len(shown) :]:
            panel.set_axis_off()
        for panel, (title, labelled) in zip(axes.flat, shown.items(), strict=False):
            _differences_of(panel, title, labelled)


def _by_setting(compared: Iterable[Row]) -> dict[str, dict[str, Row]]:
    """The rows of each setting by their labels."""
    panels: dict[str, dict[str, Row]] = {}
    for row in compared:
        label = textwrap.fill(row.cell.contender.title, _LABEL)
        panels.setdefault(row.cell.setting.name, {})[label] = row
    return panels


def _best(compared: Iterable[Row]) -> dict[str, dict[str, Row]]:
    """The best row of each other method, for all settings that compare with the same runs."""
    panels: dict[str, dict[str, Row]] = {}
    titles: dict[str, str] = {}
    for row in compared:
        setting, contender = row.cell.setting, row.cell.contender
        first, name = setting.contenders[0], contender.title.partition(', ')[0]
        if contender.method != first.method:
            same = repr((setting.where, first, setting.seeds))
            panel = panels.setdefault(titles.setdefault(same, setting.name), {})
            panel[name] = max(panel.get(name, row), row, key=_mean)
    return {
        title: dict(sorted(panel.items(), key=lambda item: -_mean(item[1])))
        for title, panel in panels.items()
    }


def _mean(row: Row) -> float:
    return row.difference.mean  # type: ignore[union-attr]


def _height(labels: Collection[str]) -> float:
    """Inches of a panel with these labels."""
    return len(labels) * (0.32 if any('\n' in label for label in labels) else 0.2)


def _differences_of(panel: Any, title: str, labelled: Mapping[str, Row]) -> None:
    """Draws differences from the same runs by their labels, the first on top."""
    labels, shown = [*labelled][::-1], [*labelled.values()][::-1]
    for height, row in enumerate(shown):
        for (_, *both, _), width in ((row.again, 0.8), (row.difference, 2.5)):  # type: ignore[misc]
            if math.isfinite(both[0]):
                panel.plot(both, [height] * 2, color=pictures.COLORS['DEF'], linewidth=width)
        panel.plot([_mean(row)], [height], 'o', color=pictures.COLORS['DEF'])
    setting = shown[0].cell.setting
    panel.axvline(0, color=pictures.COLORS['SGD'], linewidth=0.8)
    panel.axvline(-setting.margin, color=pictures.COLORS['SGD'], linewidth=0.8, linestyle='--')
    panel.locator_params(axis='x', nbins=3)
    panel.set_yticks(range(len(shown)), labels)
    panel.set_ylim(-0.6, len(shown) - 0.4)
    unit = 'points' if setting.percent else 'nats'
    panel.set_title(textwrap.fill(title, _LABEL))
    # Flush right, as a long name has room on the left, below the labels, and none on the right.
    panel.set_xlabel(f'{unit} better than {setting.contenders[0].title}', loc='right')


def draw_curves(
    curves: Mapping[str, tuple[str, str]], finished: Iterable[Cell], records: Records, path: Path
) -> None:
    """Training losses against steps at the chosen rates, means over parts of a run, with bands over seeds.

    Args:
        curves: by label, the name of a setting and the title of a method; dense training first, then DEF-Q.
        finished: cells, among them those of the curves.
        records: of their runs.
        path: of the picture.
    """
    cells = {(cell.setting.name, cell.contender.title): cell for cell in finished}
    count = len(curves) - 1
    styles = [pictures.variant_style(pictures.COLORS['DEF'], index, count) for index in range(count)]
    with pictures.panels(path, 1, 1, heights=[2.0]) as axes:
        for (label, named), style in zip(
            curves.items(), [{'color': pictures.COLORS['SGD']}, *styles], strict=True
        ):
            cell = cells[named]
            specs = [cell.setting.spec(cell.contender, cell.side.chosen, s) for s in cell.setting.seeds]
            courses = np.array([record.course for record in runner.recorded(records)(specs)]).T
            steps = problems.config_of(cell.spec).num_steps * (np.arange(len(courses)) + 0.5) / len(courses)
            pictures.draw_band(axes[0, 0], list(steps), list(courses), marker=None, label=label, **style)
        axes[0, 0].set(xlabel='step', ylabel='training loss, nats', xlim=(0, None))
        pictures.log_y(axes[0, 0])
        axes[0, 0].legend()


def draw_along(lines: Mapping[str, str], found: Sequence[Row], path: Path) -> None:
    """How far methods are behind the first of their setting, against the steps of a run, with intervals.

    Args:
        lines: by label, the title of a method.
        found: rows, of one problem that is trained for several numbers of steps.
        path: of the picture.
    """
    with pictures.panels(path, 1, 1, heights=[2.0]) as axes:
        (panel,) = axes.flat
        ticks: set[int] = set()
        for index, (label, title) in enumerate(lines.items()):
            along = [row for row in found if row.cell.contender.title == title and row.difference]
            steps = [problems.config_of(row.cell.spec).num_steps for row in along]
            ticks.update(steps)
            means, lows, highs = np.array([row.difference[:3] for row in along]).T  # type: ignore[index]
            style = pictures.variant_style(pictures.COLORS['DEF'], index, len(lines))
            panel.errorbar(
                steps, -means, [highs - means, means - lows], marker='o', capsize=2, label=label, **style
            )
        panel.axhline(0, color=pictures.COLORS['SGD'], linewidth=0.8)
        panel.set(xscale='log', xlabel='steps of the run')
        panel.set_ylabel(f'nats behind {found[0].cell.contender.title.partition(",")[0]}')
        panel.set_xticks(sorted(ticks), [f'{count:,}' for count in sorted(ticks)])
        panel.minorticks_off()
        panel.legend()


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


def write_experiment(
    settings: Sequence[Setting],
    text: str,
    folder: Path,
    curves: Mapping[str, tuple[str, str]] | None = None,
    along: Mapping[str, str] | None = None,
) -> None:
    """Writes an experiment's page and its pictures from the records in a folder.

    Args:
        settings: those without records are left out.
        text: the page, with `{table}`, `{origins}` and marks for numbers in it, see `numbers`.
        folder: of the experiment, under results/.
        curves: of curves.png, see `draw_curves`.
        along: of along.png, see `draw_along`.

    Raises:
        ValueError: if no setting has two finished methods.
    """
    records = Records(folder / 'runs.jsonl')
    finished = runner.finished(settings, records)
    found = rows(finished)
    if not any(row.difference for row in found):
        raise ValueError(
            f'in {folder} no setting has two finished methods to compare. '
            f'Run `python -m experiments run {folder.name} --results={folder.parent}`.'
        )
    draw(found, folder / 'differences.png')
    if curves:
        draw_curves(curves, itertools.chain.from_iterable(finished), records, folder / 'curves.png')
    if along:
        draw_along(along, found, folder / 'along.png')
    text = text.format(table=table(found) + _absent(found) + _earlier(found), origins=origins(list(records)))
    write(folder / 'README.md', numbers.filled(text, lambda name: (settings, found), folder.parent))


def write(path: Path, text: str) -> None:
    """Writes a page and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding='utf-8')
