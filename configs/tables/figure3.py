"""Figure 3: DEF-A against DEF and SGD during training, VGG-16 on CIFAR-10, ratio 64.

Command:  python -m paper.sweep --config=configs/tables/figure3.py --workdir=runs/figure3
          python -m paper.report --workdir=runs/figure3
          (6 runs of 200 epochs at the authors' learning rate, about half a GPU hour each)
Variants: :digits, scikit-learn's digits at ratios 64 and 256, for 2 CPU cores.
Expected: DEF-A is about 15 points ahead of DEF before the first learning-rate drop, and ahead of SGD; the
          difference at the end is small.
"""

import ml_collections

from configs.tables import table1, tables


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The figure; `arg` is empty or a variant, see above."""
    small = tables.variant(arg, 'digits')
    rows = ('1', '64', '256') if small else ('1', '64')
    figure = tables.selected(
        table1.get_config(small),
        'Figure 3: DEF-A against DEF along the run',
        lambda cell: cell['row'] in rows and cell['column'] in ('SGD', 'DEF', 'DEF-A'),
    ).unlock()
    # Both points come from one run, so they share a learning rate: that of the base configuration.
    figure.learning_rates, figure.tuning = (), {}
    return figure.lock()
