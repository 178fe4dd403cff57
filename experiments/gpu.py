"""For a machine with a GPU: VGG-16 on CIFAR-10 for 200 epochs, 16 workers, DEF-Q and rivals against SGD.

`make reproduce-gpu` runs it from nothing to the page. The plan, before any run: a method is as good as
SGD if its 95 % interval lies above -0.3 points; five seeds; the rate of each is chosen from four in 50
epochs, on 5,000 images that those runs do not train on. The setting called "toy" takes minutes on a CPU and
shows that everything works.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.methods import REVISION
from experiments.paper_tables import contender, def_q, protocol
from experiments.tuning import Setting

__all__ = ['EXECUTOR', 'PAGE', 'SETTINGS']

EXECUTOR = 'trainer'


def _setting(
    name: str,
    where: Mapping[str, Any],
    tuning_where: Mapping[str, Any],
    seeds: range,
    rates: Sequence[float] = (0.2, 0.1, 0.05, 0.02),
) -> Setting:
    methods = [
        contender('SGD', 'sgd', rates, ratio=1),
        *(contender(f'DEF, 1/{ratio}', 'def', rates, ratio=ratio) for ratio in (64, 256)),
        *(def_q(compression, rates)._replace(revision=REVISION) for compression in (64, 256)),
        contender('top-k, 1/64', 'top_k', rates, ratio=64),
        contender('PowerSGD, rank 4', 'powersgd', rates, rank=4),
    ]
    options = {'tuning_where': tuning_where, 'seeds': seeds, 'margin': 0.3}
    return protocol(name, where, methods, **options)


_TOY = {
    'name': 'digits',
    'model': 'experiments.networks:Perceptron',
    'model_options': {'widths': (32, 32)},
    'recalibrate_batches': 0,
}
SETTINGS = [
    _setting(
        'CIFAR-10, VGG-16',
        {'name': 'cifar10', 'recalibrate_batches': 8, 'eval_every_epochs': 200},
        {'validation_examples': 5000, 'num_epochs': 50, 'eval_every_epochs': 50},
        range(5),
    ),
    _setting(
        'toy: digits',
        _TOY | {'num_epochs': 2, 'eval_every_epochs': 2},
        {'validation_examples': 200, 'num_epochs': 1, 'eval_every_epochs': 1},
        range(2),
        rates=(0.1, 0.05),
    ),
]

PAGE = """\
# VGG-16 on CIFAR-10, on a GPU

**Question.** With the paper's network, 16 workers and 200 epochs, is DEF-Q within 0.3 points of SGD or
better, and how do the paper's DEF, top-k and PowerSGD compare?

![Differences from SGD, with 95 % intervals](differences.png)

{table}

**Setting.** Rates were chosen from four, by the accuracy on held-out training images after 50 epochs of one
run each; five other seeds trained for 200 epochs on all images. The setting called "toy" is for trying this
program and means nothing.

**Limits.** One seed chose each rate, in shorter runs than those reported.

{origins}

    make reproduce-gpu
"""
