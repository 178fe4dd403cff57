"""Beyond the paper: each lever alone, both sides tuned on held-out training images.

Command:  python -m paper.sweep --config=configs/tables/levers.py --workdir=runs/levers
          python -m paper.report --workdir=runs/levers --output=results/beyond/levers_digits
          (ratio 1024 on digits, on 2 CPU cores; 333 runs to tune and 140 to 180 more, half a minute each on a
          quiet machine)
Variants: :cifar10_small, ratio 16 and the paper's setting at ratio 2, five convolutions of 71 k parameters on
          10,000 CIFAR-10 images, 2,340 steps, all test images, and a row with messages in flight
          (`overlap`); 128 short runs to tune and 100 more, 2 minutes each.
Expected: on digits, 'ours' is ahead of the paper's DEF and of each lever alone, and 0.7 points behind SGD; on
          CIFAR-10, 6 points ahead of the paper's DEF at 16, one ahead of it at 2, and one behind SGD.

The learning rate of every row is tuned, and λ with it where a row has a fixed one, on training images that
these runs do not train on. Test images serve no choice. The seeds are not those of the tables that found the
levers.
"""

from collections.abc import Sequence

import ml_collections

from configs.tables import tables

LEVERS = {
    'shuffled': {'order': 'shuffled'},
    'balanced': {'allocation': 'balanced'},
    'λ from the messages': {'detach': 'auto'},
    'no momentum': {'momentum': 0.0},
}
ALL_FOUR = {key: value for settings in LEVERS.values() for key, value in settings.items()}
# Learning rates by momentum μ: without it, η / (1 - μ).
DIGITS = {
    'ratio': 1024,
    'points': ('y', 'x'),
    'rates': {0.9: (0.2, 0.1, 0.05, 0.02, 0.01), 0.0: (2.0, 1.0, 0.5, 0.2, 0.1)},
    'detach': (0.2, 0.3, 0.5, 0.7),
    'beyond': {"the paper's DEF": {'learning_rate': (0.005,), 'detach': (0.85, 1.0)}},  # chose an edge
}
REDUCED = {
    'ratio': 16,
    'points': ('y',),
    'rates': {0.9: (0.2, 0.1, 0.05, 0.02), 0.0: (2.0, 1.0, 0.5, 0.2)},
    'detach': (0.1, 0.3, 0.5, 0.7),
    'beyond': {  # added to a row that chose an edge
        'SGD': {'learning_rate': (0.5,)},
        'SGD, no momentum': {'learning_rate': (4.0,)},
        "the paper's DEF, ratio 2": {'detach': (1.0,)},
        'balanced': {'learning_rate': (0.5,)},
        'no momentum': {'learning_rate': (4.0,), 'detach': (0.02, 0.05)},
        'ours: all four': {'learning_rate': (8.0, 4.0)},
        'ours, in flight': {'learning_rate': (8.0, 4.0)},
    },
}
TUNING = tables.HELD_OUT_CIFAR | {'num_epochs': 10, 'eval_every_epochs': 10}


def grid(title: str, plan: dict, momentum: float = 0.9, detach: bool = False) -> dict:
    """The candidates of a row."""
    values = {'learning_rate': plan['rates'][momentum]} | ({'detach': plan['detach']} if detach else {})
    beyond = plan['beyond'].get(title, {})
    return {key: (*beyond.get(key, ()), *each) for key, each in values.items()}


def row(title: str, plan: dict, points: Sequence[str], **settings) -> list[dict]:
    """A row at some points, with λ tuned unless it comes from the messages."""
    tuned = grid(title, plan, settings.get('momentum', 0.9), 'detach' not in settings)
    settings = {'method': 'def', 'ratio': plan['ratio']} | settings
    return [tables.cell(title, point, tuned=tuned, point=point, **settings) for point in points]


def rows(plan: dict) -> list[dict]:
    """The paper's setting, each lever alone at y, and all four."""
    return [
        *row("the paper's DEF", plan, plan['points']),
        *(cell for title, settings in LEVERS.items() for cell in row(title, plan, ('y',), **settings)),
        *row('ours: all four', plan, plan['points'], **ALL_FOUR),
    ]


def reduced() -> ml_collections.ConfigDict:
    """The table on CIFAR-10, reduced."""
    own = {'model': 'vgg_strided', 'test_examples': 10_000, 'recalibrate_batches': 8}
    base = tables.cifar10_base(tables.REDUCED_CIFAR | own)
    base.eval_every_epochs = base.num_epochs
    cells = [  # SGD has no residual: its x is its y
        tables.cell('SGD', 'y', tuned=grid('SGD', REDUCED), point='x', method='sgd', ratio=1),
        tables.cell(
            'SGD, no momentum',
            'y',
            tuned=grid('SGD, no momentum', REDUCED, momentum=0.0),
            point='x',
            method='sgd',
            ratio=1,
            momentum=0.0,
        ),
        *row("the paper's DEF, ratio 2", REDUCED, REDUCED['points'], ratio=2),
        *rows(REDUCED),
        *row('ours, in flight', REDUCED, ('y',), **ALL_FOUR, overlap=True),
    ]
    return tables.table(
        'Past the paper on CIFAR-10 (JPEG copy), reduced: each lever alone at ratio 16',
        base,
        cells,
        rows='setting',
        seeds=tuple(range(10, 20)),
        tuning=TUNING,
    )


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The table; `arg` is empty or a variant, see above."""
    if tables.variant(arg, 'cifar10_small'):
        return reduced()
    base = tables.digits_base()
    base.recalibrate_batches = 8
    base.eval_every_epochs = base.num_epochs
    return tables.table(
        "Past the paper on scikit-learn's digits: each lever alone at ratio 1024",
        base,
        [tables.cell('SGD', 'x', method='sgd', ratio=1), *rows(DIGITS)],
        rows='setting',
        learning_rates=DIGITS['rates'][0.9],
        seeds=tuple(range(10, 30)),
        tuning_seeds=(100, 101, 102),
        tuning=tables.HELD_OUT_DIGITS,
    )
