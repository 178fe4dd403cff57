"""The page and the picture of accuracy against seconds, made from the runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import timing
from def_jax import pictures
from def_jax.plan import Plan, parse_bandwidth

__all__ = ['TITLES', 'draw', 'sections', 'time_to', 'times_of']

TITLES = {
    'dense': 'SGD, dense JAX',
    'def64': 'DEF, ratio 64',
    'def256': 'DEF, ratio 256',
    'best64': 'DEF, ratio 64, balanced, shuffled, λ auto, no momentum',
    'best256': 'DEF, ratio 256, balanced, shuffled, λ auto, no momentum',
    'ddp': 'PyTorch DDP, dense',
    'ddp_fp16': 'PyTorch DDP, fp16 hook',
    'ddp_powersgd': 'PyTorch DDP, PowerSGD hook, rank 4',
}
# 97.5 % quantile of Student's t by degrees of freedom.
_STUDENT = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26}
_BELOW = 1.0  # points below dense SGD's final accuracy: the target

Run = dict[str, Any]


def times_of(run: Run, timed: Run) -> list[float]:
    """The seconds of every point of a run's curve, at the bandwidth of the run that was timed."""
    if timed is run:
        return [point['seconds'] for point in run['curve']]
    return [point['step'] * timed['step_seconds'] for point in run['curve']]


def time_to(target: float, seconds: Sequence[float], accuracies: Sequence[float]) -> float | None:
    """The seconds at the first point that reaches the target; None if none does."""
    reached = [s for s, accuracy in zip(seconds, accuracies, strict=True) if accuracy >= target]
    return reached[0] if reached else None


def sections(runs: Sequence[Run], failed: dict[str, str], picture: str) -> list[str]:
    """The page's sections, in Markdown."""
    if not runs:
        return ['No run has ended.\n']
    settings = runs[0]['settings']
    images = settings['train_images'] or 'all'
    texts = [
        f'{settings["workers"]} workers of {settings["batch"]} images each, {settings["num_steps"]:,} steps '
        f'on {images} training images of CIFAR-10, {runs[0]["params"]:,} parameters; peak learning rate '
        f'{settings["learning_rate"]:g} with momentum 0.9, ten times that without; warm-up and cosine. '
        f'{"Validation" if settings["validation"] else "Test"} accuracy in %, mean ± standard deviation over '
        'seeds. Seconds are those of training: the slowest worker of every step, without evaluations, input '
        'and compilation; y counts one dense all-reduce more, at its end. The target is what dense SGD ends '
        f'at, less {_BELOW:g} point. A ratio is that of dense JAX to the variant, its 95 % interval from the '
        'seeds. All workers share the cores and the memory of one machine, which lengthens every step alike '
        'and so lowers the ratios. DEF is read at y, DEF-A is the same run read at x.\n',
        f'![Accuracy against seconds]({picture})\n',
    ]
    for bandwidth in dict.fromkeys(run['settings']['bandwidth'] for run in runs):
        texts.append(f'## {bandwidth}\n\n{_table(runs, bandwidth)}')
    lines = [f'- {TITLES[name]}: not measured, {why}\n' for name, why in failed.items()]
    return [*texts, ''.join(lines)]


def draw(runs: Sequence[Run], path: Path) -> None:
    """Accuracy against seconds, a panel for each bandwidth."""
    bandwidths = list(dict.fromkeys(run['settings']['bandwidth'] for run in runs))
    with pictures.panels(path, 1, max(1, len(bandwidths))) as grid:
        for axes, bandwidth in zip(grid[0], bandwidths, strict=False):
            for variant, point, label, color in _lines(runs):
                whole, timed = _whole(runs, variant), _timed(runs, variant, bandwidth)
                if timed and point in whole[0]['curve'][0]:
                    seconds = np.mean([times_of(run, _own(run, timed)) for run in whole], axis=0)
                    accuracies = np.array([[p[point] for p in run['curve']] for run in whole]).T
                    pictures.draw_band(axes, list(seconds), list(accuracies), label=label, color=color)
            axes.set_title(bandwidth)
            axes.set_xscale('log')
            axes.set_xlabel('seconds of training')
            axes.set_ylabel('accuracy, %')
            pictures.direct_labels(axes)


def _lines(runs: Sequence[Run]):
    """Variant, point of evaluation, label and colour of each line."""
    named = {'dense': 'SGD', 'ddp': 'SGD', 'ddp_fp16': 'SGD', 'ddp_powersgd': 'PowerSGD'}
    for variant in dict.fromkeys(run['settings']['variant'] for run in runs):
        if variant in named:
            yield variant, 'x', variant, pictures.COLORS[named[variant]]
        else:
            yield variant, 'y', variant, pictures.COLORS['DEF']
            yield variant, 'x', f'{variant}, x', pictures.COLORS['DEF-A']


