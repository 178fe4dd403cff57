"""Past the paper: blocks sent once a round, and BatchNorm statistics measured anew, against the paper's DEF.

Command:  python -m def_jax.training.sweep --config=configs/tables/beyond.py:digits --workdir=runs/beyond
          (scikit-learn's digits, 2 CPU cores; without ':digits' the same on CIFAR-10 with VGG-16, on GPUs)
          python -m def_jax.training.report --workdir=runs/beyond --output=results/beyond
Expected: 'shuffled' within half a point of SGD at four times the ratio at which the paper's DEF is.

One run fills two columns: its statistics are measured anew, and the running ones are evaluated beside them.
"""

import ml_collections

from configs import cifar10
from configs.tables import tables

RATIOS = (256, 1024, 4096)
POINTS = {'def': ('DEF', 'y'), 'def_a': ('DEF-A', 'x')}


def cells(ratios=RATIOS) -> list[dict]:
    """A row for each ratio: the paper's DEF and DEF-A, each lever by itself, and both together."""
    result = [tables.cell(1, 'SGD', method='sgd', ratio=1)]
    result += [tables.cell(1, 'SGD, running', point='x_running', method='sgd', ratio=1)]
    for ratio in ratios:
        for order in ('random', 'shuffled'):
            for method, (title, point) in POINTS.items():
                settings = {'method': method, 'ratio': ratio, 'order': order}
                paper = order == 'random'
                name = f'{title} (paper)' if paper else f'{title}, shuffled, running'
                result.append(tables.cell(ratio, name, point=f'{point}_running', **settings))
                name = f'{title}, measured anew' if paper else f'{title}, shuffled, measured anew'
                result.append(tables.cell(ratio, name, **settings))
    return result


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The table; `arg` is empty or a variant, see above."""
    small = tables.variant(arg, 'digits')
    base = tables.digits_base() if small else cifar10.get_config()
    base.recalibrate_batches = 8
    where = "scikit-learn's digits" if small else 'CIFAR-10'
    if small:
        base.eval_every_epochs = 40
    title = f'Past the paper on {where}: the order of the blocks, and BatchNorm measured anew'
    return tables.table(title, base, cells(), rows='ratio', learning_rates=tables.RATES)
