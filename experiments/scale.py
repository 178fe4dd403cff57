"""Scale: does DEF-Q keep up with SGD on narrower and wider networks, with 2 and 64 workers, at 1/1024?

The plan, committed before its runs: DEF-Q in 2 bits with its defaults against the SGD of `few_bits`, rates
chosen by the same rule for both, a margin of half a point. Every row is reported, whatever it shows; no
correction is made for their number, so one of twenty such intervals may miss its true value.
"""

from experiments.few_bits import def_q
from experiments.tuning import Contender, Setting

__all__ = ['PAGE', 'SETTINGS']


def _perceptron(width: int, workers: int, *compressions: int) -> Setting:
    return Setting(
        name=f'width {width}, {workers} workers',
        problem='digits',
        where={'width': width, 'workers': workers},
        contenders=[Contender('SGD', 'sgd', {}, 0.14), *(def_q(ratio, 2, 0.14) for ratio in compressions)],
        tuning_seeds=range(100, 120),
        seeds=range(20),
        margin=0.5,
    )


SETTINGS = [
    _perceptron(16, 8, 64, 256),
    _perceptron(64, 2, 64, 256),
    _perceptron(64, 64, 64, 256),
    _perceptron(64, 8, 1024),
    _perceptron(384, 8, 64, 256),
]

PAGE = """\
# Scale

**Question.** What [few bits](../few_bits/README.md) found for perceptrons of widths 64 and 192 with 8
workers: does it hold for narrower and wider ones, for 2 and 64 workers, and at 1/1024 of the bytes?

![Differences from SGD, with 95 % intervals](differences.png)

{table}

"Minus the first" is DEF-Q's test accuracy minus that of uncompressed SGD, in points, with a 95 % interval
over fresh seeds; "tuned again" adds the choice of both rates ([how](../README.md)); "within the margin" is
"yes" if the whole interval lies above −0.5.

**Findings.** With 2 workers DEF-Q is within half a point of SGD at 1/64 and at 1/256. With 64 workers of one
image each it
ends <!-- number: scale; width 64, 64 workers; 1/64, 2 bits; difference --><!-- /number -->
points from SGD at 1/64, within half a point, which tuning again leaves
open: <!-- number: scale; width 64, 64 workers; 1/64, 2 bits; tuned again --><!-- /number -->. It
is <!-- number: scale; width 64, 64 workers; 1/256, 2 bits; difference --><!-- /number -->
behind at 1/256. The perceptron of width 384
ends <!-- number: scale; width 384, 8 workers; 1/64, 2 bits; difference --><!-- /number -->
points from SGD at 1/64: within half a point; at 1/256 it
ends <!-- number: scale; width 384, 8 workers; 1/256, 2 bits; difference --><!-- /number -->
from SGD. At 1/1024 with 8 workers it
is <!-- number: scale; width 64, 8 workers; 1/1024, 2 bits; difference --><!-- /number -->
behind. Width 16, whose seeds differ by two points,
ends <!-- number: scale; width 16, 8 workers; 1/64, 2 bits; difference --><!-- /number -->
from SGD at 1/64, within half a point, which tuning again leaves open,
and <!-- number: scale; width 16, 8 workers; 1/256, 2 bits; difference --><!-- /number -->
at 1/256.

**Setting.** Perceptrons with two hidden layers on scikit-learn's digits, 800 steps of 64 images, which the
workers share: with 64 workers, each takes one image. DEF-Q is `def_jax.def_sgd(rate, compression, 'workers')`
with its defaults, 2 bits.

**Limits.** Small networks and short runs on two kinds of machine; one validation split; 20 seeds. Intervals
are not corrected for the number of rows; p-values are.

{origins}

    python -m experiments run scale
    python -m experiments page scale
"""
