"""Figure 3 with BatchNorm recalibrated: how much of x's early lead over y is BatchNorm's?

    for ratio in 64 256; do for seed in 0 1 2; do python train.py --config=configs/digits.py:num_epochs=280 \
        --config.workers_per_device=16 --config.recalibrate_batches=8 --config.eval_every_epochs=10 \
        --config.ratio=$ratio --config.seed=$seed --workdir=runs/figure3_recalibrated/$ratio-$seed; done; done
    python experiments/theory/figure3.py runs/figure3_recalibrated

A run reports x and y with BatchNorm's running statistics and with statistics recalibrated at x and at y.
Without an argument, the picture is drawn from the curves of the committed runs. The table compares x and y on
CIFAR-10 as well, after 10 epochs of the runs of experiments/cifar10.py at the rate 0.1, whose records keep
the last evaluation only: that of epoch 10 is in the committed file.
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
    COMMITTED.write_text(json.dumps(json.loads(COMMITTED.read_text()) | {'digits': runs}) + '\n')


def main():
    if len(sys.argv) > 1:
        collect(Path(sys.argv[1]))
    committed = json.loads(COMMITTED.read_text())
    by_ratio, on_cifar10 = (
        {ratio: list(runs.values()) for ratio, runs in committed[data].items()}
        for data in ('digits', 'CIFAR-10')
    )
    figure, axes = reporting.panels(len(by_ratio) * len(STATISTICS), sharey=True)
    rows = []
    for panels, (ratio, runs) in zip(np.split(axes, len(by_ratio)), by_ratio.items(), strict=True):
        draw(runs, ratio, panels)
        rows += [['digits', ratio, *row] for row in compared(runs, WINDOWS)]
    for ratio, runs in on_cifar10.items():
        rows += [['CIFAR-10', ratio, *row] for row in compared(runs, {'10': (10, 10)})]
    header = ['data', 'ratio', 'epoch']
    header += [f'{of}, {name}' for name in STATISTICS for of in ('x', 'y', 'x - y')]
    reporting.publish('figure3', figure, header, rows, seeds=3)


def draw(runs, ratio, panels):
    """Draws the runs of a ratio, in a panel for each kind of statistics."""
    for panel, (statistics, suffix) in zip(panels, STATISTICS.items(), strict=True):
        for point, label, color in (('x', 'x: DEF-A', reporting.X), ('y', 'y: DEF', reporting.Y)):
            epochs, accuracies = accuracy(runs, point, suffix)
            reporting.band(panel, epochs, 100 - accuracies, label, color=color)
        panel.set(title=f'ratio {ratio}, {statistics}', xlabel='epoch', ylabel='test error, %', yscale='log')
        panel.legend()


def compared(runs, windows):
    """For each window of epochs, x, y and x - y with both kinds of statistics."""
    for name, (first, last) in windows.items():
        row = [name]
        for suffix in STATISTICS.values():
            means = []
            for point in ('x', 'y'):
                epochs, accuracies = accuracy(runs, point, suffix)
                means.append(accuracies[epochs.index(first) : epochs.index(last) + 1].mean(0))
            row += [*map(reporting.mean_std, means), reporting.interval(means[0] - means[1])]
        yield row


def accuracy(runs, point, suffix):
    """The epochs of the evaluations, and the test accuracy there in %, [evaluations, seeds]."""
    key = f'test_accuracy_{point}{suffix}'
    epochs = [record['epoch'] for record in runs[0] if key in record]
    return epochs, np.array([[100 * record[key] for record in run if key in record] for run in runs]).T


if __name__ == '__main__':
    main()
