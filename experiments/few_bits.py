"""Few bits: does DEF-Q, at 1/64 and 1/256 of the bytes, train as uncompressed SGD and AdamW do?"""

import dataclasses
from collections.abc import Sequence

from experiments.tuning import Contender, Setting

__all__ = ['PAGE', 'SETTINGS', 'again', 'def_q', 'on_convolutions', 'on_digits']

_ADAM = {'optimizer_options': {'b1': 0.9, 'b2': 0.95}}


def def_q(compression: int, bits: int, first: float) -> Contender:
    """The preset, whose rate is meant to be the one of dense training."""
    numbers = 'float32' if bits == 32 else f'{bits} bit{"s" if bits > 1 else ""}'
    options = {'ratio': compression, 'bits': bits}
    return Contender(f'1/{compression}, {numbers}', 'def_q', options, first)


def on_digits(name: str, width: int, contenders: Sequence[Contender]) -> Setting:
    """The perceptron, with twenty seeds to choose rates and twenty to report."""
    tuning_seeds, seeds = range(100, 120), range(20)
    return Setting(name, 'digits', {'width': width}, contenders, tuning_seeds, seeds, margin=0.5)


def on_convolutions(name: str, contenders: Sequence[Contender]) -> Setting:
    """The reduced CIFAR-10, whose runs take minutes: rates a factor of two apart, which two seeds choose."""
    tuning_seeds, seeds = range(100, 102), range(5)
    return Setting(name, 'cifar10_reduced', {}, contenders, tuning_seeds, seeds, margin=0.5, factor=2.0)


def _perceptron(width: int) -> Setting:
    settings = [(64, 2), (64, 32), (64, 4), (64, 1), (256, 2)]
    contenders = [Contender('SGD', 'sgd', {}, 0.14), *(def_q(*each, 0.14) for each in settings)]
    return on_digits(f'digits, width {width}', width, contenders)


_TRANSFORMER = Setting(
    name='transformer, 33 k',
    problem='text',
    where={'size': '33k'},
    contenders=[Contender('AdamW', 'sgd', _ADAM, 0.014), def_q(64, 2, 0.014), def_q(256, 2, 0.014)],
    tuning_seeds=range(100, 103),
    seeds=range(3),
    margin=0.01,
)
_CONVOLUTIONS = on_convolutions('CIFAR-10, reduced', [Contender('SGD', 'sgd', {}, 0.2), def_q(64, 2, 0.2)])


def again(setting: Setting, seeds: range, *titles: str) -> Setting:
    """The first method and some others with more seeds, none seen before: what the first ones left open."""
    contenders = [each for i, each in enumerate(setting.contenders) if i == 0 or each.title in titles]
    return dataclasses.replace(setting, name=f'{setting.name}, again', contenders=contenders, seeds=seeds)


SETTINGS = [
    _perceptron(64),
    again(_perceptron(64), range(1000, 1060), '1/64, 2 bits', '1/256, 2 bits'),
    _perceptron(192),
    again(_perceptron(192), range(1000, 1060), '1/64, 2 bits'),
    _TRANSFORMER,
    again(_TRANSFORMER, range(1000, 1010), '1/64, 2 bits', '1/256, 2 bits'),
    _CONVOLUTIONS,
]

PAGE = """\
# Few bits

**Question.** A DEF message of few bits reaches more coordinates than a float32 message of the same size. Does
DEF-Q then train as well as uncompressed SGD or AdamW, at 1/64 and at 1/256 of their bytes? "1/64, 2 bits" is
`def_jax.def_sgd(rate, 64, 'workers', bits=2)`, or `def_adamw` for the transformer, with all other
arguments at their defaults.

![Differences from dense training, with 95 % intervals](differences.png)

{table}

A rate's share is how often tuning would choose it; every rate of 5 % or more has fresh seeds. "Minus the
first" is the method's result minus that of uncompressed training (for losses with the sign turned, so that
greater is better), at the rates that were chosen, with a 95 % interval over fresh seeds; "tuned again" weighs
all these rates, and its interval holds the choice of both. "Within the margin" is "yes" if the whole interval
lies above minus the margin in brackets.

**Findings.** The rows called "again" decide: their seeds are new, and their number was fixed after the first
seeds had left the question open. At 1/64 of the bytes, in 2 bits, the perceptron of width 64
ends <!-- number: few_bits; digits, width 64, again; 1/64, 2 bits; difference --><!-- /number -->
points from SGD, and that of width 192
ends <!-- number: few_bits; digits, width 192, again; 1/64, 2 bits; difference --><!-- /number -->:
within half a point, and the second is measurably behind. In 4 bits and in 1 bit the second
ends <!-- number: few_bits; digits, width 192; 1/64, 4 bits; difference --><!-- /number -->
and <!-- number: few_bits; digits, width 192; 1/64, 1 bit; difference --><!-- /number -->
from it, within half a point, and at 1/256 in 2
bits <!-- number: few_bits; digits, width 192; 1/256, 2 bits; difference --><!-- /number -->,
with 20 seeds. Float32 messages of the same size end
at <!-- number: few_bits; digits, width 64; 1/64, float32; difference --><!-- /number -->
and <!-- number: few_bits; digits, width 192; 1/64, float32; difference --><!-- /number -->,
the second not surely (p), and not to be told from two bits there. The transformer
ends <!-- number: few_bits; transformer, 33 k, again; 1/64, 2 bits; difference --><!-- /number -->
nats from AdamW, within 0.01, which tuning again leaves
open: <!-- number: few_bits; transformer, 33 k, again; 1/64, 2 bits; tuned again --><!-- /number -->,
and <!-- number: few_bits; transformer, 33 k, again; 1/256, 2 bits; difference --><!-- /number -->
at 1/256, where it is behind. The convolutions
end <!-- number: few_bits; CIFAR-10, reduced; 1/64, 2 bits; difference --><!-- /number -->
points from SGD: not behind by half a point, with five seeds. Rates of DEF-Q that tuning chooses are those of
SGD and AdamW or lower, down to a third.

**Setting.** The problems are those of `experiments/problems.py`: perceptrons with two hidden layers on
scikit-learn's digits (8 workers of 8 images, 800 steps), a transformer of 33 k parameters on the bytes of
Python's standard library (8 workers of 4 sequences, 1,200 steps), and five convolutions of 71 k parameters on
10,000 CIFAR-10 images (16 workers of 8 images, 2,340 steps; JPEG copy of the data set). Rates lie on a grid
that grows until every rate that tuning would choose in 5 % of the cases, by the loss on validation data, is
inside it; at first, until the best was. Seeds choose initial parameters, batches and blocks; no seed both
chooses a rate and is reported.

**Limits.** These are small networks and short runs. Only the rate was tuned; AdamW has
b1 = 0.9 and b2 = 0.95. Two seeds chose the rates of the convolutions, which are a factor of two apart, so
their shares say little. Rates were chosen on one validation split, whose own chance is not in the intervals.

{origins}

    python -m experiments run few_bits
    python -m experiments page few_bits
"""
