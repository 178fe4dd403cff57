"""The league: every method at the bytes of the others, 16 and 64 times below dense.

Command:  python -m paper.sweep --config=configs/tables/league.py:digits --workdir=runs/league
          (scikit-learn's digits, 2 CPU cores; without ':digits', CIFAR-10 with VGG-16, on GPUs: 119 runs to
          tune, then 96 or more, half a GPU hour each or longer)
          python -m paper.report --workdir=runs/league --output=results/league/digits
Variants: :digits, without the methods that were far behind on a perceptron, and with four methods at 64;
          :cifar10_small, the same on 4,000 CIFAR-10 images with that VGG, 10 epochs, 4 to tune.
Expected: see results/league/README.md.

Learning rates are chosen on validation data, each method's from candidates of its own: those around the best
on that perceptron, which benchmarks/league found on wider grids. The rate of a method whose update is a sign
or is divided by a root mean square has another scale. PowerSGD, EF-signSGD and, at 64, top-k are without
momentum, which was clearly better there. `ratio` counts the bytes that a worker passes to the collectives;
what a gather costs on the wire is another column of the page. SAEF without averages and PSync share runs.
"""

import ml_collections

from configs import cifar10
from configs.tables import momentum, tables


def rates(*candidates: float) -> dict[str, tuple[float, ...]]:
    return {'learning_rate': candidates}


MOMENTUM = rates(0.01, 0.03, 0.1, 0.3)  # momentum SGD on what was exchanged
LOCAL = rates(0.01, 0.03, 0.1, 0.3)  # momentum SGD within each worker
PLAIN = rates(0.1, 0.3, 1.0, 3.0)  # no momentum
SIGN_EF = rates(0.3, 1.0, 3.0, 10.0)  # the same, of signs times their mean size
AVERAGED = rates(0.1, 0.3, 1.0)  # a decaying average of gradients
SIGNS = rates(0.003, 0.01, 0.03, 0.1)  # every element of the update has the same size
ADAM = rates(0.001, 0.003, 0.01)

FAR_BEHIND = ('EF', 'EF21-SGDM')
AT_64 = ('DEF, ours', 'DEF, ours, int8', 'DEF (paper)', 'top-k (no momentum)', 'DeMo')


def full() -> ml_collections.ConfigDict:
    """CIFAR-10 at the paper's budget."""
    return tables.on_one_device(cifar10.get_config())


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


def cifar10_small() -> ml_collections.ConfigDict:
    """Real images at the cost of digits: 8 workers, 620 steps, 18 k parameters."""
    base = cifar10.get_config()
    base.num_workers, base.fake_devices = 8, True  # virtual workers' convolutions are slow on CPUs
    base.batch_size = 64
    base.model = 'vgg_digits'
    base.train_examples, base.test_examples = 4000, 2000
    base.num_epochs = base.eval_every_epochs = 10
    base.recalibrate_batches = 8
    base.keep_checkpoints = 1
    return base


def fixed(freeze_after: int) -> list[dict]:
    """The methods whose message does not follow the ratio, or cannot reach 64."""
    plain, adam, sign_ef = ({'tuned': tuned, 'momentum': 0.0} for tuned in (PLAIN, ADAM, SIGN_EF))
    return [
        tables.cell(1, 'SGD', tuned=MOMENTUM, method='sgd', ratio=1),
        tables.cell(1, 'SGD (no momentum)', method='sgd', ratio=1, **plain),
        tables.cell(16, 'PowerSGD (no momentum)', method='powersgd', ratio=16, **plain),
        tables.cell(32, 'EF-signSGD (no momentum)', method='sign_ef', ratio=1, **sign_ef),
        tables.cell(32, '1-bit Adam', method='onebit_adam', ratio=1, freeze_after=freeze_after, **adam),
    ]


def at_ratio(ratio: int) -> list[dict]:
    """The methods whose message follows the ratio; Streaming DiLoCo has four fragments."""
    top_k = {'tuned': PLAIN, 'momentum': 0.0} if ratio > 16 else {'tuned': MOMENTUM}
    plain = {'tuned': AVERAGED, 'momentum': 0.0}
    ours = {'tuned': PLAIN} | momentum.OURS | {'allocation': 'balanced'}
    # The same bytes. At 16, where they are enough, int8 was no better on a perceptron.
    narrow = [tables.cell(64, 'DEF, ours, int8', ratio=16, wire_dtype='int8', **ours)] if ratio == 64 else []

    def local(column: str, method: str, **settings) -> dict:
        return tables.cell(ratio, column, method=method, **{'tuned': LOCAL, 'ratio': ratio} | settings)

    return [
        tables.cell(ratio, 'DEF, ours', ratio=ratio, **ours),
        *narrow,
        local('DEF (paper)', 'def'),
        local('SAEF', 'saef'),
        local('PSync', 'psync'),
        local('EF', 'ef', tuned=rates(0.003, 0.01)),
        local('top-k' if ratio <= 16 else 'top-k (no momentum)', 'top_k', **top_k),
        local('DeMo', 'demo', tuned=SIGNS, momentum=0.0),
        local('CSER', 'cser', every=8),
        local('Local SGD', 'local_sgd', every=ratio),
        local('DiLoCo', 'diloco', every=ratio),
        local('Streaming DiLoCo', 'streaming_diloco', ratio=4, every=ratio // 4),
        local('SPARTA', 'sparta'),
        local('random replicator', 'random_replicator', **plain),
        local('EF21-SGDM', 'ef21_sgdm', **plain),
    ]


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The table; `arg` is empty or a variant, see above."""
    name = tables.variant(arg, *SMALL)
    # 1-bit Adam freezes its second moment after about 15 % of the steps.
    make_base, freeze_after, where, tuning = SMALL.get(name, FULL)
    cells = fixed(freeze_after) + at_ratio(16) + at_ratio(64)
    if name:
        cells = [cell for cell in cells if cell['column'] in AT_64 or cell['row'] != '64']
        cells = [cell for cell in cells if cell['column'] not in FAR_BEHIND]
    return tables.table(
        f'The league on {where}: accuracy at the bytes of the others',
        make_base(),
        cells,
        rows='ratio',
        tuning={'evaluate_on': 'validation'} | tuning,
    )


FULL = full, 11_700, 'CIFAR-10', {'validation_examples': 5000}
SHORT = {'validation_examples': 500, 'num_epochs': 4, 'eval_every_epochs': 4}
SMALL = {
    'digits': (digits, 68, "scikit-learn's digits", {'validation_examples': 200}),
    'cifar10_small': (cifar10_small, 93, 'CIFAR-10, reduced', SHORT),
}
