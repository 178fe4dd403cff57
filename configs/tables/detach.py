"""Beyond the paper: λ*(t) estimated from the messages ('auto') against a grid of fixed λ, without momentum.

Command:  python -m paper.sweep --config=configs/tables/detach.py:digits --workdir=runs/detach
          (scikit-learn's digits, 2 CPU cores; without ':digits', CIFAR-10 with VGG-16, on GPUs: 81 runs,
          about half a GPU hour each)
          python -m paper.report --workdir=runs/detach --output=results/beyond/detach_digits
Variants: :digits; :cifar10_small, the setup of momentum.py:cifar10_small for 10 epochs with balanced blocks.
Expected: 'auto' is within 0.3 points of each column's best λ, except at learning rate 0.1 on digits and at
          ratio 64 on CIFAR-10; its training loss is the lowest or close to it.
          Sending messages in bfloat16 makes no difference.
"""

import ml_collections

from configs import cifar10
from configs.tables import momentum, tables

GRID = (0.1, 0.3, 0.6, 1.0)
COLUMNS = {
    '256, 1 worker': {'ratio': 256, 'num_workers': 1},
    '256, 2 workers': {'ratio': 256, 'num_workers': 2},
    '256, 4 workers': {'ratio': 256, 'num_workers': 4},
    '256, 16 workers': {'ratio': 256, 'num_workers': 16},
    '1024, 16 workers': {'ratio': 1024, 'num_workers': 16},
}
# Digits only: another learning rate, and another batch size with the same number of steps.
DIGITS = {
    '256, 16 workers, rate 0.1': {'ratio': 256, 'num_workers': 16, 'learning_rate': 0.1},
    '256, 16 workers, batch 64': {'ratio': 256, 'num_workers': 16, 'batch_size': 64, 'num_epochs': 140},
}
CIFAR10_SMALL = {
    '16, balanced': {'ratio': 16, 'allocation': 'balanced'},
    '64, balanced': {'ratio': 64, 'allocation': 'balanced'},
}
NARROW = ('256, 16 workers', '1024, 16 workers')  # columns whose messages are also sent in bfloat16


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The table; `arg` is empty or a variant, see above."""
    name = tables.variant(arg, 'digits', 'cifar10_small')
    base = tables.digits_base() if name == 'digits' else tables.on_one_device(cifar10.get_config())
    base.recalibrate_batches = 8
    base.learning_rate = 0.5
    columns, where = COLUMNS, 'CIFAR-10'
    if name == 'digits':
        base.eval_every_epochs = 40
        columns, where = COLUMNS | DIGITS, "scikit-learn's digits"
    if name == 'cifar10_small':
        base.update(tables.REDUCED_CIFAR | {'num_epochs': 10, 'eval_every_epochs': 10})
        columns, where = CIFAR10_SMALL, 'CIFAR-10 (JPEG copy), reduced, 10 epochs'
    cells = []
    for column, settings in columns.items():
        ours = momentum.OURS | settings
        if 'num_workers' in settings:
            ours['workers_per_device'] = settings['num_workers']
        for detach in GRID:
            cells.append(tables.cell(detach, column, **ours | {'detach': detach}))
        cells.append(tables.cell('auto', column, **ours))
        if column in NARROW:
            cells.append(tables.cell('auto, bfloat16', column, **ours | {'wire_dtype': 'bfloat16'}))
    title = f'Past the paper on {where}: λ from a grid and λ from the messages, accuracy of y'
    return tables.table(title, base, cells, rows='λ')
