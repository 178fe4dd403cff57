"""The page and the picture of accuracy against seconds, made from the runs."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from benchmarks import pages, records
from def_jax.tools import pictures
from def_jax.tools.planner import Plan, parse_bandwidth
from experiments.statistics import mean_std, student

__all__ = ['write']

_TITLES = {
    'dense': 'SGD, dense',
    'def64': 'DEF, 1/64, float32',
    'def256': 'DEF, 1/256, float32',
    'def_q64_2': 'DEF-Q, 1/64, 2 bits',
    'def_q256_2': 'DEF-Q, 1/256, 2 bits',
    'jax_powersgd': 'PowerSGD, rank 4',
}
# The lines of the picture.
_LABELS = {
    'dense': ('dense SGD', 'SGD', '-'),
    'jax_powersgd': ('PowerSGD', 'PowerSGD', '-'),
    'def64': ('DEF, 1/64', 'DEF', '--'),
    'def256': ('DEF, 1/256', 'DEF-A', '--'),
    'def_q64_2': ('DEF-Q, 1/64', 'DEF', '-'),
    'def_q256_2': ('DEF-Q, 1/256', 'DEF-A', '-'),
}
_BELOW = (1.0, 0.5, 0.0)  # points below dense SGD's final accuracy: the targets; ratios are at the first
_RIVAL = 'jax_powersgd'

Run = dict[str, Any]


class _Timed(NamedTuple):
    """What the runs say of one variant, read at one point, at one bandwidth."""

    curves: dict[int, np.ndarray]  # by seed, accuracies [evaluations]
    steps: np.ndarray  # of the evaluations
    run: Run  # that was timed
    constant: float  # seconds, once: y's all-reduce

    def seconds(self) -> np.ndarray:
        """Of training up to every evaluation."""
        return self.steps * self.run['step_seconds'] + self.constant

    def times_to(self, target: float) -> dict[int, float | None]:
        """By seed, the seconds at the first evaluation that reaches the target; None if none does."""
        found = {}
        for seed, accuracies in self.curves.items():
            reached = np.flatnonzero(accuracies >= target)
            found[seed] = float(self.seconds()[reached[0]]) if reached.size else None
        return found


def _timed(runs: Sequence[Run], variant: str, point: str, bandwidth: str) -> _Timed | None:
    """None unless the variant has whole runs and was timed at that bandwidth."""
    of_variant = [run for run in runs if run['settings']['variant'] == variant]
    whole = [r for r in of_variant if not r['settings']['bandwidth'] and point in r['curve'][0]]
    clocked = [r for r in of_variant if r['settings']['bandwidth'] == bandwidth]
    if not whole or not clocked:
        return None
    return _Timed(
        {r['settings']['seed']: np.array([p[point] for p in r['curve']]) for r in whole},
        np.array([p['step'] for p in whole[0]['curve']]),
        clocked[0],
        _plan(clocked[0], bandwidth).all_reduce(clocked[0]['params']) if bandwidth and point == 'y' else 0.0,
    )


def write(folder: Path) -> None:
    """Writes the tables of the page, and the picture, from the longest runs on test images."""
    known = records.read(folder / 'time_to_accuracy.jsonl')
    tested = [run for run in known if not run['settings']['validation']]
    steps = max((run['settings']['num_steps'] for run in tested), default=0)
    runs = [run for run in tested if run['settings']['num_steps'] == steps]
    tried = Counter(run['settings']['variant'] for run in known if run['settings']['validation'])
    if not runs:
        return
    _draw(runs, folder / 'time_to_accuracy.png')
    settings = runs[0]['settings']
    texts = {
        'runs': f'{settings["workers"]} workers of {settings["batch"]} images each, {steps:,} steps on '
        f'{settings["train_images"] or "all"} training images of CIFAR-10, {runs[0]["params"]:,} '
        f'parameters. {_commits(runs)}',
        'accuracy': f'## Accuracy\n\n{_accuracies(runs, tried)}',
    }
    texts |= {b: f'## {b}\n\n{_table(runs, b)}' for b in _bandwidths(runs)}
    pages.write(folder / 'time_to_accuracy.md', texts)


def _draw(runs: Sequence[Run], path: Path) -> None:
    """Accuracy against seconds, DEF's at y, a panel for each bandwidth, with dense SGD's final accuracy."""
    bandwidths = _bandwidths(runs)
    with pictures.panels(path, 1, max(1, len(bandwidths))) as grid:
        for axes, bandwidth in zip(grid[0], bandwidths, strict=False):
            for variant, (label, method, dashes) in _LABELS.items():
                if found := _timed(runs, variant, _answer(variant), bandwidth):
                    style = {'label': label, 'color': pictures.COLORS[method], 'linestyle': dashes}
                    accuracies = np.array(list(found.curves.values())).T
                    pictures.draw_band(axes, list(found.seconds()), list(accuracies), marker=None, **style)
            target = _targets(runs, bandwidth)[-1]
            axes.axhline(target, color='#000000', linewidth=0.6, linestyle=':', label="dense SGD's final")
            axes.set_title(bandwidth.replace('gbit', ' Gbit/s').replace('mbit', ' Mbit/s'))
            axes.set_xscale('log')
            axes.set_xlim(10, 5000)
            axes.set_ylim(40, 64)
            axes.set_xlabel('seconds of training')
            axes.set_ylabel('accuracy, %')
        grid[0, -1].legend(loc='center left', bbox_to_anchor=(1, 0.5))


def _commits(runs: Sequence[Run]) -> str:
    named: dict[str, list[str]] = {'Whole runs': [], 'Timed steps': []}
    for run in runs:
        named['Timed steps' if run['settings']['bandwidth'] else 'Whole runs'].append(run['commit'])
    return ' '.join(f'{what}: commit {", ".join(dict.fromkeys(of))}.' for what, of in named.items() if of)


def _bandwidths(runs: Sequence[Run]) -> list[str]:
    named = dict.fromkeys(run['settings']['bandwidth'] for run in runs)
    return [bandwidth for bandwidth in named if bandwidth]


def _answer(variant: str) -> str:
    """The point that the variant outputs."""
    return 'y' if variant.startswith('def') and not variant.startswith('def_q') else 'x'


def _targets(runs: Sequence[Run], bandwidth: str) -> list[float]:
    """The accuracies whose time counts, from the final one of dense SGD; infinite without one."""
    base = _timed(runs, 'dense', 'x', bandwidth)
    final = float(np.mean([curve[-1] for curve in base.curves.values()])) if base else np.inf
    return [final - below for below in _BELOW]


def _accuracies(runs: Sequence[Run], tried: Mapping[str, int]) -> str:
    """What does not depend on the network: the rate, where a variant ends, and which targets it reaches.

    `tried` is how many runs chose a variant's rate.
    """
    rows, bandwidth = [], next(iter(_bandwidths(runs)), '')
    lines = ((variant, point) for variant in _TITLES for point in dict.fromkeys((_answer(variant), 'x')))
    for variant, point in lines:
        if found := _timed(runs, variant, point, bandwidth):
            reached = {}
            for target in _targets(runs, bandwidth):
                times = list(found.times_to(target).values())
                shown = f'{len(times) - times.count(None)} of {len(times)}'
                reached[f'seeds that reach {target:.2f} %'] = shown
            rows.append(
                {
                    'variant': _TITLES[variant] + ('' if point == _answer(variant) else ', x'),
                    'learning rate': f'{found.run["settings"]["learning_rate"]:g}',
                    'runs to tune it': tried.get(variant, 0),
                    'final accuracy': mean_std([curve[-1] for curve in found.curves.values()], 2),
                    **reached,
                }
            )
    return pages.table(rows)


def _table(runs: Sequence[Run], bandwidth: str) -> str:
    targets, rows = _targets(runs, bandwidth), []
    bases = {'dense': _timed(runs, 'dense', 'x', bandwidth), _RIVAL: _timed(runs, _RIVAL, 'x', bandwidth)}
    for variant in _TITLES:
        found = _timed(runs, variant, _answer(variant), bandwidth)
        if found is None:
            continue
        run, seconds = found.run, {}
        for target in targets:
            reached = [t for t in found.times_to(target).values() if t is not None]
            seconds[f'seconds to {target:.2f} %'] = mean_std(reached, 0) if reached else ''
        rows.append(
            {
                'variant': _TITLES[variant],
                'ms a step': f'{1e3 * run["step_seconds"]:.0f} ± {1e3 * run["standard_error"]:.0f}',
                'predicted by def_jax.plan': _predicted(run, bandwidth),
                **seconds,
                **{
                    f'times as fast as {_TITLES[name]}': _ratio(base, found, targets[0])
                    for name, base in bases.items()
                },
            }
        )
    return pages.table(rows)


def _plan(run: Run, bandwidth: str) -> Plan:
    return Plan(
        params=run['params'],
        step_time=run['alone'],
        bandwidth=parse_bandwidth(bandwidth),
        workers=run['settings']['workers'],
    )


def _predicted(run: Run, bandwidth: str) -> str:
    """The plan's time of a step, from that of one that sends nothing, when all workers have ended it."""
    variant, plan = run['settings']['variant'], _plan(run, bandwidth)
    if variant == _RIVAL:
        return ''
    ratio = 1 if variant == 'dense' else int(re.findall(r'\d\d+', variant)[0])
    seconds = plan.step_time + plan.all_reduce(run['params'] / ratio)
    return f'{1e3 * seconds:.0f} ({seconds / run["step_seconds"] - 1:+.0%})'


def _ratio(base: _Timed | None, found: _Timed, target: float) -> str:
    """The mean ratio of the times to the target, and from three seeds on its interval from their logarithms.

    Over the seeds of which both reach the target; empty without a base.
    """
    if base is None or base.run is found.run:
        return '1.00' if base else ''
    logs = [
        {seed: np.log(t) for seed, t in side.times_to(target).items() if t is not None}
        for side in (base, found)
    ]
    seeds = [seed for seed in logs[0] if seed in logs[1]]
    if not seeds:
        return ''
    mean, error, freedom = student(*(np.array([side[seed] for seed in seeds]) for side in logs))
    if len(seeds) < 3:
        return f'{np.exp(mean):.2f}'
    of_steps = 1.96 * float(np.hypot(_relative(base.run), _relative(found.run)))
    half = float(np.hypot(of_steps, stats.t.ppf(0.975, freedom) * error))
    low, high = np.exp(mean - half), np.exp(mean + half)
    return f'{np.exp(mean):.2f} [{low:.2f}, {high:.2f}]'


def _relative(run: Run) -> float:
    """The standard error of a step's time, relative to it."""
    return run['standard_error'] / run['step_seconds']
