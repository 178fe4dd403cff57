"""Past the paper: λ*(t) estimated from the messages ('auto') against a grid of fixed λ, without momentum.

Command:  python -m def_jax.training.sweep --config=configs/tables/detach.py:digits --workdir=runs/detach
          (scikit-learn's digits, 2 CPU cores; without ':digits' the same on CIFAR-10 with VGG-16, on GPUs)
          python -m def_jax.training.report --workdir=runs/detach --output=results/detach_digits
Expected: 'auto' within 0.3 points of the best λ of each column; the best fixed λ differs with the number of
          workers. Messages in bfloat16 change nothing.
"""

import ml_collections

from configs import cifar10
from configs.tables import momentum, tables

GRID = (0.1, 0.3, 0.6, 1.0)
COLUMNS = {
    '256, 2 workers': {'ratio': 256, 'num_workers': 2},
    '256, 4 workers': {'ratio': 256, 'num_workers': 4},
    '256, 16 workers': {'ratio': 256, 'num_workers': 16},
    '1024, 16 workers': {'ratio': 1024, 'num_workers': 16},
}
NARROW = ('256, 16 workers', '1024, 16 workers')  # whose messages also travel as bfloat16


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The table; `arg` is empty or a variant, see above."""
    small = tables.variant(arg, 'digits')
    base = tables.digits_base() if small else cifar10.get_config()
    base.recalibrate_batches = 8
    base.learning_rate = 0.5
    if small:
        base.eval_every_epochs = 40
    cells = []
    for column, settings in COLUMNS.items():
        ours = momentum.OURS | settings
        if small:
            ours['workers_per_device'] = settings['num_workers']
        for detach in GRID:
            cells.append(tables.cell(detach, column, **ours | {'auto_detach': False, 'detach': detach}))
        cells.append(tables.cell('auto', column, **ours))
        if column in NARROW:
            cells.append(tables.cell('auto, bfloat16', column, **ours | {'wire_dtype': 'bfloat16'}))
    where = "scikit-learn's digits" if small else 'CIFAR-10'
    title = f'Past the paper on {where}: λ from a grid and λ from the messages, accuracy of y'
    return tables.table(title, base, cells, rows='λ')
