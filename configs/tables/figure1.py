r"""Figure 1: accuracy and training loss of VGG-16 on CIFAR-10 during training, ratios 64 and 256.

Command:  python -m paper.sweep --config=configs/tables/table1.py --workdir=runs/table1
          python -m paper.report --config=configs/tables/figure1.py --workdir=runs/table1 \
            --output=runs/figure1
          The figure uses runs of that table; a sweep of this file trains only the runs of the figure.
Variants: :digits, scikit-learn's digits, for 2 CPU cores.
Expected: DEF is ahead of the other compressed methods in accuracy and training loss; EF diverges at 256.
"""

import ml_collections

from configs.tables import table1, tables


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The figure; `arg` is empty or a variant, see above."""
    return tables.selected(
        table1.get_config(tables.variant(arg, 'digits')),
        'Figure 1: accuracy and training loss along the run, ratios 64 and 256',
        lambda cell: cell['row'] in ('1', '64', '256') and cell['column'] != 'EF21',
    )
