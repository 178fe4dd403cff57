"""The page of the league: its table and its picture, from league.json.

python -m benchmarks.league.page --output=results/league
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags

from benchmarks.league.contenders import STEPS
from def_jax import markdown, pictures
from def_jax.experiments.statistics import mean_std, paired_difference
from def_jax.methods import METHODS

PICTURE = 'frontier.png'
OURS = 'DEF, ours'
HEADER = [
    *('method', 'message, bytes a step', 'on the wire', 'below dense', 'test accuracy, %', 'test loss'),
    *('against DEF, ours', 'state: own + shared', 'learning rate'),
]

Record = dict[str, Any]


def final(record: Record, name: str) -> np.ndarray:
    """The last value of every seed."""
    return np.array(record[name])[:, -1]


def group(record: Record) -> int:
    """The nominal ratio: 1, 16 or 64, whichever the message is nearest to."""
    return min((1, 16, 64), key=lambda ratio: abs(np.log(record['dense'] / record['payload'] / ratio)))


def frontier(records: list[Record]) -> list[Record]:
    """Those that no other beats in both bytes on the wire and mean test loss, cheapest first."""
    best, found = np.inf, []
    for record in sorted(records, key=lambda r: (r['wire'], final(r, 'test_loss').mean())):
        if final(record, 'test_loss').mean() < best:
            best = final(record, 'test_loss').mean()
            found.append(record)
    return found


def line(record: Record, ours: Record | None, dense: float, on_frontier: bool) -> list[str]:
    accuracy, loss = final(record, 'accuracy'), final(record, 'test_loss')
    difference = paired_difference(accuracy, final(ours, 'accuracy')) if ours else None
    title = f'**{record["title"]}**' if on_frontier else record['title']
    return [
        title,
        f'{record["payload"]:,.0f}',
        f'{record["wire"]:,.0f}',
        f'{dense / record["wire"]:.1f}',
        mean_std(accuracy, 2),
        mean_std(loss, 3),
        '' if difference is None or ours is record else difference.text(),
        f'{record["own_state"]:g} + {record["shared_state"]:g}',
        f'{record["rate"]:g}',
    ]


def tables(records: list[Record]) -> str:
    """One table for each nominal ratio; methods on the frontier are in bold."""
    dense = next(r for r in records if r['method'] == 'sgd')['wire']
    best, parts = frontier(records), []
    for ratio in (1, 16, 64):
        of_ratio = [r for r in records if group(r) == ratio]
        of_ratio.sort(key=lambda r: final(r, 'test_loss').mean())
        ours = next((r for r in of_ratio if r['title'] == OURS), None)
        lines = [line(r, ours, dense, r in best) for r in of_ratio]
        parts.append(f'### About 1/{ratio} of the dense bytes' if ratio > 1 else '### Dense')
        parts.append(markdown.table([HEADER, *lines]))
    return '\n\n'.join(parts)


def color(record: Record) -> str:
    return pictures.COLORS[METHODS[record['method']].title]


def draw(records: list[Record], path: Path) -> None:
    """Test loss against bytes sent: along the run, and at the end with the frontier."""
    best, titles = frontier(records), dict.fromkeys(METHODS[record['method']].title for record in records)
    with pictures.panels(path, 2, 1) as axes:
        along, end = axes[:, 0]
        for record in records:
            losses = np.array(record['test_loss'])
            sent = record['wire'] * STEPS / 1e6 * np.arange(1, losses.shape[1] + 1) / losses.shape[1]
            style = {'linewidth': 1.6 if record['title'] == OURS else 0.8, 'color': color(record)}
            along.plot(sent, losses.mean(0), **style)
            marker = {'DEF, ours': '*', 'SGD': 's'}.get(record['title'], 'o')
            mean, spread = losses[:, -1].mean(), losses[:, -1].std(ddof=1)
            end.errorbar(sent[-1], mean, spread, fmt=marker, color=color(record), linewidth=0.8)
            if record in best or record['title'] == 'SGD':
                place = {'xytext': (-2, -5), 'textcoords': 'offset points', 'size': 7}
                end.annotate(record['title'], (sent[-1], mean), va='top', **place)
        sent = [record['wire'] * STEPS / 1e6 for record in best]
        end.plot(sent, [final(record, 'test_loss').mean() for record in best], 'k--', linewidth=0.8)
        for panel in (along, end):
            panel.set_xscale('log')
            panel.set_xlabel('MB sent per worker')
            pictures.log_y(panel)
        along.set_ylabel('test loss')
        along.set_title('along the run')
        end.set_title('at the end; dashed: the frontier')
        for title in titles:
            along.plot([], [], color=pictures.COLORS[title], label=title)
        end.set_ylim(bottom=0.6 * end.get_ylim()[0])  # for the labels of the frontier
        along.figure.legend(loc='outside lower center', ncol=4, fontsize=7)


def main(_) -> None:
    folder = Path(flags.FLAGS.output)
    records = json.loads((folder / 'league.json').read_text())
    draw(records, folder / PICTURE)
    page = folder / 'README.md'
    before, _, after = page.read_text().partition('<!-- tables -->\n')
    after = after.partition('<!-- end -->\n')[2]
    page.write_text(f'{before}<!-- tables -->\n\n{tables(records)}\n<!-- end -->\n{after}')


if __name__ == '__main__':
    flags.DEFINE_string('output', 'results/league', 'Folder with league.json and README.md.')
    app.run(main)
