"""Messages in flight on a slow network: a step takes the longer of gradient and message, or their sum.

    python -m benchmarks.hiding --output=results/benchmarks/hiding.md

Runs two processes (--workers) in network namespaces, whose interfaces are shaped so that a message takes a
quarter, half, once and twice as long as the gradient (--share); needs root and iproute2. Leave the machine
idle. A step's time is that of a whole turn over its steps, so that a wait in one step that the next makes up
for does not count. Beside it is the processor time of a process, which has one core: packets need it, too.
XLA has as many threads there as there are cores, unless NPROC says otherwise; each of --threads is tried.
"""

import itertools
import os
import sys
from pathlib import Path

import numpy as np
from absl import app, flags

from benchmarks import pages
from benchmarks.cluster.network import network
from benchmarks.cluster.page import ring_bytes
from benchmarks.cluster.processes import guarded, run_workers
from benchmarks.cluster.workloads import MLP_SIZES
from def_jax.tools import pictures

_SHARES = flags.DEFINE_multi_float(
    'share', [0.25, 0.5, 1, 2], "A message's time over the gradient's, when nothing else runs."
)
_WORKERS = flags.DEFINE_integer('workers', 2, 'Number of workers.', lower_bound=2, upper_bound=250)
_THREADS = flags.DEFINE_multi_integer('threads', [1, 2], "XLA's threads in a process.", lower_bound=1)
_BATCH = flags.DEFINE_integer('batch', 64, 'Examples of a worker.', lower_bound=1)
_ROUNDS = flags.DEFINE_integer('rounds', 7, 'How many turns each variant takes.', lower_bound=1)
_STEPS = flags.DEFINE_integer('steps', 12, 'Steps per turn.', lower_bound=1)
_TIMEOUT = flags.DEFINE_float('timeout', 600, 'Seconds after which a network is abandoned.')
_OUTPUT = flags.DEFINE_string(
    'output', 'results/benchmarks/hiding.md', 'The page, whose tables are replaced; its picture is beside it.'
)

_MODELS = ('mlp', 'mlp_deep')
_TITLES = ('gradient and optimizer alone', 'message alone', 'without `overlap`', 'with it')
_VARIANTS = {  # in the order of the titles
    'float32': ('local_def64', 'message64', 'def64', 'def64_overlap'),
    '2 bits': ('local_def_q64_2', 'message64', 'def_q64_2', 'def_q64_2_overlap'),
}
_ALL = list(dict.fromkeys(name for names in _VARIANTS.values() for name in names))


def main(_) -> int:
    return guarded('hiding', _run)


def _run() -> None:
    rows, curves, texts = [], {}, []
    for model in _MODELS:
        report, seconds, _ = _measure(model, None, _THREADS.value[0])
        layers, message = len(MLP_SIZES[model]) - 1, report['variants']['message64']['hlo']['bytes']
        texts.append(
            f'{layers} layers of {report["params"]:,} parameters and a message of {message / 1e3:.0f} kB'
        )
        sent = ring_bytes(message, _WORKERS.value, packets=0)
        for share, threads in itertools.product(_SHARES.value, _THREADS.value):
            rate = sent / (share * np.median(seconds['local_def64']))
            _, found, busy = _measure(model, f'{8 * rate:.0f}bit', threads)
            for wire, names in _VARIANTS.items():
                times = [found[name] for name in names]
                curves.setdefault((layers, wire, threads), []).append([float(np.median(s)) for s in times])
                start = {
                    'layers': f'{layers}',
                    'messages': wire,
                    'message over gradient, aimed at': f'{share:g}',
                    'network': f'{8e-6 * rate:.0f} Mbit/s',
                    'threads': threads,
                }
                rows.append(start | _row(times, busy[names[-1]]))
    text = (
        f'{pages.origin("benchmarks.hiding")}\n\n{_WORKERS.value} processes on {os.cpu_count()} cores; MLPs, '
        f'{" and ".join(texts)}; {_BATCH.value} examples a worker. Load average {os.getloadavg()[0]:.1f}.'
    )
    rows.sort(key=lambda row: (int(row['layers']), row['messages']))
    pages.write(_OUTPUT.value, {'hiding': pages.table(rows), 'origin': text})
    _draw(curves, Path(_OUTPUT.value).with_suffix('.png'))


def _measure(
    model: str, rate: str | None, threads: int
) -> tuple[dict, dict[str, np.ndarray], dict[str, float]]:
    """A worker's report, every variant's seconds a step [rounds], and those of the processor.

    Seconds are the slowest worker's; the processor's are the median over workers and rounds.
    """
    job = {
        'model': model,
        'batch': _BATCH.value,
        'rounds': _ROUNDS.value,
        'steps': _STEPS.value,
        'variants': _ALL,
        'threads': threads,
    }
    with network(_WORKERS.value, rate) as cluster:
        module = 'benchmarks.cluster.jax_worker'
        reports = run_workers(cluster, sys.executable, module, job, _TIMEOUT.value)
    turns, seconds, busy = (len(reports), _ROUNDS.value, _STEPS.value), {}, {}
    for name in _ALL:
        found = [report['variants'][name] for report in reports]
        seconds[name] = np.reshape([f['seconds'] for f in found], turns).mean(2).max(0)
        busy[name] = float(np.median([f['processor'] for f in found]))
    return reports[0], seconds, busy


def _row(times: list[np.ndarray], busy: float) -> dict[str, str]:
    """What was measured at one speed of the network, by title, and what follows from it."""
    alone, message, without, overlapped = map(np.median, times)
    return {
        title: '{:.0f} ({:.0f} to {:.0f})'.format(*1e3 * np.quantile(s, [0.5, 0.25, 0.75]))
        for title, s in zip(_TITLES, times, strict=True)
    } | {
        'processor time with it': f'{1e3 * busy:.0f}',
        'over the longer of the two': f'{overlapped / max(alone, message):.2f}',
        'times as fast as without': f'{without / overlapped:.2f}',
    }


def _draw(curves: dict[tuple[int, str, int], list[list[float]]], path: Path) -> None:
    """Steps over the gradient's time, by the message's; without `overlap`, with the fewest threads."""
    with pictures.panels(path, 1, len(_MODELS)) as axes:
        for panel, layers in zip(axes[0], sorted({layers for layers, *_ in curves}), strict=True):
            points = {key[1:]: np.array(found) for key, found in curves.items() if key[0] == layers}
            line = np.linspace(0, 1.1 * max(np.max(p[:, 1] / p[:, 0]) for p in points.values()))
            panel.plot(line, 1 + line, ':', color='#666666', label='sum')
            panel.plot(line, np.maximum(1, line), '--', color='#666666', label='longer of the two')
            for (wire, threads), found in points.items():
                marker, filled = ('o', True) if wire == 'float32' else ('s', False)
                lines = {f'overlap, threads: {threads}': (3, '#0072B2')}
                if threads == min(_THREADS.value):
                    lines = {'without': (2, '#D55E00'), f'overlap, threads: {threads}': (3, '#56B4E9')}
                for label, (column, color) in lines.items():
                    x, y = found[:, [1, column]].T / found[:, 0]
                    named = label if filled else None
                    panel.plot(x, y, marker, color=color, mfc=color if filled else 'none', label=named)
            panel.set_title(f'{layers} layers')
            panel.set_xlabel('message over gradient')
            panel.set_ylabel('step over gradient')
            panel.set_ylim(0)
        axes[0, -1].legend(loc='lower right', fontsize='xx-small', ncols=2)


if __name__ == '__main__':
    app.run(main)
