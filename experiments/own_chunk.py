"""A worker's own chunk exact: what it brings in 1 and 2 bits, and which of them is better where.

The plan, committed before its runs. A worker's own chunk never travels, and has not been rounded since; the
rows called "rounded" are runs of before, on record under other experiments. Rates are chosen by the rule of
all experiments, with the seeds of those rows: three choose a transformer's, ten others are reported. The
number of bits that `bits='auto'` will take follows from this: 1 where 2 bits make blocks of 1/16 or smaller,
if 1 bit ends ahead at 1/256 and 1/1024 and 2 bits do not at the same place. The order of the settings is that
of their worth; 358 k, with the seeds and rates of `experiments.transformers`, and the reduced CIFAR-10 come
last.
"""

import dataclasses

from experiments.adamw import adamw
from experiments.few_bits import def_q, on_convolutions, on_digits
from experiments.methods import REVISION
from experiments.tuning import Contender, Setting

__all__ = ['CURVES', 'PAGE', 'SETTINGS', 'exact', 'rounded']


def exact(compression: int, bits: int, first: float) -> Contender:
    """The preset as it is."""
    return def_q(compression, bits, first)._replace(revision=REVISION)


def rounded(compression: int, bits: int, first: float) -> Contender:
    """The preset as it was."""
    contender = def_q(compression, bits, first)
    return contender._replace(title=f'{contender.title}, rounded')


def _both(compression: int, first: float, *bits: int) -> list[Contender]:
    return [kind(compression, each, first) for kind in (exact, rounded) for each in bits]


def _transformer(compression: int, *contenders: Contender) -> Setting:
    return Setting(
        name=f'33 k, 1/{compression}',
        problem='text',
        where={'size': '33k'},
        contenders=[*contenders, *(adamw(*each, 0.025) for each in ((0.8, 0.95), (0.9, 0.95)))],
        tuning_seeds=range(100, 103),
        seeds=range(1000, 1010),
        margin=0.01,
    )


UNCOMPRESSED = Contender('DEF-Q, uncompressed', 'def_q', {'ratio': 1, 'bits': 32}, 0.025)
_SGD = Contender('SGD', 'sgd', {}, 0.14)
SETTINGS = [
    _transformer(256, *_both(256, 0.0177, 1, 2), UNCOMPRESSED),
    _transformer(64, *_both(64, 0.0177, 2, 1), UNCOMPRESSED),
    dataclasses.replace(
        on_digits('width 64, 64 workers, 1/256', 64, [*_both(256, 0.1, 1, 2), _SGD]),
        where={'width': 64, 'workers': 64},
    ),
    _transformer(1024, *(exact(1024, bits, 0.0125) for bits in (1, 2)), UNCOMPRESSED),
    dataclasses.replace(
        on_digits('width 64, 8 workers, 1/256', 64, [*_both(256, 0.1, 1, 2), _SGD]),
        seeds=range(1000, 1060),
    ),
    Setting(
        name='358 k, 1/256',
        problem='text',
        where={'size': '358k', 'steps': 3000},
        contenders=[
            *(exact(256, bits, 0.0125) for bits in (1, 2)),
            rounded(256, 2, 0.0125),
            adamw(0.8, 0.99, 0.0125),
        ],
        tuning_seeds=range(100, 101),
        seeds=range(3),
        margin=0.01,
        factor=2.0,
        tuning_where={'steps': 1000},
    ),
    on_convolutions(
        'CIFAR-10, reduced, 1/256',
        [*(exact(256, bits, 0.2) for bits in (1, 2)), Contender('SGD', 'sgd', {}, 0.2)],
    ),
]

CURVES = {
    'dense AdamW': ('33 k, 1/64', 'AdamW, b1 = 0.8, b2 = 0.95'),
    'DEF-Q, 1/64 of the bytes': ('33 k, 1/64', '1/64, 2 bits'),
    'DEF-Q, 1/256 of the bytes': ('33 k, 1/256', '1/256, 1 bit'),
}

