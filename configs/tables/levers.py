"""Beyond the paper: each lever alone at ratio 1024 on digits, both sides tuned on held-out training images.

Command:  python -m def_jax.experiments.sweep --config=configs/tables/levers.py --workdir=runs/levers
          python -m def_jax.experiments.report --workdir=runs/levers --output=results/beyond/levers_digits
          (on 2 CPU cores; 30 runs to tune and 140 to 260 more, half a minute each on a quiet machine)
Variants: none.
Expected: 'ours' is equivalent to SGD within half a point; no lever is by itself.

The learning rate of every row is tuned, and λ with it where a row has a fixed one, on 200 training images
that these runs do not train on. Test images serve no choice. The seeds are not those of the tables that found
the levers.
"""

import ml_collections

from configs.tables import tables

RATES = (0.1, 0.05)
WITHOUT_MOMENTUM = (1.0, 0.5)  # η / (1 - μ)
DETACH = (0.2, 0.3, 0.5)
SEEDS = tuple(range(10, 30))
LEVERS = {
    "the paper's DEF": {},
    'shuffled': {'order': 'shuffled'},
    'balanced': {'allocation': 'balanced'},
    'λ from the messages': {'auto_detach': True},
    'no momentum': {'momentum': 0.0},
}


def lever(row: str, **settings) -> list[dict]:
    """A row at ratio 1024, at y and at x, with λ tuned unless it comes from the messages."""
    tuned = {'learning_rate': WITHOUT_MOMENTUM if settings.get('momentum') == 0.0 else RATES}
    if not settings.get('auto_detach'):
        tuned['detach'] = DETACH
    return [
        tables.cell(row, column, tuned=tuned, point=point, method='def', ratio=1024, **settings)
        for column, point in (('y', 'y'), ('x', 'x'))
    ]


def get_config() -> ml_collections.ConfigDict:
    """The table."""
    base = tables.digits_base()
    base.recalibrate_batches = 8
    base.eval_every_epochs = base.num_epochs
    cells = [tables.cell('SGD', 'x', method='sgd', ratio=1)]
    for row, settings in LEVERS.items():
        cells += lever(row, **settings)
    everything = {key: value for settings in LEVERS.values() for key, value in settings.items()}
    cells += lever('ours: all four', **everything)
    return tables.table(
        "Past the paper on scikit-learn's digits: each lever alone at ratio 1024",
        base,
        cells,
        rows='setting',
        learning_rates=RATES,
        seeds=SEEDS,
        tuning=tables.HELD_OUT_DIGITS,
    )
