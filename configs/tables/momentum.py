r"""Beyond the paper: DEF without momentum, and a larger share of the message for small tensors.

Command:  python -m paper.sweep --config=configs/tables/momentum.py:digits \
            --workdir=runs/momentum
          (scikit-learn's digits, 2 CPU cores; without ':digits', CIFAR-10 with VGG-16, on GPUs: 50 runs,
          about half a GPU hour each)
          python -m paper.report --workdir=runs/momentum --output=results/beyond/momentum_digits
Variants: :digits; :cifar10_small, a VGG with 73 k parameters on 10,000 CIFAR-10 images, for 2 CPU cores.
Expected: ours matches the accuracy of the paper's DEF at four times the ratio or more; SGD is as good without
          momentum as with it.

'Ours' uses shuffled blocks, λ estimated from the messages, no momentum, and the learning rate η / (1 - μ)
instead of η; 'balanced' also gives small tensors larger shares. BatchNorm statistics are recalibrated in
every column.
"""

import ml_collections

from configs import cifar10
from configs.tables import beyond, tables

OURS = {'method': 'def', 'order': 'shuffled', 'detach': 'auto', 'momentum': 0.0}
RATES = (1.0, 0.5, 0.1)  # approximately η / (1 - μ) for the paper's rates


def both_points(ratio: int, whose: str, **settings) -> list[dict]:
    """The cells of one setting in a row, at y and at x."""
    return [
        tables.cell(ratio, f'{title}{whose}', point=point, ratio=ratio, **settings)
        for title, point in beyond.POINTS.values()
    ]


def ours(ratio: int, **settings) -> list[dict]:
    """The cells of our setting in a row."""
    return both_points(ratio, ', ours', **OURS, **settings)


def balanced(ratio: int, **settings) -> list[dict]:
    """The cells of our setting with balanced blocks in a row."""
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
    base = tables.digits_base() if name == 'digits' else tables.on_one_device(cifar10.get_config())
    base.recalibrate_batches = 8
    if name == 'digits':
        base.eval_every_epochs = 40
        cells = [cell for ratio in (256, 1024, 4096) for cell in ours(ratio) + balanced(ratio)]
        title = "Past the paper on scikit-learn's digits: DEF without momentum, and balanced"
        return tables.table(title, base, cells, rows='ratio', learning_rates=RATES, seeds=beyond.SEEDS)
    if name == 'cifar10_small':
        base.update(tables.REDUCED_CIFAR)
        base.eval_every_epochs = 10
    cells = sgd(learning_rate=0.5)
    for ratio in (2, 4, 16, 64):
        cells += both_points(ratio, ' (paper)', method='def') if ratio < 64 else []
        cells += ours(ratio, learning_rate=0.5) if ratio > 2 else []
        cells += balanced(ratio, learning_rate=0.5) if ratio > 4 else []
    where = 'CIFAR-10 (JPEG copy), reduced' if name else 'CIFAR-10'
    title = f'Past the paper on {where}: DEF without momentum, and balanced'
    return tables.table(title, base, cells, rows='ratio', seeds=beyond.SEEDS)
