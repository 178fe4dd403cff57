"""How DEF-Q's gap to AdamW changes with the length of a run.

The plan, committed before its runs. The transformer of 33 k parameters trains for 300, 1,200, 3,000 and
10,000 steps with 8 workers; 1,200 are those of other experiments, whose runs these are. AdamW has the better
of the decays that experiments/adamw.py found best, DEF-Q the bits that own_chunk found better. Rates are
chosen by the rule of all experiments for each length; those of 10,000 steps, a factor of two apart, by one
seed. Since those decays were chosen in 1,200 steps, AdamW has three other pairs in 10,000 (added once DEF-Q
was seen ahead there).
"""

from collections.abc import Sequence

from experiments.adamw import adamw
from experiments.own_chunk import exact
from experiments.tuning import Setting

__all__ = ['ALONG', 'PAGE', 'SETTINGS']


def _setting(
    steps: int,
    first: float,
    tuning_seeds: range,
    seeds: range,
    factor: float = 2**0.5,
    decays: Sequence[tuple[float, float]] = (),
) -> Setting:
    where: dict[str, object] = {'size': '33k'}
    if steps != 1200:
        where['steps'] = steps
    return Setting(
        name=f'{steps:,} steps',
        problem='text',
        where=where,
        contenders=[
            adamw(0.8, 0.95, first),
            exact(64, 2, first),
            exact(256, 1, first),
            *(adamw(b1, b2, first) for b1, b2 in decays),
        ],
        tuning_seeds=tuning_seeds,
        seeds=seeds,
        margin=0.01,
        factor=factor,
    )


SETTINGS = [
    _setting(300, 0.025, range(100, 102), range(1000, 1005)),
    _setting(1200, 0.0177, range(100, 102), range(1000, 1005)),
    _setting(3000, 0.0125, range(100, 102), range(1000, 1005)),
    _setting(
        10000,
        0.0125,
        range(100, 101),
        range(1000, 1003),
        factor=2.0,
        decays=[(0.9, 0.95), (0.8, 0.99), (0.9, 0.99)],
    ),
]

ALONG = {'1/64 of the bytes': '1/64, 2 bits', '1/256 of the bytes': '1/256, 1 bit'}

PAGE = """\
# Longer runs

**Question.** How does the gap between DEF-Q and dense AdamW change with the length of a run?

![Nats behind AdamW against steps, at 1/64 and at 1/256 of the bytes](along.png)

{table}

**Findings.** The gap falls as runs get longer. In 300 steps DEF-Q
ends <!-- number: length; 300 steps; 1/64, 2 bits; difference --><!-- /number -->
nats from AdamW at 1/64
and <!-- number: length; 300 steps; 1/256, 1 bit; difference --><!-- /number -->
at 1/256, in 1,200
steps <!-- number: length; 1,200 steps; 1/64, 2 bits; difference --><!-- /number -->
and <!-- number: length; 1,200 steps; 1/256, 1 bit; difference --><!-- /number -->,
in 3,000 <!-- number: length; 3,000 steps; 1/64, 2 bits; difference --><!-- /number -->
and <!-- number: length; 3,000 steps; 1/256, 1 bit; difference --><!-- /number -->. In
10,000 it is ahead of AdamW with these
decays, by <!-- number: length; 10,000 steps; 1/64, 2 bits; difference --><!-- /number -->
and <!-- number: length; 10,000 steps; 1/256, 1 bit; difference --><!-- /number -->,
and level with AdamW with three other pairs of decays, each not measurably better: with 0.9 and 0.99 it
has <!-- number: length; 10,000 steps; AdamW, b1 = 0.9, b2 = 0.99; result --><!-- /number -->, DEF-Q at
1/64 <!-- number: length; 10,000 steps; 1/64, 2 bits; result --><!-- /number --> and at
1/256 <!-- number: length; 10,000 steps; 1/256, 1 bit; result --><!-- /number -->.

**Setting.** The transformer of 33 k parameters, its data and the rule for rates are those of
[few bits](../few_bits/README.md), with 8 workers of 4 sequences. Each length has a cosine of its own. AdamW has
decays of 0.8 and 0.95, the best of those [tried](../adamw/README.md), and in 10,000 steps three other pairs, too.
"Minus the first" is AdamW's loss minus DEF-Q's, so greater is better, with a 95 % interval over fresh seeds.

**Limits.** One small transformer; two seeds chose each rate, five are reported, and one and three in 10,000
steps. AdamW's decays were chosen in runs of 1,200 steps, and those of 3,000 may favour DEF-Q, as those of 10,000
would have. With two larger workers there is no gap at 1,200 steps that we could measure
([page](../larger_workers/README.md)).

{origins}

    python -m experiments run length
    python -m experiments page length
"""  # noqa: E501
