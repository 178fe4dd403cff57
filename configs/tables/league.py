"""The league: every method at the bytes of the others, 16 and 64 times below dense.

Command:  python -m def_jax.experiments.sweep --config=configs/tables/league.py:digits --workdir=runs/league
          (scikit-learn's digits, 2 CPU cores; without ':digits', CIFAR-10 with VGG-16, on GPUs)
          python -m def_jax.experiments.report --workdir=runs/league --output=results/league/digits
Variants: :digits.
Expected: see results/league/README.md.

Learning rates are chosen on validation data, each method's from candidates of its own: the rate of a method
whose update is a sign or is divided by a root mean square has another scale. `ratio` counts the bytes that a
worker passes to the collectives; what a gather costs on the wire is another column of the page.
"""

import ml_collections

from configs import cifar10
from configs.tables import momentum, tables


def rates(*candidates: float) -> dict[str, tuple[float, ...]]:
    return {'learning_rate': candidates}


AFTER = rates(0.03, 0.1, 0.3)  # momentum SGD on what was exchanged
LOCAL = rates(0.03, 0.1, 0.3)  # momentum SGD within each worker
PLAIN = rates(0.1, 0.3, 1.0)  # no momentum, or one inside the method
SIGNS = rates(0.001, 0.003, 0.01)  # the update is of size 1


def digits() -> ml_collections.ConfigDict:
    """Small enough for all methods: 8 workers, 450 steps."""
    base = tables.digits_base()
    base.num_workers = base.workers_per_device = 8
    base.batch_size = 64
    base.num_epochs = 30
    base.eval_every_epochs = 10
    base.recalibrate_batches = 8
    base.keep_checkpoints = 1
    return base


def cells(ratio: int) -> list[dict]:
    """The methods whose message follows the ratio."""
    return [
        tables.cell(ratio, 'DEF, ours', tuned=PLAIN, ratio=ratio, **momentum.OURS, allocation='balanced'),
        tables.cell(ratio, 'top-k', tuned=AFTER, method='top_k', ratio=ratio),
        tables.cell(ratio, 'DeMo', tuned=SIGNS, method='demo', ratio=ratio, momentum=0.0),
        tables.cell(ratio, 'CSER', tuned=LOCAL, method='cser', ratio=ratio, every=8),
        tables.cell(ratio, 'EF21-SGDM', tuned=PLAIN, method='ef21_sgdm', ratio=ratio, momentum=0.0),
        tables.cell(ratio, 'DEF (paper)', tuned=LOCAL, method='def', ratio=ratio),
        tables.cell(ratio, 'Local SGD', tuned=LOCAL, method='local_sgd', ratio=ratio, every=ratio),
        tables.cell(ratio, 'DiLoCo', tuned=LOCAL, method='diloco', ratio=ratio, every=ratio),
        tables.cell(ratio, 'SPARTA', tuned=LOCAL, method='sparta', ratio=ratio),
        tables.cell(
            ratio, 'random replicator', tuned=PLAIN, method='random_replicator', ratio=ratio, momentum=0.0
        ),
    ]


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The table; `arg` is empty or a variant, see above."""
    name = tables.variant(arg, 'digits')
    base = digits() if name else cifar10.get_config()
    fixed = [
        tables.cell(1, 'SGD', tuned=AFTER, method='sgd', ratio=1),
        tables.cell(16, 'PowerSGD', tuned=AFTER, method='powersgd', ratio=16),
        tables.cell(32, 'EF-signSGD', tuned=AFTER, method='sign_ef', ratio=1),
        tables.cell(
            32, '1-bit Adam', tuned=SIGNS, method='onebit_adam', ratio=1, momentum=0.0, freeze_after=68
        ),
    ]
    where = "scikit-learn's digits" if name else 'CIFAR-10'
    return tables.table(
        f'The league on {where}: accuracy at the bytes of the others',
        base,
        fixed[:2] + cells(16) + fixed[2:] + cells(64),
        rows='ratio',
        tuning={'validation_examples': 200, 'evaluate_on': 'validation'},
    )
