"""The page of the league: its tables and its pictures, from the records."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import pages, records
from benchmarks.league.costs import kept
from benchmarks.league.problems import PROBLEMS, Problem
from def_jax.baselines.methods import METHODS
from def_jax.tools import markdown, pictures
from paper.statistics import mean_std, seed_difference

OURS = 'DEF, ours'
MORE_SEEDS = 'perceptron_20_seeds'
STAGES_OF = 'transformer'  # the problem whose contenders benchmarks/league/stage.py times

Record = dict[str, Any]


def final(record: Record, name: str) -> np.ndarray:
    """The last value of every seed."""
    return np.array(record[name])[:, -1]


def group(record: Record) -> int:
    """The nominal ratio: 1, 16 or 64, whichever the message is nearest to."""
    return min((1, 16, 64), key=lambda ratio: abs(np.log(record['dense'] / record['payload'] / ratio)))


def frontier(known: list[Record]) -> list[Record]:
    """Those that no other beats in both bytes on the wire and mean test loss, cheapest first."""
    best, found = np.inf, []
    for record in sorted(known, key=lambda r: (r['wire'], final(r, 'test_loss').mean())):
        if final(record, 'test_loss').mean() < best:
            best = final(record, 'test_loss').mean()
            found.append(record)
    return found


def against(record: Record, ours: Record | None, name: str, digits: int) -> str:
    """The difference of the last values, with its interval; nothing against itself."""
    if ours is None or ours is record:
        return ''
    return seed_difference(final(record, name), final(ours, name)).text(digits)


def table(problem: Problem, known: list[Record], rows: list[Record], stages: dict[str, float]) -> str:
    """`rows` by loss, against ours among `known`, whose frontier is in bold.

    `stages` has the time of a method's optimizer stage by title; empty for a problem without that column.
    """
    best = frontier(known)
    dense = next(r for r in known if r['method'] == 'sgd')['wire']
    ours = {group(r): r for r in known if r['title'] == OURS}
    accuracy = 'accuracy' in problem.metrics
    contenders = {(c.title, c.nominal): c for c in problem.contenders}

    def cells(r: Record) -> Iterator[tuple[str, str]]:
        yield 'method', f'**{r["title"]}**' if r in best else r['title']
        yield 'message, bytes a step', f'{r["payload"]:,.0f}'
        yield 'on the wire', f'{r["wire"]:,.0f}'
        yield 'below dense', f'{dense / r["wire"]:.1f}'
        if accuracy:
            yield 'test accuracy, %', mean_std(final(r, 'accuracy'), 2)
            yield 'against DEF, ours', against(r, ours.get(group(r)), 'accuracy', 2)
        yield 'test loss', mean_std(final(r, 'test_loss'), 3)
        yield 'against DEF, ours', against(r, ours.get(group(r)), 'test_loss', 3)
        yield 'state: own + shared', f'{r["own_state"]:g} + {r["shared_state"]:g}'
        state = kept(problem, contenders[r['title'], r['ratio']])
        yield 'kept at a restart', ' + '.join(part or '–' for part in state)
        if stages:
            yield 'stage', f'{stages[r["title"]]:g}' if r['title'] in stages else ''
        yield 'learning rate', f'{r["rate"]:g}'
        yield 'tuned', f'{len(r["tried"])} × {len(problem.tuning_seeds)}'

    lines = [list(cells(r)) for r in sorted(rows, key=lambda r: final(r, 'test_loss').mean())]
    if not lines:
        return ''
    return markdown.table([[name for name, _ in lines[0]], *([text for _, text in line] for line in lines)])


def tables(problem: Problem, known: list[Record], stages: dict[str, float]) -> str:
    """One table for each nominal ratio."""
    parts = []
    for ratio in (1, 16, 64):
        of_ratio = [r for r in known if group(r) == ratio]
        parts.append(f'### About 1/{ratio} of the dense bytes' if ratio > 1 else '### Dense')
        parts.append(table(problem, known, of_ratio, stages))
    return '\n\n'.join(parts)


def draw(known: list[Record], steps: int, path: Path) -> None:
    """Test loss against bytes sent, of each method's best variant: along the run, and at the end."""
    shown = {}
    for record in sorted(known, key=lambda r: -final(r, 'test_loss').mean()):
        shown[record['method'], group(record)] = record
    best, named = frontier(known), _named(shown.values())
    with pictures.panels(path, 2, 1) as axes:
        along, end = axes[:, 0]
        for record in shown.values():
            title, ours = METHODS[record['method']].title, record['title'].startswith(OURS)
            style = {'color': pictures.COLORS[title]} if title in named else pictures.BACKGROUND
            losses = np.array(record['test_loss'])
            sent = record['wire'] * steps / 1e6 * np.arange(1, losses.shape[1] + 1) / losses.shape[1]
            along.plot(sent, losses.mean(0), **style | {'linewidth': 1.6 if ours else 0.8})
            marker = '*' if ours else 's' if record['method'] == 'sgd' else 'o'
            mean, spread = losses[:, -1].mean(), losses[:, -1].std(ddof=1)
            end.errorbar(sent[-1], mean, spread, fmt=marker, **style | {'linewidth': 0.8})
        labelled = [*best, *(r for r in shown.values() if r['method'] == 'sgd' and r not in best)]
        for i, record in enumerate(labelled):
            place = {'xytext': (-2, -5 - 9 * (i % 2)), 'textcoords': 'offset points', 'size': 7}
            at = record['wire'] * steps / 1e6, final(record, 'test_loss').mean()
            end.annotate(_label(record), at, va='top', **place)
        sent = [record['wire'] * steps / 1e6 for record in best]
        end.plot(sent, [final(record, 'test_loss').mean() for record in best], 'k--', linewidth=0.8)
        for panel in (along, end):
            panel.set_xscale('log')
            panel.set_xlabel('MB sent per worker')
            pictures.log_y(panel)
        along.set_ylabel('test loss')
        along.set_title('along the run')
        end.set_title('at the end; dashed: the frontier')
        for title in named:
            along.plot([], [], color=pictures.COLORS[title], label=title)
        along.plot([], [], label='others', **pictures.BACKGROUND)
        low, high = end.get_ylim()
        end.set_ylim(bottom=low * (low / high) ** 0.4)  # room for the labels of the frontier
        along.figure.legend(loc='outside lower center', ncol=4, fontsize=7)


