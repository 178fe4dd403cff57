"""Past the paper: DEF without momentum, and a larger share of the message for small tensors.

Command:  python -m def_jax.experiments.sweep --config=configs/tables/momentum.py:digits
              --workdir=runs/momentum
          (scikit-learn's digits, 2 CPU cores; without ':digits' the same on CIFAR-10 with VGG-16, on GPUs)
          python -m def_jax.experiments.report --workdir=runs/momentum --output=results/beyond/momentum_digits
Variants: :digits; and :cifar10_small, the CIFAR-10 of table1.py:cifar10_small.
Expected: ours reaches at four times the ratio or more what the paper's DEF reaches; SGD is as good without
          momentum as with it.

Ours is blocks in a shuffled order, λ from the messages, no momentum, and the learning rate η / (1 - μ) in
place of η; balanced also gives small tensors larger shares. BatchNorm's statistics are recalibrated in every
column.
"""

import ml_collections

from configs import cifar10
from configs.tables import beyond, table1, tables

OURS = {'method': 'def', 'order': 'shuffled', 'auto_detach': True, 'momentum': 0.0}
RATES = (1.0, 0.5, 0.1)  # η / (1 - μ) of the paper's rates, about


def both_points(ratio: int, whose: str, **settings) -> list[dict]:
    """A row's cells of one setting, at y and at x."""
    return [
        tables.cell(ratio, f'{title}{whose}', point=point, ratio=ratio, **settings)
        for title, point in beyond.POINTS.values()
    ]


def ours(ratio: int, **settings) -> list[dict]:
    """A row's cells of our setting."""
    return both_points(ratio, ', ours', **OURS, **settings)


def balanced(ratio: int, **settings) -> list[dict]:
    """A row's cells of our setting with balanced blocks."""
    return both_points(ratio, ', ours, balanced', **OURS, allocation='balanced', **settings)


def sgd(**settings) -> list[dict]:
    """SGD with and without momentum."""
    return [
        tables.cell(1, 'SGD', method='sgd', ratio=1),
        tables.cell(1, 'SGD, no momentum', method='sgd', ratio=1, momentum=0.0, **settings),
    ]


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The table; `arg` is empty or a variant, see above."""
    name = tables.variant(arg, 'digits', 'cifar10_small')
    base = tables.digits_base() if name == 'digits' else cifar10.get_config()
    base.recalibrate_batches = 8
    if name == 'digits':
        base.eval_every_epochs = 40
        cells = [cell for ratio in (256, 1024, 4096) for cell in ours(ratio) + balanced(ratio)]
        title = "Past the paper on scikit-learn's digits: DEF without momentum, and balanced"
        return tables.table(title, base, cells, rows='ratio', learning_rates=RATES, seeds=beyond.SEEDS)
    if name == 'cifar10_small':
        base.update(table1.CIFAR10_SMALL)
        base.eval_every_epochs = 10
    cells = sgd(learning_rate=0.5)
    for ratio in (2, 4, 16, 64):
        cells += both_points(ratio, ' (paper)', method='def') if ratio < 64 else []
        cells += ours(ratio, learning_rate=0.5) if ratio > 2 else []
        cells += balanced(ratio, learning_rate=0.5) if ratio > 4 else []
    where = 'CIFAR-10 (JPEG copy), reduced' if name else 'CIFAR-10'
    title = f'Past the paper on {where}: DEF without momentum, and balanced'
    return tables.table(title, base, cells, rows='ratio', seeds=beyond.SEEDS)
