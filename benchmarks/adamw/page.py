"""The page of the runs: a table of all, and loss against steps and against bytes."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import pages, records
from benchmarks.adamw import network, sizes
from benchmarks.adamw.settings import Setting, at_output
from def_jax.tools import markdown, pictures
from paper.statistics import mean_std, seed_difference

__all__ = ['write']

_DRAWN = '115k'  # the model of the picture
_CHOSEN_ON = 0  # the seed on whose validation loss settings were chosen
_DENSE = 'dense AdamW'
_INNER = {
    'adamw': 'AdamW',
    'muon': 'Muon',
    'muon_outside': 'Muon outside',
    'shared_moment': "AdamW with the mean gradient's second moment",
}
Run = dict[str, Any]
Tested = dict[Setting, dict[int, float]]


def write(folder: Path) -> None:
    """Writes the tables of the page, and the picture."""
    runs = records.read(folder / 'adamw.jsonl')
    tested = _tested(runs)
    chosen = _chosen(runs, tested)
    by_label = {_where(setting): losses for setting, losses in chosen.items()}
    of_dense = {_batch(setting): of for setting, of in chosen.items() if _where(setting)[-1] == _DENSE}

    def without_muon(setting):
        *where, label = _where(setting)
        return by_label.get((*where, re.sub('Muon$', 'AdamW', label)))

    tables = {
        'against dense': _compared(chosen, lambda setting: of_dense.get(_batch(setting)), _DENSE),
        'overlap': _compared(tested, lambda setting: tested.get(replace(setting, overlap=False)), 'without'),
        'muon': _compared(chosen, without_muon, 'AdamW'),
        'sizes': pages.table(sizes.rows(runs)),
        'runs': _table(runs),
    }
    pages.write(folder / 'adamw.md', tables)
    _draw(runs, folder / 'adamw.png')


def _tested(runs: Sequence[Run]) -> Tested:
    """Test losses of the seeds that served no choice, by the other settings."""
    tested: Tested = {}
    for run in runs:
        if run['seed'] != _CHOSEN_ON and (losses := run.get('test_loss')):
            tested.setdefault(_of_all_seeds(run), {})[run['seed']] = at_output(losses)
    return tested


def _chosen(runs: Sequence[Run], tested: Tested) -> Tested:
    """Of each method, the tested settings with the lowest validation loss on the seed that chooses."""
    losses = {_of_all_seeds(run): at_output(run['val']) for run in runs if run['seed'] == _CHOSEN_ON}
    worst_first = sorted(tested, key=lambda setting: losses.get(setting, np.inf), reverse=True)
    return {setting: tested[setting] for setting in {_where(s): s for s in worst_first}.values()}


def _of_all_seeds(run: Run) -> Setting:
    return replace(Setting.of(run), seed=_CHOSEN_ON, test=False)


def _where(setting: Setting) -> tuple:
    """The lines of a table are ordered by this."""
    return setting.model, setting.steps, setting.workers, setting.sequences, _label(asdict(setting))


def _batch(setting: Setting) -> tuple:
    """Where dense AdamW takes the same steps."""
    return setting.model, setting.steps, setting.workers * setting.sequences


def _compared(tested: Tested, others: Callable[[Setting], dict[int, float] | None], name: str) -> str:
    """All for which `others` finds another's losses, by the seeds that both have."""
    rows = [['model', 'steps', 'K × sequences', 'method', 'rate', 'seeds', 'test loss', name, 'behind']]
    for setting, losses in sorted(tested.items(), key=lambda item: (_where(item[0]), item[0].lr)):
        theirs = others(setting) or {}
        if theirs is not losses and (behind := seed_difference(losses, theirs)):
            model, steps, workers, sequences, label = _where(setting)
            seeds = sorted(losses.keys() & theirs.keys())
            both = [mean_std([of[seed] for seed in seeds], 3) for of in (losses, theirs)]
            where = [model, f'{steps:,}', f'{workers} × {sequences}', label, f'{setting.lr:g}']
            rows.append([*where, ', '.join(map(str, seeds)), *both, behind.text(3)])
    return markdown.table(rows)


def _table(runs: Sequence[Run]) -> str:
    head = 'model, steps, seed, K × sequences, method, rate, b1, b2, λ, outer, true ratio, x, y, test y'
    return markdown.table([head.split(', '), *(_row(run) for run in sorted(runs, key=_order))])


def _order(run: Run) -> tuple:
    return run['model'], run['steps'], run['true_ratio'] > 1, run['true_ratio'] > 32, at_output(run['val'])


def _row(run: Run) -> Iterator[str]:
    yield from (run['model'], f'{run["steps"]:,}', str(run['seed']))
    yield from (f'{run.get("workers", 8)} × {run.get("sequences", 4)}', _method(run))
    yield from (f'{run["lr"]:g}', f'{run["b1"]:g}', f'{run["b2"]:g}')
    dense = run['method'] == 'dense'
    yield '' if dense else f'{run["detach"]:g}'
    yield '' if dense or not run['outer_mu'] else f'{run["outer_lr"]:g}, {run["outer_mu"]:g}'
    yield from (f'{run["true_ratio"]:.1f}', f'{run["val"]["x"]:.3f}')
    yield f'{run["val"]["y"]:.3f}' if 'y' in run['val'] else ''
    test = run.get('test_loss')
    yield f'{at_output(test):.3f}' if test else ''


def _method(run: Run) -> str:
    if run['method'] == 'dense':
        return f'dense {_INNER[run["inner"]]}'
    inner = '' if run['inner'] == 'adamw' else f', {_INNER[run["inner"]]}'
    if run['identity']:
        every = 'updates averaged' if run['every'] == 1 else f'whole, every {run["every"]} steps'
        return f'{every}{inner}'
    return f'blocks{", shuffled, balanced" if run.get("rounds", True) else ""}{inner}{_options(run)}'


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
    moments = '' if (run['b1'], run['b2']) == (0.9, 0.95) else f', b1 = {run["b1"]:g}, b2 = {run["b2"]:g}'
    paper = '' if run.get('rounds', True) else f' (paper{moments})'
    return f'DEF{paper} at {_nominal(run):g}' + ('' if inner == 'AdamW' else f', {inner}') + _options(run)


def _nominal(run: Run) -> float:
    """The ratio of bytes that was asked for."""
    return run['ratio'] * (4 if _narrow(run) else 1)


def _options(run: Run) -> str:
    return _narrow(run) + (', overlap' if run.get('overlap') else '')


def _narrow(run: Run) -> str:
    return ', int8' if run.get('wire_dtype') == 'int8' else ''


def _megabytes(run: Run) -> float:
    """Sent by a worker in one step: the message alone."""
    return 4e-6 * network.parameters(network.SIZES[run['model']]) / run['true_ratio']
