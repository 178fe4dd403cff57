"""The page and the picture of accuracy against seconds, made from the runs."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import timing
from def_jax.tools import pictures
from def_jax.tools.plan import Plan, parse_bandwidth
from paper.statistics import mean_std, paired_difference

__all__ = ['TITLES', 'Timed', 'draw', 'is_peer', 'sections', 'timed']

TITLES = {
    'dense': 'SGD, dense JAX',
    'def64': 'DEF, ratio 64',
    'def256': 'DEF, ratio 256',
    'best64': 'DEF, bytes of ratio 64 in int8, balanced, shuffled, λ auto, no momentum',
    'best256': 'DEF, bytes of ratio 256 in int8, balanced, shuffled, λ auto, no momentum',
    'jax_fp16': 'fp16 gradients in JAX',
    'jax_powersgd': 'PowerSGD in JAX, rank 4',
    'jax_top_k64': 'top-k in JAX, bytes of ratio 64',
    'ddp': 'PyTorch DDP, dense',
    'ddp_fp16': 'PyTorch DDP, fp16 hook',
    'ddp_powersgd': 'PyTorch DDP, PowerSGD hook, rank 4',
}
# What the picture names; the other variants are grey.
_LABELS = {
    'dense': ('dense', 'SGD', '-'),
    'def64': ('DEF at 1/64', 'DEF', '--'),
    'best64': ('DEF at 1/64, int8', 'DEF', '-'),
    'jax_powersgd': ('PowerSGD', 'PowerSGD', '-'),
    'ddp_fp16': ('PyTorch fp16', 'SGD', '--'),
    'ddp_powersgd': ('PyTorch PowerSGD', 'PowerSGD', '--'),
}
_BELOW = 1.0  # points below dense SGD's final accuracy: the target

Run = dict[str, Any]


def is_peer(variant: str) -> bool:
    """Whether PyTorch trains it."""
    return variant.startswith('ddp')


class Timed(NamedTuple):
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


def timed(runs: Sequence[Run], variant: str, point: str, bandwidth: str) -> Timed | None:
    """None unless the variant has whole runs and was timed at that bandwidth."""
    of_variant = [run for run in runs if run['settings']['variant'] == variant]
    whole = [r for r in of_variant if not r['settings']['bandwidth'] and point in r['curve'][0]]
    clocked = [r for r in of_variant if r['settings']['bandwidth'] == bandwidth]
    if not whole or not clocked:
        return None
    return Timed(
        {r['settings']['seed']: np.array([p[point] for p in r['curve']]) for r in whole},
        np.array([p['step'] for p in whole[0]['curve']]),
        clocked[0],
        _plan(clocked[0], bandwidth).all_reduce(clocked[0]['params']) if point == 'y' else 0.0,
    )


def sections(runs: Sequence[Run], failed: dict[str, str], picture: str) -> list[str]:
    """The page's sections, in Markdown."""
    if not runs:
        return ['No run has ended.\n']
    settings = runs[0]['settings']
    images = settings['train_images'] or 'all'
    texts = [
        f'{settings["workers"]} workers of {settings["batch"]} images each, {settings["num_steps"]:,} steps '
        f'on {images} training images of CIFAR-10, {runs[0]["params"]:,} parameters; warm-up and cosine. '
        f'{"Validation" if settings["validation"] else "Test"} accuracy in %, mean ± standard deviation over '
        'seeds. Accuracies do not depend on the network: whole runs were made on an unshaped one, and the '
        'time of a step, the mean of those of the slowest worker with its standard error, at each bandwidth. '
        'Seconds are steps times that, without evaluations, input and compilation; y counts one dense '
        f'all-reduce more, at its end. The target is what dense SGD ends at, less {_BELOW:g} point. A ratio '
        "is that of dense JAX, or of PyTorch's fastest that always reaches the target, to the variant; "
        'its 95 % interval has the spread of the seeds, where there are several, and that of the steps. All '
        'workers share the cores and the memory of one machine, which lengthens every step alike and so '
        'lowers the ratios. A ratio to PyTorch is one of two frameworks on this machine as well as of two '
        "methods: of its PowerSGD's step the wire takes a few ms, the rest is gradient, hook and gloo. "
        'Accuracies end in a cosine, so that every crossing lies in the last quarter, and a ratio is nearly '
        f'that of the steps. DEF is read at y, DEF-A is the same run at x. {_commits(runs)}\n',
        f'![Accuracy against seconds]({picture})\n',
    ]
    for bandwidth in _bandwidths(runs):
        texts.append(f'## {bandwidth}\n\n{_table(runs, bandwidth)}')
    lines = [f'- {TITLES[name]}: not measured, {why}\n' for name, why in failed.items()]
    return [*texts, ''.join(lines)]


