"""Beyond the paper: blocks sent once per round and recalibrated BatchNorm statistics, against its DEF.

Command:  python -m def_jax.experiments.sweep --config=configs/tables/beyond.py:digits --workdir=runs/beyond
          (scikit-learn's digits, 2 CPU cores; without ':digits', CIFAR-10 with VGG-16, on GPUs)
          python -m def_jax.experiments.report --workdir=runs/beyond --output=results/beyond/digits
Variants: :digits; :cifar10_small, the shuffled columns at ratios 64 and 256 for table1.py:cifar10_small.
Expected: 'shuffled' has a lower training loss at 256 and 1024; at 1024 it beats independent draws and is one
          point below SGD.

Each run fills two columns: it is evaluated with recalibrated and with running statistics.
"""

import itertools

import ml_collections

from configs import cifar10
from configs.tables import table1, tables

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


def def_cells(ratios=RATIOS, orders=ORDERS) -> list[dict]:
    """One row per ratio: the paper's DEF and DEF-A, each change alone, and both together."""
    result = []
    for ratio, order, (method, (title, point)) in itertools.product(ratios, orders, POINTS.items()):
        settings = {'method': method, 'ratio': ratio, 'order': order}
        paper = order == 'random'
        name = f'{title} (paper)' if paper else f'{title}, shuffled, running'
        result.append(tables.cell(ratio, name, point=f'{point}_running', **settings))
        name = f'{title}, recalibrated' if paper else f'{title}, shuffled, recalibrated'
        result.append(tables.cell(ratio, name, **settings))
    return result


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The table; `arg` is empty or a variant, see above."""
    name = tables.variant(arg, 'digits', 'cifar10_small')
    where = {
        '': 'CIFAR-10',
        'digits': "scikit-learn's digits",
        'cifar10_small': 'CIFAR-10 (JPEG copy), reduced',
    }
    title = f'Past the paper on {where[name]}: the order of the blocks, and BatchNorm recalibrated'
    base = tables.digits_base() if name == 'digits' else tables.one_gpu(cifar10.get_config())
    base.recalibrate_batches = 8
    if name == 'cifar10_small':
        base.update(table1.CIFAR10_SMALL)
        cells = def_cells((64, 256), orders=('shuffled',))
        return tables.table(title, base, cells, rows='ratio', seeds=(0,))
    if name == 'digits':
        base.eval_every_epochs = 40
    cells = sgd_cells() + def_cells()
    return tables.table(title, base, cells, rows='ratio', learning_rates=tables.RATES, seeds=SEEDS)
