"""Figure 3: DEF-A against DEF and SGD along the run, VGG-16 on CIFAR-10, ratio 64.

Command:  python -m def_jax.experiments.sweep --config=configs/tables/figure3.py --workdir=runs/figure3
          python -m def_jax.experiments.report --workdir=runs/figure3
Variants: :digits, on scikit-learn's digits at ratios 64 and 256, for 2 CPU cores.
Expected: DEF-A about 15 points ahead of DEF before the first learning-rate drop, and ahead of SGD; little
          difference at the end.
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
    # Both points of one run, so one learning rate: the configuration's own.
    figure.learning_rates = ()
    return figure.lock()
