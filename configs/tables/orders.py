"""Beyond the paper: three block orders at ratio 1024, and λ with the shuffled order, on digits.

Command:  python -m paper.sweep --config=configs/tables/orders.py --workdir=runs/orders
          python -m paper.report --workdir=runs/orders --output=runs/orders
Variants: :detach, rows by λ instead of order, at ratios 1024 and 256.
Expected: 'shuffled' beats 'cyclic', and both beat independent draws; λ = 0.3 is best at ratio 1024.
"""

import itertools

import ml_collections

from configs.tables import tables
from configs.tables.beyond import POINTS


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The table; `arg` is empty or a variant, see above."""
    base = tables.digits_base()
    base.recalibrate_batches = 8
    base.eval_every_epochs = 140
    cells = []
    if tables.variant(arg, 'detach'):
        for ratio, detach, method in itertools.product((1024, 256), (0.1, 0.3, 0.5, 0.7, 1.0), POINTS):
            settings = {'ratio': ratio, 'order': 'shuffled', 'detach': detach, 'learning_rate': 0.1}
            cells.append(tables.cell(detach, f'{POINTS[method][0]}, {ratio}', method=method, **settings))
        title = "λ with shuffled blocks on scikit-learn's digits, BatchNorm recalibrated"
        return tables.table(title, base, cells, rows='λ', seeds=(0, 1))
    for order, rate, method in itertools.product(('random', 'shuffled', 'cyclic'), (0.1, 0.05), POINTS):
        settings = {'ratio': 1024, 'order': order, 'learning_rate': rate}
        cells.append(tables.cell(order, f'{POINTS[method][0]}, {rate}', method=method, **settings))
    title = "Orders of the blocks at ratio 1024 on scikit-learn's digits, BatchNorm recalibrated"
    return tables.table(title, base, cells, rows='order', seeds=(0, 1))
