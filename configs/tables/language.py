"""AdamW with and without DEF on the source of Python's standard library, at the bytes of 1/16 and 1/64.

Command:  python -m paper.sweep --config=configs/tables/language.py --workdir=runs/language
          python -m paper.report --workdir=runs/language --output=results/language/table
          (on 2 CPU cores; 10 short runs to tune, then 9, four minutes each: an hour)
Variants: none.
Expected: see docs/adamw.md, which compares the two at more steps.

Learning rates are tuned alike for every row, on validation text with a seed of its own. Test text serves no
choice here; the settings of the optimizer were chosen in benchmarks/adamw, six of whose validation files are
among the 56 test files.
"""

import ml_collections

from configs import language
from configs.tables import tables

DENSE = {
    'method': 'sgd',  # the communication: an all-reduce of the whole gradient
    'ratio': 1,
    'outer': '',
    'optimizer_options.b1': 0.9,
    'optimizer_options.b2': 0.95,
}


def get_config() -> ml_collections.ConfigDict:
    """The table."""
    base = language.get_config()
    dense = tables.cell(1, 'AdamW', tuned={'learning_rate': (0.008, 0.011, 0.016, 0.022)}, **DENSE)
    rates = {'learning_rate': (0.01, 0.014, 0.02)}
    return tables.table(
        "Language modelling: Python's standard library, 115,008 parameters, 3,000 steps",
        base,
        [dense, *(tables.cell(ratio, 'DEF', tuned=rates, method='def', ratio=ratio) for ratio in (16, 64))],
        rows='ratio',
        tuning={'evaluate_on': 'validation'},
    )