def _whole(runs: Sequence[Run], variant: str) -> list[Run]:
    return _timed(runs, variant, runs[0]['settings']['bandwidth'])


def _timed(runs: Sequence[Run], variant: str, bandwidth: str) -> list[Run]:
    return [
        run
        for run in runs
        if run['settings']['variant'] == variant and run['settings']['bandwidth'] == bandwidth
    ]


def _own(run: Run, timed: Sequence[Run]) -> Run:
    """The run itself if it was made at this bandwidth, else the one that was timed there."""
    return run if any(run is other for other in timed) else timed[0]


def _table(runs: Sequence[Run], bandwidth: str) -> str:
    dense = _whole(runs, 'dense')
    target = np.mean([run['curve'][-1]['x'] for run in dense]) - _BELOW if dense else np.inf
    rows, base = [], _times(runs, 'dense', 'x', bandwidth, target)
    for variant, point, _, _ in _lines(runs):
        whole, timed = _whole(runs, variant), _timed(runs, variant, bandwidth)
        if not whole or not timed or point not in whole[0]['curve'][0]:
            continue
        times = _times(runs, variant, point, bandwidth, target)
        finals = [run['curve'][-1][point] for run in whole]
        step = float(np.median([run['step_seconds'] for run in timed]))
        rows.append(
            [
                TITLES[variant] + ('' if point == 'y' or not variant.startswith(('def', 'best')) else ', x'),
                len(whole),
                _mean_std(finals),
                f'{1e3 * step:.0f}',
                _predicted(timed[0], bandwidth),
                _mean_std([t for t in times.values() if t is not None], 1),
                sum(t is None for t in times.values()),
                _ratio(base, times),
            ]
        )
    columns = ['variant', 'seeds', 'final accuracy', 'ms a step', 'predicted by def_jax.plan']
    columns += [f'seconds to {target:.1f} %', 'seeds that do not reach it', 'times as fast as dense JAX']
    return timing.table(columns, rows)


def _times(
    runs: Sequence[Run], variant: str, point: str, bandwidth: str, target: float
) -> dict[int, float | None]:
    """By seed, the seconds to the target."""
    timed, found = _timed(runs, variant, bandwidth), {}
    for run in _whole(runs, variant) if timed else ():
        seconds = times_of(run, _own(run, timed))
        reached = time_to(target, seconds, [p[point] for p in run['curve']])
        if reached is not None and point == 'y':
            reached += _plan(run, bandwidth).all_reduce(run['params'])
        found[run['settings']['seed']] = reached
    return found


def _plan(run: Run, bandwidth: str) -> Plan:
    return Plan(
        params=run['params'],
        step_time=run.get('alone') or 1.0,
        bandwidth=parse_bandwidth(bandwidth),
        workers=run['settings']['workers'],
    )


def _predicted(run: Run, bandwidth: str) -> str:
    """The plan's time of a step, from that of a step without communication."""
    if 'alone' not in run:
        return ''
    variant, plan = run['settings']['variant'], _plan(run, bandwidth)
    ratio = 1 if variant == 'dense' else int(''.join(c for c in variant if c.isdigit()))
    seconds = plan.step_time + plan.all_reduce(run['params'] / ratio)
    return f'{1e3 * seconds:.0f} ({seconds / run["step_seconds"] - 1:+.0%})'


def _mean_std(values: Sequence[float], digits: int = 2) -> str:
    if not values:
        return ''
    spread = f' ± {np.std(values, ddof=1):.{digits}f}' if len(values) > 1 else ''
    return f'{np.mean(values):.{digits}f}{spread}'


def _ratio(base: dict[int, float | None], times: dict[int, float | None]) -> str:
    """The mean ratio over seeds that both reach the target, with its interval from their logarithms."""
    both = [(base[s], t) for s, t in times.items() if t is not None and base.get(s) is not None]
    if not both:
        return ''
    logs = np.log([b / t for b, t in both])
    text = f'{np.exp(logs.mean()):.2f}'
    if len(logs) - 1 in _STUDENT:
        half = _STUDENT[len(logs) - 1] * np.std(logs, ddof=1) / np.sqrt(len(logs))
        text += f' ({np.exp(logs.mean() - half):.2f} to {np.exp(logs.mean() + half):.2f})'
    return text
