"""The page of the runs: a table of all, and loss against steps and against bytes."""

import functools
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import pages, records
from benchmarks.adamw import network
from def_jax.tools import markdown, pictures
from paper.statistics import mean_std, seed_difference

__all__ = ['write']

_DRAWN = '115k'  # the model of the picture
_CHOSEN_ON = 0  # the seed on whose validation loss settings were chosen
_DENSE = 'dense AdamW'
_OVERLAP = ', overlap'
_INNER = {
    'adamw': 'AdamW',
    'muon': 'Muon',
    'muon_outside': 'Muon outside',
    'shared_moment': "AdamW with the mean gradient's second moment",
}
Run = dict[str, Any]
Tested = dict[tuple, dict[int, float]]


def write(folder: Path) -> None:
    """Writes the tables of the page, and the picture."""
    runs = records.read(folder / 'adamw.jsonl')
    tested = _tested(runs)
    tables = {
        'against dense': _against_dense(tested),
        'overlap': _beside(tested, lambda label: label.removesuffix(_OVERLAP), ('test loss', 'without')),
        'muon': _beside(tested, lambda label: re.sub('Muon$', 'AdamW', label), ('test loss', 'AdamW')),
        'runs': _table(runs),
    }
    pages.write(folder / 'adamw.md', tables)
    _draw(runs, folder / 'adamw.png')


def _tested(runs: Sequence[Run]) -> Tested:
    """Test losses of the seeds that served no choice, by what was run."""
    tested: Tested = {}
    for run in runs:
        if run['seed'] != _CHOSEN_ON and (losses := run.get('test_loss')):
            tested.setdefault(_group(run), {})[run['seed']] = losses.get('y', losses['x'])
    return tested


def _against_dense(tested: Tested) -> str:
    """Against dense AdamW on as many sequences."""
    of_dense = {(m, s, k * n): of for (m, s, k, n, label), of in tested.items() if label == _DENSE}

    def others(group):
        model, steps, workers, sequences, label = group
        return {} if label == _DENSE else of_dense.get((model, steps, workers * sequences), {})

    return _compared(tested, others, ('test loss', _DENSE))


def _beside(tested: Tested, other: Callable[[str], str], heads: tuple[str, str]) -> str:
    """Every group whose label `other` changes, against the group of that label."""

    def others(group):
        *where, label = group
        return {} if other(label) == label else tested.get((*where, other(label)), {})

    return _compared(tested, others, heads)


def _compared(tested: Tested, others: Callable[[tuple], dict[int, float]], heads: tuple[str, str]) -> str:
    """Every group beside what `others` says that it is compared with, by the seeds that both have."""
    rows = [['model', 'steps', 'K × sequences', 'method', 'seeds', *heads, 'behind']]
    for group, losses in sorted(tested.items()):
        theirs = others(group)
        if behind := seed_difference(losses, theirs):
            model, steps, workers, sequences, label = group
            seeds = sorted(losses.keys() & theirs.keys())
            both = [mean_std([of[seed] for seed in seeds], 3) for of in (losses, theirs)]
            text = [model, f'{steps:,}', f'{workers} × {sequences}', label, ', '.join(map(str, seeds)), *both]
            rows.append([*text, behind.text(3)])
    return markdown.table(rows)


def _group(run: Run) -> tuple:
    return run['model'], run['steps'], run.get('workers', 8), run.get('sequences', 4), _label(run)


def _table(runs: Sequence[Run]) -> str:
    head = 'model, steps, seed, K × sequences, method, rate, b1, b2, λ, outer, true ratio, x, y, test y'
    return markdown.table([head.split(', '), *(_row(run) for run in sorted(runs, key=_order))])


def _order(run: Run) -> tuple:
    loss = run['val'].get('y', run['val']['x'])
    return run['model'], run['steps'], run['true_ratio'] > 1, run['true_ratio'] > 32, loss


def _row(run: Run) -> Iterator[str]:
    yield from (run['model'], f'{run["steps"]:,}', str(run['seed']))
    yield from (f'{run.get("workers", 8)} × {run.get("sequences", 4)}', _method(run))
    yield from (f'{run["lr"]:g}', f'{run["b1"]:g}', f'{run["b2"]:g}')
    dense = run['method'] == 'dense'
    yield '' if dense else f'{run["detach"]:g}'
    yield '' if dense or not run['outer_mu'] else f'{run["outer_lr"]:g}, {run["outer_mu"]:g}'
    yield f'{run["true_ratio"]:.1f}'
    yield f'{run["val"]["x"]:.3f}'
    yield f'{run["val"]["y"]:.3f}' if 'y' in run['val'] else ''
    test = run.get('test_loss')
    yield f'{test.get("y", test["x"]):.3f}' if test else ''


def _method(run: Run) -> str:
    if run['method'] == 'dense':
        return f'dense {_INNER[run["inner"]]}'
    inner = '' if run['inner'] == 'adamw' else f', {_INNER[run["inner"]]}'
    if run['identity']:
        every = 'updates averaged' if run['every'] == 1 else f'whole, every {run["every"]} steps'
        return f'{every}{inner}'
    return f'blocks, shuffled, balanced{inner}{_options(run)}'


def _draw(runs: Sequence[Run], path: Path) -> None:
    """The best run of each method and ratio among the longest ones of the model."""
    drawn = [run for run in runs if run['model'] == _DRAWN]
    longest = [run for run in drawn if run['steps'] == max(r['steps'] for r in drawn)]
    best = {_label(run): run for run in sorted(longest, key=lambda r: -r['val']['x'])}
    with pictures.panels(path, 1, 2) as axes:
        ours = sorted(label for label in best if label.startswith('DEF'))
        for label, run in sorted(best.items()):
            style = {'color': pictures.COLORS['SGD' if run['method'] == 'dense' else 'DiLoCo']}
            if label in ours:
                style = pictures.variant_style(pictures.COLORS['DEF'], ours.index(label), len(ours))
            steps = 50 * (1 + np.arange(len(run['train'])))
            axes[0, 0].plot(steps, run['train'], label=label, **style)
            axes[0, 1].plot(steps * _megabytes(run), run['train'], label=label, **style)
        for panel, name in zip(axes[0], ('steps', 'MB sent by a worker'), strict=True):
            panel.set(xlabel=name, ylabel='training loss, nats a byte')
            pictures.log_y(panel)
        axes[0, 1].set_xscale('log')
        axes[0, 0].legend()


def _label(run: Run) -> str:
    inner = _INNER[run['inner']]
    if run['method'] == 'dense':
        return f'dense {inner}'
    if run['identity']:
        return f'{"DiLoCo" if run["outer_mu"] else "averaged"}, H = {run["every"]}, {inner}'
    return f'DEF at {_nominal(run):g}' + ('' if inner == 'AdamW' else f', {inner}') + _options(run)


def _nominal(run: Run) -> float:
    """The ratio of bytes that was asked for."""
    return run['ratio'] * (4 if _narrow(run) else 1)


def _options(run: Run) -> str:
    return _narrow(run) + (_OVERLAP if run.get('overlap') else '')


def _narrow(run: Run) -> str:
    return ', int8' if run.get('wire_dtype') == 'int8' else ''


def _megabytes(run: Run) -> float:
    """Sent by a worker in one step: the message alone."""
    params = jax.eval_shape(functools.partial(network.init, network.SIZES[run['model']]), 0)
    return 4e-6 * sum(x.size for x in jax.tree.leaves(params)) / run['true_ratio']
