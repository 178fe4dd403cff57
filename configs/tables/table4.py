"""Table 4: test accuracy of DEF and DEF-A by λ, VGG-16 on CIFAR-10, ratio 64, 16 workers.

Command:  python -m paper.sweep --config=configs/tables/table4.py --workdir=runs/table4
          (200 epochs; 18 runs at the authors' learning rate, about half a GPU hour each; docs/paper_tables.md
          says what this estimate rests on)
Variants: :digits, scikit-learn's digits with λ from 0 to 1, for 2 CPU cores.
          :digits_tuned, :digits with the learning rate of every λ chosen on held-out training images.
          :tuned, the table itself with rates chosen in that way; 18 runs to tune, then 18 to 36.
Expected: the numbers below.
"""

import ml_collections

from configs import cifar10
from configs.tables import tables

PAPER = {
    0.1: ('92.83 ± 0.19', '92.78 ± 0.13'),
    0.2: ('93.45 ± 0.06', '93.20 ± 0.14'),
    0.3: ('93.75 ± 0.12', '93.61 ± 0.07'),
    0.4: ('93.41 ± 0.12', '93.41 ± 0.20'),
    0.6: ('93.26 ± 0.10', '93.11 ± 0.20'),
    0.8: ('92.60 ± 0.19', '92.59 ± 0.15'),
}


def cells(values, ratio: int = 64, suffix: str = '') -> list[dict]:
    """One row per λ, with DEF and DEF-A side by side."""
    result = []
    for detach in values:
        papers = PAPER.get(detach, ('', '')) if not suffix else ('', '')
        for (method, title), paper in zip((('def', 'DEF'), ('def_a', 'DEF-A')), papers, strict=True):
            settings = {'method': method, 'ratio': ratio, 'detach': detach}
            result.append(tables.cell(detach, title + suffix, paper, **settings))
    return result


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The table; `arg` is empty or a variant, see above."""
    name = tables.variant(arg, 'digits', 'digits_tuned', 'tuned')
    if name.startswith('digits'):
        values = (0.0, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0)
        both = cells(values) + cells(values, 256, ', ratio 256')
        title = "Table 4 on scikit-learn's digits: test accuracy by λ, ratio 64 (and 256)"
        tuned = {'learning_rates': tables.RATES, 'tuning': tables.HELD_OUT_DIGITS}
        options = tuned if name == 'digits_tuned' else {}
        return tables.table(title, tables.digits_base(), both, rows='λ', **options)
    title = 'Table 4: test accuracy of VGG-16 on CIFAR-10 by λ, ratio 64'
    base = tables.on_one_device(cifar10.get_config())
    tuned = {'learning_rates': tables.RATES, 'tuning': tables.HELD_OUT_CIFAR}
    return tables.table(title, base, cells(tuple(PAPER)), rows='λ', **(tuned if name else {}))