PAGE = """\
# The own chunk exact

**Question.** In few bits, a worker's own chunk never travels, so it need not be rounded, and no longer is.
What does that bring, and is 1 bit better than 2 at the same bytes?

![Differences from the first row, with 95 % intervals](differences.png)

{table}

"Rounded" rows are runs of before. "Minus the first" is the row minus the first of its problem, in points of
test accuracy, or in nats with the sign turned, so greater is better; with a 95 % interval over fresh seeds;
"tuned again" adds the choice of both rates ([how](../README.md)).

**Findings.** On the transformer of 33 k parameters at 1/256, 1 bit
reaches <!-- number: own_chunk; 33 k, 1/256; 1/256, 1 bit; result --><!-- /number -->
nats: as it was, rounded, it
ends <!-- number: own_chunk; 33 k, 1/256; 1/256, 1 bit, rounded; difference --><!-- /number -->
from that, and 2 bits, rounded, which was the
preset, <!-- number: own_chunk; 33 k, 1/256; 1/256, 2 bits, rounded; difference --><!-- /number -->.
2 bits with the own chunk exact
end <!-- number: own_chunk; 33 k, 1/256; 1/256, 2 bits; difference --><!-- /number -->
from 1 bit. AdamW
ends <!-- number: own_chunk; 33 k, 1/256; AdamW, b1 = 0.9, b2 = 0.95; difference --><!-- /number -->
nats ahead of 1 bit with decays of 0.9 and 0.95,
and <!-- number: own_chunk; 33 k, 1/256; AdamW, b1 = 0.8, b2 = 0.95; difference --><!-- /number -->
with the best of those tried; DEF-Q without
compression <!-- number: own_chunk; 33 k, 1/256; DEF-Q, uncompressed; difference --><!-- /number -->.

At 1/64, 2 bits reach <!-- number: own_chunk; 33 k, 1/64; 1/64, 2 bits; result --><!-- /number -->
nats: rounded, they
end <!-- number: own_chunk; 33 k, 1/64; 1/64, 2 bits, rounded; difference --><!-- /number -->
from that, 1 bit <!-- number: own_chunk; 33 k, 1/64; 1/64, 1 bit; difference --><!-- /number -->,
AdamW <!-- number: own_chunk; 33 k, 1/64; AdamW, b1 = 0.9, b2 = 0.95; difference --><!-- /number -->
with decays of 0.9 and 0.95,
and <!-- number: own_chunk; 33 k, 1/64; AdamW, b1 = 0.8, b2 = 0.95; difference --><!-- /number -->
with the best.

With 64 workers at 1/256, 1 bit,
rounded, ends <!-- number: own_chunk; width 64, 64 workers, 1/256; 1/256, 1 bit, rounded; difference --><!-- /number -->
points from 1 bit with the own chunk exact, from which 2 bits are statistically
indistinguishable (<!-- number: own_chunk; width 64, 64 workers, 1/256; 1/256, 2 bits; difference --><!-- /number -->).
SGD ends <!-- number: own_chunk; width 64, 64 workers, 1/256; SGD; difference --><!-- /number -->
from it.

At 1/1024, 1 bit reaches <!-- number: own_chunk; 33 k, 1/1024; 1/1024, 1 bit; result --><!-- /number -->
nats; 2 bits end <!-- number: own_chunk; 33 k, 1/1024; 1/1024, 2 bits; difference --><!-- /number --> from it.
The transformer of 358 k reaches <!-- number: own_chunk; 358 k, 1/256; 1/256, 1 bit; result --><!-- /number -->
nats at 1/256 in 1 bit; 2 bits
end <!-- number: own_chunk; 358 k, 1/256; 1/256, 2 bits; difference --><!-- /number -->
from it (three seeds), and
AdamW <!-- number: own_chunk; 358 k, 1/256; AdamW, b1 = 0.8, b2 = 0.99; difference --><!-- /number -->.
On the perceptron with 8 workers, 2 bits
end <!-- number: own_chunk; width 64, 8 workers, 1/256; 1/256, 2 bits; difference --><!-- /number -->
points from 1 bit, which is itself behind 1 bit rounded
(<!-- number: own_chunk; width 64, 8 workers, 1/256; 1/256, 1 bit, rounded; difference --><!-- /number -->;
with the choice of rates counted, open). On the reduced
CIFAR-10 2 bits end <!-- number: own_chunk; CIFAR-10, reduced, 1/256; 1/256, 2 bits; difference --><!-- /number -->
points from 1 bit: five seeds leave it open.

**So 1 bit is the presets' from a compression of 256 on**, by the rule that was set before the runs: 1 bit is ahead on the
transformer of 33 k at 1/256 and 1/1024, and 2 bits are ahead nowhere. On the transformer of 358 k, the interval of three
seeds excludes zero, but p, corrected for all comparisons of this page, does not.

![Training loss against steps: dense AdamW, DEF-Q at 1/64 and at 1/256](curves.png)

Training losses of the transformer of 33 k parameters, AdamW with the best decays: means over each twentieth
of a run, with a band of one standard deviation over ten seeds. DEF-Q's are those at the detached points.

**Setting.** The problems and the rule for rates are those of [few bits](../few_bits/README.md) and
[scale](../scale/README.md), and so are the runs of the rounded rows, of AdamW and of SGD.

**Limits.** Small networks and short runs.

{origins}

    python -m experiments run own_chunk
    python -m experiments page own_chunk
"""  # noqa: E501
