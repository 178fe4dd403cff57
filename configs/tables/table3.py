"""Table 3: test accuracy of three networks on CIFAR-10 and CIFAR-100 by method, ratio 64, 16 workers.

Command:  python -m paper.sweep --config=configs/tables/table3.py --workdir=runs/table3
          (200 epochs; 72 runs to tune on held-out training images, then 72 to 108; about 0.5, 2 and 9 GPU
          hours each for the three networks; docs/paper_tables.md says what this estimate rests on)
Variants: :digits, small networks of the same kinds on scikit-learn's digits, for 2 CPU cores.
Expected: the numbers below.
"""

import ml_collections

from configs import cifar10
from configs.tables import tables

METHODS = {'sgd': 'SGD', **tables.COMPRESSED}
PAPER = {
    ('cifar10', 'vgg16'): (
        '93.76 ± 0.14',
        '92.16 ± 0.06',
        '91.88 ± 0.14',
        '91.79 ± 0.17',
        '93.75 ± 0.12',
        '93.61 ± 0.07',
    ),
    ('cifar10', 'resnet110'): (
        '94.73 ± 0.06',
        'diverge',
        '92.95 ± 0.17',
        '92.26 ± 0.04',
        '94.34',
        '94.66 ± 0.07',
    ),
    ('cifar10', 'wrn_28_10'): (
        '96.21 ± 0.07',
        'diverge',
        '95.33 ± 0.01',
        '95.44 ± 0.13',
        '96.26 ± 0.05',
        '96.24 ± 0.12',
    ),
    ('cifar100', 'vgg16'): (
        '72.50 ± 0.33',
        '68.87 ± 0.21',
        '67.00 ± 0.07',
        '65.68 ± 0.16',
        '72.02 ± 0.10',
        '72.38 ± 0.07',
    ),
    ('cifar100', 'resnet110'): (
        '76.78 ± 0.29',
        'diverge',
        '71.19 ± 0.31',
        '69.21 ± 0.04',
        '76.43 ± 0.12',
        '76.98 ± 0.21',
    ),
    ('cifar100', 'wrn_28_10'): (
        '80.81 ± 0.12',
        'diverge',
        '79.04 ± 0.01',
        '79.60 ± 0.12',
        '80.88 ± 0.16',
        '80.95 ± 0.16',
    ),
}
SMALL = {'vgg16': 'vgg_digits', 'resnet110': 'resnet8', 'wrn_28_10': 'wrn_10_1'}


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The table; `arg` is empty or a variant, see above."""
    small = tables.variant(arg, 'digits')
    cells = []
    for (dataset, model), papers in PAPER.items():
        if small and dataset == 'cifar100':
            continue
        row, settings = (SMALL[model], {}) if small else (f'{model}, {dataset}', {'dataset': dataset})
        for (method, title), paper in zip(METHODS.items(), papers, strict=True):
            settings |= {'model': SMALL[model] if small else model, 'method': method}
            cells.append(tables.cell(row, title, paper, **settings))
    if small:
        title = "Table 3 on scikit-learn's digits: test accuracy by network and method, ratio 64"
        tuned = {'learning_rates': tables.RATES, 'tuning': tables.HELD_OUT_DIGITS}
        return tables.table(title, tables.digits_base(), cells, rows='network', **tuned)
    title = 'Table 3: test accuracy on CIFAR-10 and CIFAR-100 by network and method, ratio 64'
    base = tables.on_one_device(cifar10.get_config())
    tuned = {'learning_rates': tables.RATES, 'tuning': tables.HELD_OUT_CIFAR}
    return tables.table(title, base, cells, rows='network', **tuned)
