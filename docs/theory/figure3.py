"""Figure 3 with BatchNorm set right: how much of x's early lead over y is BatchNorm's?

    for ratio in 64 256; do for seed in 0 1 2; do python train.py --config=configs/digits.py \
        --config.workers_per_device=16 --config.recalibrate_batches=8 --config.eval_every_epochs=10 \
        --config.ratio=$ratio --config.seed=$seed --workdir=runs/figure3_recalibrated/$ratio-$seed; done; done
    python docs/theory/figure3.py runs/figure3_recalibrated

A run reports x and y with BatchNorm's running statistics and with statistics recalibrated at x and at y.
Without an argument, the picture is drawn from the curves of the committed runs.
"""

import json
import sys
from pathlib import Path

import numpy as np
import reporting

COMMITTED = reporting.RESULTS / 'figure3_runs.json'
STATISTICS = {'running': '_running', 'recalibrated': ''}
WINDOWS = {'20': (20, 20), '40': (40, 40), '120': (120, 120), '280': (280, 280)}
WINDOWS |= {'mean of 10 to 70': (10, 70), 'mean of 80 to 140': (80, 140)}  # at 140 the rate drops


def collect(folder):
    """The curves of the runs in `folder`, by ratio and seed, kept as the committed ones."""
    runs = {}
    for path in sorted(folder.glob('*/result.json')):
        result = json.loads(path.read_text())
        curve = [
            {k: v for k, v in r.items() if k == 'epoch' or k.startswith('test_acc')} for r in result['curve']
        ]
        runs.setdefault(f'{result["config"]["ratio"]:g}', {})[result['config']['seed']] = curve
    COMMITTED.write_text(json.dumps(runs) + '\n')


def main():
    if len(sys.argv) > 1:
        collect(Path(sys.argv[1]))
    by_ratio = {ratio: list(runs.values()) for ratio, runs in json.loads(COMMITTED.read_text()).items()}
    figure, axes = reporting.panels(len(by_ratio) * len(STATISTICS), sharey=True)
    rows = []
    for panels, (ratio, runs) in zip(np.split(axes, len(by_ratio)), by_ratio.items(), strict=True):
        rows += [[ratio, *row] for row in compared(runs, ratio, panels)]
    header = ['ratio', 'epoch', *(f'{of}, {name}' for name in STATISTICS for of in ('x', 'y', 'x - y'))]
    reporting.publish('figure3', figure, header, rows, seeds=len(runs))


def compared(runs, ratio, panels):
    """The rows of a ratio, drawn in a panel for each kind of statistics."""
    epochs = [record['epoch'] for record in runs[0]]

    def accuracy(point, suffix):
        return np.array([[100 * r[f'test_accuracy_{point}{suffix}'] for r in run] for run in runs]).T

    def over(accuracies, first, last):
        return accuracies[epochs.index(first) : epochs.index(last) + 1].mean(0)

    columns = []
    for panel, (statistics, suffix) in zip(panels, STATISTICS.items(), strict=True):
        x, y = accuracy('x', suffix), accuracy('y', suffix)
        reporting.band(panel, epochs, 100 - x, 'x: DEF-A', color=reporting.X)
        reporting.band(panel, epochs, 100 - y, 'y: DEF', color=reporting.Y)
        panel.set(title=f'ratio {ratio}, {statistics}', xlabel='epoch', ylabel='test error, %', yscale='log')
        panel.legend()
        columns += [[reporting.mean_std(over(v, *window)) for window in WINDOWS.values()] for v in (x, y)]
        columns += [[reporting.interval(over(x - y, *window)) for window in WINDOWS.values()]]
    return zip(WINDOWS, *columns, strict=True)


if __name__ == '__main__':
    main()
