"""All of CIFAR-10 on two CPU cores: the paper's methods, balanced blocks and DEF-Q, 30 epochs and 200.

The network, five convolutions of 71 k parameters, costs a sixth of a small VGG: about ten minutes a run on a
core for 30 epochs, an hour for 200.
"""

from typing import Any

from experiments.paper_tables import by_ratio, contender, def_q, protocol

__all__ = ['EXECUTOR', 'PAGE', 'SETTINGS']

EXECUTOR = 'trainer'
_WHERE = {
    'name': 'cifar10',
    'model': 'vgg_strided',
    'recalibrate_batches': 8,
    'evaluate_train_examples': 10_000,
    'eval_every_epochs': 10,
    'sequential_workers': False,
}
_SHORT = _WHERE | {'num_epochs': 30}
_TUNING: dict[str, Any] = {'validation_examples': 5000, 'num_epochs': 6, 'eval_every_epochs': 6}
_RATES = (0.1, 0.05, 0.02, 0.01)
_BY_TITLE = {
    'SGD': (0.5, 0.2, *_RATES),  # larger ones where the largest was chosen
    **dict.fromkeys(('DEF', 'DEF-A'), (0.2, *_RATES)),
    **dict.fromkeys(('EF', 'SAEF', 'PSync'), _RATES),
}
_NONE = ('',) * 5
_BALANCED: dict[str, Any] = {
    'order': 'shuffled',
    'detach': 'auto',
    'momentum': 0.0,
    'allocation': 'balanced',
}


def _balanced(ratio: int, rates: tuple[float, ...]):
    methods = [contender('SGD', 'sgd', _BY_TITLE['SGD'], ratio=1)]
    methods += [
        contender(f'{title}, balanced', name, rates, ratio=ratio, **_BALANCED)
        for name, title in (('def', 'DEF'), ('def_a', 'DEF-A'))
    ]
    return protocol(f'30 epochs, balanced, ratio {ratio}', _SHORT, methods, tuning_where=_TUNING)


def _few_bits(*compressions: int):
    """The plan: within half a point of SGD? Three seeds, and five if these leave it open, as they did."""
    methods = [contender('SGD', 'sgd', _BY_TITLE['SGD'], ratio=1)]
    rates = (0.5, 0.2, 0.1, 0.05)
    larger = {1024: (1.0, *rates)}  # where the largest was chosen
    methods += [def_q(compression, larger.get(compression, rates)) for compression in compressions]
    return protocol('30 epochs, DEF-Q', _SHORT, methods, tuning_where=_TUNING, seeds=range(5))


def _long(ratio: int):
    methods = [contender('SGD', 'sgd', (0.05,), ratio=1)]
    methods += [
        contender(title, name, (0.05,), ratio=ratio) for name, title in (('def', 'DEF'), ('def_a', 'DEF-A'))
    ]
    methods.append(def_q(ratio, (0.05,)))
    return protocol(f'200 epochs, ratio {ratio}', _WHERE, methods, tuning_seeds=(), seeds=(0,))


SETTINGS = [
    *by_ratio('30 epochs', _SHORT, '', {64: _NONE, 256: _NONE}, _BY_TITLE, tuning_where=_TUNING),
    _balanced(256, (4.0, 2.0, 1.0, 0.5, 0.2, 0.1)),
    _balanced(1024, (2.0, 1.0, 0.5, 0.2, 0.1)),
    _few_bits(64, 256, 1024),
    *(_long(ratio) for ratio in (64, 256, 1024)),
]

PAGE = """\
# CIFAR-10, five convolutions

**Question.** How do the paper's methods, and DEF with balanced shuffled blocks and no momentum
("balanced"), compare with SGD on all of CIFAR-10, with a network that two CPU cores can train?

![Differences from SGD, with 95 % intervals](differences.png)

{table}

"Minus the first" is the difference from SGD in points, with a 95 % interval over three fresh seeds, or
five for DEF-Q; 200 epochs have one seed, and no interval.

**Findings.** In 30 epochs, DEF-Q
ends <!-- number: cifar10; 30 epochs, DEF-Q; DEF-Q, 1/64, 2 bits; difference --><!-- /number -->
points from SGD at 1/64
and <!-- number: cifar10; 30 epochs, DEF-Q; DEF-Q, 1/256, 2 bits; difference --><!-- /number -->
at 1/256: half a point is left open, by less than a tenth. Three seeds had left it open and two were added,
as planned; the intervals do not account for that look. At 1/1024 it
ends <!-- number: cifar10; 30 epochs, DEF-Q; DEF-Q, 1/1024, 2 bits; difference --><!-- /number -->
points from it. The paper's DEF
ends <!-- number: cifar10; 30 epochs, ratio 64; DEF; difference --><!-- /number -->
and <!-- number: cifar10; 30 epochs, ratio 256; DEF; difference --><!-- /number -->
from it. In 200 epochs, one seed, DEF-Q
ends <!-- number: cifar10; 200 epochs, ratio 64; DEF-Q, 1/64, 2 bits; difference --><!-- /number -->
points from SGD at 1/64
and <!-- number: cifar10; 200 epochs, ratio 256; DEF-Q, 1/256, 2 bits; difference --><!-- /number -->
at 1/256, and at 1/256 the paper's DEF
ends <!-- number: cifar10; 200 epochs, ratio 256; DEF; difference --><!-- /number -->
from it.

**Setting.** Five convolutions of 71 k parameters (`vgg_strided`), 16 workers, batches of 128 images, 11,700
steps in 30 epochs (78,000 in 200). The rate of every method was chosen in 6 epochs by the accuracy on 5,000
training images that those runs did not train on; fresh seeds trained on all 50,000. BatchNorm's statistics
were recalibrated at the point of evaluation. 200 epochs were run at the authors' rate, 0.05, which nobody
tuned: in 30 SGD's was 0.2, DEF-Q's 0.1 to 0.5. The data set is a JPEG copy of CIFAR-10.

**Limits.** One seed chose each rate, in shorter runs than those reported, so all shares are 100 % and the
intervals leave the choice of rates out; a rate that is best after 6 epochs need not be after 30. Few
seeds leave intervals wide. The network is small, and far from zero training error.

{origins}

    python -m experiments run cifar10
    python -m experiments page cifar10
"""
