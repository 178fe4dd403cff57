"""Table 2: test accuracy of ResNet-50 on ImageNet by method and ratio, 16 workers.

Command:  python -m paper.sweep --config=configs/tables/table2.py --workdir=runs/table2
          (100 epochs; 57 runs to tune on held-out training images, then 19 to 31, about 85 GPU hours each;
          docs/paper_tables.md says what this estimate rests on, and how to prepare the data)
Variants: :digits, the same ratios on scikit-learn's digits, for 2 CPU cores.
Expected: the numbers below.
"""

import ml_collections

from configs import imagenet
from configs.tables import tables

SGD = '76.04'
PAPER = {
    16: ('75.29', '75.83', '75.63', '75.98', '76.10'),
    64: ('73.05', '74.65', '74.84', '76.16', '76.37'),
    128: ('63.80', '74.26', '74.12', '76.17', '76.14'),
    256: ('diverge', '73.83', '73.02', '75.71', '76.00'),
    512: ('diverge', '73.00', '72.60', '75.52', '75.77'),
    1024: ('diverge', '71.89', '71.82', '75.64', '75.57'),
}


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The table; `arg` is empty or a variant, see above."""
    cells = tables.by_ratio(SGD, PAPER)
    if tables.variant(arg, 'digits'):
        title = "Table 2's ratios on scikit-learn's digits: test accuracy by method and ratio"
        tuned = {'learning_rates': tables.RATES, 'tuning': tables.HELD_OUT_DIGITS}
        return tables.table(title, tables.digits_base(), cells, rows='ratio', **tuned)
    title = 'Table 2: test accuracy of ResNet-50 on ImageNet by method and ratio'
    base = tables.on_one_device(imagenet.get_config())
    tuned = {'learning_rates': tables.RATES, 'tuning': tables.HELD_OUT_IMAGENET}
    return tables.table(title, base, cells, rows='ratio', seeds=(0,), **tuned)