def draw(runs: Sequence[Run], path: Path) -> None:
    """Accuracy against seconds, DEF's at y, a panel for each bandwidth."""
    bandwidths = _bandwidths(runs)
    with pictures.panels(path, 1, max(1, len(bandwidths))) as grid:
        for axes, bandwidth in zip(grid[0], bandwidths, strict=False):
            for variant, point in _lines(runs):
                found = timed(runs, variant, point, bandwidth)
                if found and point == _answer(variant):
                    accuracies, style = np.array(list(found.curves.values())).T, pictures.BACKGROUND
                    if variant in _LABELS:
                        label, method, dashes = _LABELS[variant]
                        style = {'label': label, 'color': pictures.COLORS[method], 'linestyle': dashes}
                    pictures.draw_band(axes, list(found.seconds()), list(accuracies), marker=None, **style)
            axes.set_title(bandwidth.replace('gbit', ' Gbit/s').replace('mbit', ' Mbit/s'))
            axes.set_xscale('log')
            axes.set_xlabel('seconds of training')
            axes.set_ylabel('accuracy, %')
        pictures.direct_labels(grid[0, -1])


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
    return 'y' if variant.startswith(('def', 'best')) else 'x'


def _lines(runs: Sequence[Run]) -> Iterator[tuple[str, str]]:
    """Variant and point of evaluation of each line of the table."""
    done = {run['settings']['variant'] for run in runs}
    for variant in filter(done.__contains__, TITLES):
        yield from ((variant, point) for point in dict.fromkeys((_answer(variant), 'x')))


def _table(runs: Sequence[Run], bandwidth: str) -> str:
    base = timed(runs, 'dense', 'x', bandwidth)
    target = np.mean([curve[-1] for curve in base.curves.values()]) - _BELOW if base else np.inf
    peer, rows = _best_peer(runs, bandwidth, target), []
    rival = timed(runs, peer, 'x', bandwidth) if peer else None
    for variant, point in _lines(runs):
        found = timed(runs, variant, point, bandwidth)
        if found is None:
            continue
        times = found.times_to(target)
        run, reached = found.run, [t for t in times.values() if t is not None]
        rows.append(
            [
                TITLES[variant] + ('' if point == _answer(variant) else ', x'),
                f'{run["settings"]["learning_rate"]:g}',
                len(times),
                mean_std([curve[-1] for curve in found.curves.values()], 2),
                f'{1e3 * run["step_seconds"]:.0f} ± {1e3 * run["standard_error"]:.0f}',
                _predicted(run, bandwidth),
                mean_std(reached, 0) if reached else '',
                len(times) - len(reached),
                '1.00' if variant == 'dense' else _ratio(base, found, target) if base else '',
                *(['1.00' if variant == peer else _ratio(rival, found, target)] if rival else []),
            ]
        )
    columns = [
        'variant',
        'learning rate',
        'seeds',
        'final accuracy',
        'ms a step',
        'predicted by def_jax.plan',
    ]
    columns += [f'seconds to {target:.1f} %', 'seeds that do not reach it', 'times as fast as dense JAX']
    columns += [f'as {TITLES[peer]}'] if peer else []
    return timing.table(columns, rows)


def _best_peer(runs: Sequence[Run], bandwidth: str, target: float) -> str:
    """PyTorch's variant that is first at the target, of those that reach it with every seed; '' if none."""
    means = {}
    for variant in TITLES:
        if is_peer(variant) and (found := timed(runs, variant, 'x', bandwidth)):
            times = list(found.times_to(target).values())
            if None not in times:
                means[variant] = np.mean(times)
    return min(means, key=means.get, default='')


def _plan(run: Run, bandwidth: str) -> Plan:
    return Plan(
        params=run['params'],
        step_time=run.get('alone') or 1.0,
        bandwidth=parse_bandwidth(bandwidth),
        workers=run['settings']['workers'],
    )


def _predicted(run: Run, bandwidth: str) -> str:
    """The plan's time of a step, from that of one that sends nothing, when all workers have ended it."""
    if 'alone' not in run or run['settings']['variant'].startswith('jax'):
        return ''
    variant, plan = run['settings']['variant'], _plan(run, bandwidth)
    ratio = 1 if variant == 'dense' else int(''.join(c for c in variant if c.isdigit()))
    seconds = plan.step_time + plan.all_reduce(run['params'] / ratio)
    return f'{1e3 * seconds:.0f} ({seconds / run["step_seconds"] - 1:+.0%})'


def _ratio(base: Timed, found: Timed, target: float) -> str:
    """The mean ratio of the times to the target, and its interval from their logarithms.

    Paired over the seeds of which both reach the target; a single seed has only the spread of the steps.
    """
    logs = [
        {seed: np.log(t) for seed, t in side.times_to(target).items() if t is not None}
        for side in (base, found)
    ]
    difference = paired_difference(*logs)
    if difference is None:
        return ''
    half = 1.96 * float(np.hypot(_relative(base.run), _relative(found.run)))
    if difference.num_seeds > 1:
        half = float(np.hypot(half, difference.interval()[1] - difference.mean))
    ratios = np.exp(difference.mean + np.array([0, -half, half]))
    return '{:.2f} ({:.2f} to {:.2f})'.format(*ratios)


def _relative(run: Run) -> float:
    """The standard error of a step's time, relative to it."""
    return run['standard_error'] / run['step_seconds']
