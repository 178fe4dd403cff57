"""All of CIFAR-10 on two CPU cores: the paper's methods at 64 and 256, and the project's own at 256 and 1024.

Command:  python -m paper.sweep --config=configs/tables/cifar10.py --workdir=runs/cifar10
          python -m paper.report --workdir=runs/cifar10 --output=results/cifar10
          (50,000 images, 30 epochs, 11,700 steps: some 10 minutes a run on a core, so --processes=2. 43 short
          runs to tune, then 27 to 42: 3 hours or more; it resumes after a kill. On one GPU, add
          --config.base.fake_devices=False --config.base.workers_per_device=16)
Variants: :long, one seed of the paper's 200 epochs for SGD and DEF at 64, 256 and 1024, at the authors' rate;
          4 runs, an hour each.
Expected: DEF is 8 to 10 points ahead of EF, SAEF and PSync, and 3 (at 64) and 6 (at 256) behind SGD; ours at
          256 ends near DEF at 64.

The network, `vgg_strided`, costs a sixth of `vgg_small`. Learning rates are tuned alike for every row, in 6
epochs, on 5,000 training images that these runs do not train on: four candidates, and larger ones where the
largest was chosen. Test images serve no choice. BatchNorm statistics are recalibrated; beside each column
stands the one with the running statistics.
"""

import ml_collections

from configs.tables import momentum, tables

RATES = (0.1, 0.05, 0.02, 0.01)
LARGER = {'SGD': (0.5, 0.2), 'DEF': (0.2,), 'DEF-A': (0.2,)}  # which chose the largest
WITHOUT_MOMENTUM = (2.0, 1.0, 0.5, 0.2, 0.1)  # η / (1 - μ)
TUNING = tables.HELD_OUT_CIFAR | {'num_epochs': 6, 'eval_every_epochs': 6}


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The table; `arg` is empty or a variant, see above."""
    long = tables.variant(arg, 'long')
    base = tables.cifar10_base(tables.FAST_CIFAR, eval_every_epochs=10)
    cells = [tables.cell(1, 'SGD', method='sgd', ratio=1)]
    if long:
        for ratio in (64, 256, 1024):
            cells += [tables.cell(ratio, title, method=name, ratio=ratio) for name, title in _DEF.items()]
        title = "CIFAR-10, five convolutions of 71 k parameters, the paper's 200 epochs"
        return tables.table(title, base, tables.with_running(cells), rows='ratio', seeds=(0,))
    base.num_epochs = 30
    for ratio in (64, 256):
        cells += [
            tables.cell(ratio, title, method=name, ratio=ratio) for name, title in tables.COMPRESSED.items()
        ]
    for cell in cells:
        cell['tuned'] = {'learning_rate': (*LARGER.get(cell['column'], ()), *RATES)}
    for ratio, larger in ((256, (4.0,)), (1024, ())):
        cells += momentum.balanced(ratio, tuned={'learning_rate': (*larger, *WITHOUT_MOMENTUM)})
    title = 'CIFAR-10, five convolutions of 71 k parameters, 30 epochs'
    return tables.table(title, base, tables.with_running(cells), rows='ratio', tuning=TUNING)


_DEF = {name: tables.COMPRESSED[name] for name in ('def', 'def_a')}
