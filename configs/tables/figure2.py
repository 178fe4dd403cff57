r"""Figure 2: accuracy and training loss of ResNet-50 on ImageNet during training, ratios 64 and 256.

Command:  python -m paper.sweep --config=configs/tables/table2.py --workdir=runs/table2
          python -m paper.report --config=configs/tables/figure2.py --workdir=runs/table2 \
            --output=runs/figure2
          The figure uses runs of that table; a sweep of this file trains only the runs of the figure.
Variants: :digits, scikit-learn's digits, for 2 CPU cores.
Expected: DEF is ahead of the other compressed methods in accuracy and training loss.
"""

import ml_collections

from configs.tables import table2, tables


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The figure; `arg` is empty or a variant, see above."""
    return tables.selected(
        table2.get_config(tables.variant(arg, 'digits')),
        'Figure 2: accuracy and training loss along the run, ratios 64 and 256',
        lambda cell: cell['row'] in ('1', '64', '256'),
    )
