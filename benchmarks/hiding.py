"""Messages in flight on a slow network: a step takes the longer of gradient and message, or their sum.

    python -m benchmarks.hiding --output=results/benchmarks/hiding.md

Runs two processes (--workers) in network namespaces, whose interfaces are shaped so that a message takes a
quarter, half, once and twice as long as the gradient (--share); needs root and iproute2. Leave the machine
idle. A step's time is that of a whole turn over its steps, so that a wait in one step that the next makes up
for does not count. Beside it is the processor time of a process, which has one core: packets need it, too.
"""

import os
import sys
from pathlib import Path

import numpy as np
from absl import app, flags

from benchmarks import pages
from benchmarks.cluster.network import network
from benchmarks.cluster.page import ring_bytes
from benchmarks.cluster.processes import guarded, run_workers
from def_jax.tools import pictures

_SHARES = flags.DEFINE_multi_float(
    'share', [0.25, 0.5, 1, 2], "A message's time over the gradient's, when nothing else runs."
)
_WORKERS = flags.DEFINE_integer('workers', 2, 'Number of workers.', lower_bound=2, upper_bound=250)
_BATCH = flags.DEFINE_integer('batch', 64, 'Examples of a worker.', lower_bound=1)
_ROUNDS = flags.DEFINE_integer('rounds', 7, 'How many turns each variant takes.', lower_bound=1)
_STEPS = flags.DEFINE_integer('steps', 12, 'Steps per turn.', lower_bound=1)
_TIMEOUT = flags.DEFINE_float('timeout', 600, 'Seconds after which a network is abandoned.')
_OUTPUT = flags.DEFINE_string(
    'output', 'results/benchmarks/hiding.md', 'The page, whose tables are replaced; its picture is beside it.'
)

_STEPS_OF = {
    'local_def64': 'gradient and optimizer alone',
    'message64': 'message alone',
    'def64': 'without `overlap`',
    'def64_overlap': 'with it',
}


def main(_) -> int:
    return guarded('hiding', _run)


def _run() -> None:
    report, seconds, _ = _measure(None)
    message = report['variants']['message64']['hlo']['bytes']
    sent = ring_bytes(message, _WORKERS.value, packets=0)
    rates = {s: sent / (s * np.median(seconds['local_def64'])) for s in _SHARES.value}
    found = {share: (rate, *_measure(f'{8 * rate:.0f}bit')[1:]) for share, rate in rates.items()}
    text = (
        f'{pages.origin("benchmarks.hiding")}\n\n{_WORKERS.value} processes on {os.cpu_count()} cores; an '
        f'MLP of {report["params"]:,} parameters, {_BATCH.value} examples a worker, and a message of '
        f'{message / 1e3:.0f} kB. Load average {os.getloadavg()[0]:.1f}.'
    )
    pages.write(_OUTPUT.value, {'hiding': _table(found), 'origin': text})
    _draw(found, Path(_OUTPUT.value).with_suffix('.png'))


def _measure(rate: str | None) -> tuple[dict, dict[str, np.ndarray], float]:
    """A worker's report, every variant's seconds a step [rounds], and those of the processor with overlap.

    Seconds are the slowest worker's; the processor's are the median over workers and rounds.
    """
    job = {
        'model': 'mlp',
        'batch': _BATCH.value,
        'rounds': _ROUNDS.value,
        'warm_up': 1,
        'steps': _STEPS.value,
        'variants': list(_STEPS_OF),
        'alone': (),
    }
    with network(_WORKERS.value, rate) as cluster:
        module = 'benchmarks.cluster.jax_worker'
        reports = run_workers(cluster, sys.executable, module, job, _TIMEOUT.value)
    seconds = {name: [report['variants'][name]['seconds'] for report in reports] for name in _STEPS_OF}
    turns = len(reports), _ROUNDS.value, _STEPS.value
    slowest = {name: np.reshape(s, turns).mean(2).max(0) for name, s in seconds.items()}
    busy = np.median([report['variants']['def64_overlap']['processor'] for report in reports])
    return reports[0], slowest, float(busy)


def _table(found: dict) -> str:
    rows = []
    for share, (rate, seconds, busy) in found.items():
        middle = {name: np.median(s) for name, s in seconds.items()}
        bound = max(middle['local_def64'], middle['message64'])
        times = {
            title: '{:.0f} ({:.0f} to {:.0f})'.format(*1e3 * np.quantile(seconds[name], [0.5, 0.25, 0.75]))
            for name, title in _STEPS_OF.items()
        }
        rows.append(
            {
                'message over gradient, aimed at': f'{share:g}',
                'network': f'{8e-6 * rate:.0f} Mbit/s',
                **times,
                'processor time with it': f'{1e3 * busy:.0f}',
                'over the longer of the two': f'{middle["def64_overlap"] / bound:.2f}',
                'times as fast as without': f'{middle["def64"] / middle["def64_overlap"]:.2f}',
            }
        )
    return pages.table(rows)


def _draw(found: dict, path: Path) -> None:
    """Steps over the gradient's time, by the message's."""
    middle = [{name: np.median(s) for name, s in seconds.items()} for _, seconds, _ in found.values()]
    x = [m['message64'] / m['local_def64'] for m in middle]
    with pictures.panels(path, 1, 1) as axes:
        panel = axes[0, 0]
        line = np.linspace(0, 1.1 * max(x))
        panel.plot(line, 1 + line, ':', color='#666666', label='sum')
        panel.plot(line, np.maximum(1, line), '--', color='#666666', label='longer of the two')
        for name, label, color in (
            ('def64', 'without overlap', '#D55E00'),
            ('def64_overlap', 'overlap=True', '#0072B2'),
        ):
            panel.plot(x, [m[name] / m['local_def64'] for m in middle], 'o', color=color, label=label)
        panel.set_xlabel('message over gradient')
        panel.set_ylabel('step over gradient')
        panel.set_ylim(0)
        panel.legend()


if __name__ == '__main__':
    app.run(main)