def _named(known: Iterable[Record]) -> list[str]:
    """The methods drawn in colour: SGD, DEF, and the best of the others that have a colour."""
    best = sorted(known, key=lambda r: (r['method'] not in ('sgd', 'def'), final(r, 'test_loss').mean()))
    titles = dict.fromkeys(METHODS[record['method']].title for record in best)
    return [title for title in titles if title in pictures.COLORS][: pictures.MOST_NAMES]


def _label(record: Record) -> str:
    """The record's name in the picture, e.g. 'DEF at 1/64, int8'."""
    title = record['title'].removesuffix(' (no momentum)')
    if not title.startswith('DEF'):
        return 'dense' if record['method'] == 'sgd' else title
    return f'DEF at 1/{group(record)}' + title.removeprefix('DEF, ours').removeprefix('DEF (paper)')


def read(path: Path, problem: Problem) -> list[Record]:
    """The records of the problem's contenders; others are of contenders that are gone."""
    known = {(c.title, c.nominal) for c in problem.contenders}
    return [r for r in records.read(path) if (r['title'], r['ratio']) in known]


def write(folder: Path) -> None:
    """Writes the tables of the page, and the pictures."""
    sections = {}
    for name, problem in PROBLEMS.items():
        of_problem = read(folder / f'{name}.jsonl', problem)
        stages = json.loads((folder / 'stage.json').read_text()) if name == STAGES_OF else {}
        draw(of_problem, problem.steps, folder / f'{name}.png')
        sections[name] = tables(problem, of_problem, stages)
    problem = PROBLEMS['perceptron']
    more = read(folder / f'{MORE_SEEDS}.jsonl', problem)
    pages.write(folder / 'README.md', sections | {MORE_SEEDS: table(problem, more, more, {})})
