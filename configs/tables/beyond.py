"""Beyond the paper: blocks sent once per round and recalibrated BatchNorm statistics, against its DEF.

Command:  python -m paper.sweep --config=configs/tables/beyond.py:digits --workdir=runs/beyond
          (scikit-learn's digits, 2 CPU cores; without ':digits', CIFAR-10 with VGG-16, on GPUs: 21 runs to
          tune, then 35 to 100 more, about half a GPU hour each)
          python -m paper.report --workdir=runs/beyond --output=results/beyond/digits
Variants: :digits.
Expected: 'shuffled' has a lower training loss at 256 and 1024; at 1024 it beats independent draws and is one
          point below SGD.

Each run fills two columns: it is evaluated with recalibrated and with running statistics.
"""

import itertools

import ml_collections

from configs import cifar10
from configs.tables import tables

RATIOS = (256, 1024, 4096)
ORDERS = ('random', 'shuffled')
SEEDS = (0, 1, 2, 3, 4)  # among three seeds, two differ by more than half a point
POINTS = {'def': ('DEF', 'y'), 'def_a': ('DEF-A', 'x')}


def sgd_cells() -> list[dict]:
    """SGD with both kinds of statistics."""
    return [
        tables.cell(1, 'SGD', method='sgd', ratio=1),
        tables.cell(1, 'SGD, running', point='x_running', method='sgd', ratio=1),
    ]


def def_cells() -> list[dict]:
    """One row per ratio: the paper's DEF and DEF-A, each change alone, and both together."""
    result = []
    for ratio, order, (method, (title, point)) in itertools.product(RATIOS, ORDERS, POINTS.items()):
        settings = {'method': method, 'ratio': ratio, 'order': order}
        paper = order == 'random'
        name = f'{title} (paper)' if paper else f'{title}, shuffled, running'
        result.append(tables.cell(ratio, name, point=f'{point}_running', **settings))
        name = f'{title}, recalibrated' if paper else f'{title}, shuffled, recalibrated'
        result.append(tables.cell(ratio, name, **settings))
    return result


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The table; `arg` is empty or a variant, see above."""
    if tables.variant(arg, 'digits'):
        base, where = tables.digits_base(), "scikit-learn's digits"
        base.eval_every_epochs = 40
        tuning = {}
    else:
        base, where = tables.on_one_device(cifar10.get_config()), 'CIFAR-10'
        tuning = tables.HELD_OUT_CIFAR
    base.recalibrate_batches = 8
    title = f'Past the paper on {where}: the order of the blocks, and BatchNorm recalibrated'
    cells = sgd_cells() + def_cells()
    tuned = {'learning_rates': tables.RATES, 'tuning': tuning}
    return tables.table(title, base, cells, rows='ratio', seeds=SEEDS, **tuned)
