"""Rivals on a transformer: what users would compare DEF-Q with, at equal bytes on the wire.

The plan, committed before its runs. 33 k parameters, 1,200 steps of 32 sequences, with 8 workers and with 2,
as two racks have, where a gather costs no more than a reduction. Bytes are those that a worker's link carries
against a ring all-reduce in float32: K messages of which each worker gathers all cost K/2 times as much as
one that is reduced, so with 8 workers a gathered message is a quarter as large. PowerSGD of rank 1 and 1-bit
Adam send more than that, which favours them.

Every row has its rate tuned by the rule of all experiments, by two seeds; three others are reported, and more
where they leave a row open that could be ahead. Decays, outer rates, error decays and local steps are rows:
the comparison that counts is with a rival's best row, chosen after the fact, which favours the rival. Inner
decays are those in common use, 0.9 and 0.95, and DEF-Q's own, 0 and 0.995, with which a first trial found
DiLoCo best. Rows stand in the order of their worth; those of "DiLoCo's outer optimizer" come last.

The grid of outer rates and momentums, with 8 workers at 1/64, found 1 and 0.8 best for DiLoCo. So they are
tried at 1/256, with 2 workers, and in Streaming DiLoCo, too: the settings "with the outer optimizer of the
grid", planned after that and before their runs.

Those that came nearest follow on 115 k parameters, with the steps, seeds, rates and AdamW's decays of
`experiments.transformers`: first with 2 workers, where Streaming DiLoCo was level, then with 8.
"""

from experiments.adamw import adamw
from experiments.few_bits import again
from experiments.larger_workers import of_115k
from experiments.methods import REVISION
from experiments.own_chunk import exact
from experiments.tuning import Contender, Setting

__all__ = ['PAGE', 'SETTINGS']

_USUAL, _LATE = (0.9, 0.95), (0.0, 0.995)
_PUBLISHED, _TUNED = (0.7, 0.9), (1.4, 0.5)  # outer rate and momentum, of the paper and of the first trial
_OUTERS = ((1.0, 0.5), (2.0, 0.5), (1.0, 0.8), (0.7, 0.8), (0.4, 0.9), (1.4, 0.0), (2.0, 0.0), (1.0, 0.9))
_BEST = (1.0, 0.8)  # of the grid of outer rates and momentums
_DENSE = 180  # 15 % of the steps, as 1-bit Adam's paper has


def _adamw_inside(
    title: str, method: str, decays: tuple[float, float], first: float, **options: object
) -> Contender:
    """A method around AdamW, or before it."""
    b1, b2 = decays
    return Contender(
        f'{title}, b1 = {b1:g}',
        method,
        {**options, 'optimizer_options': {'b1': b1, 'b2': b2}},
        first,
        revision='' if options.get('bits', 32) == 32 else REVISION,
    )


def _diloco(
    every: int, bits: int, outer: tuple[float, float], decays: tuple[float, float], first: float
) -> Contender:
    rate, momentum = outer
    options = {'learning_rate': rate, 'momentum': momentum, 'nesterov': True}
    title = f'DiLoCo, H = {every}, {bits} bits, outer {rate:g}, {momentum:g}'
    return _adamw_inside(
        *(title, 'diloco', decays, first), every=every, bits=bits, outer='sgd', outer_options=options
    )


def _streaming(
    every: int, decays: tuple[float, float], first: float, outer: tuple[float, float] | None = None
) -> Contender:
    """A quarter of the model in 4 bits every H steps, by default with the published outer optimizer."""
    options: dict[str, object] = {'ratio': 4, 'bits': 4, 'every': every}
    title = f'Streaming DiLoCo, a quarter every {every} steps'
    if outer is not None:
        rate, momentum = outer
        settings = {'learning_rate': rate, 'momentum': momentum, 'nesterov': True}
        options |= {'outer': 'sgd', 'outer_options': settings}
        title += f', outer {rate:g}, {momentum:g}'
    return _adamw_inside(title, 'streaming_diloco', decays, first, **options)


def _sparse_loco(
    message: int, every: int, decays: tuple[float, float], error_decay: float = 0.95
) -> Contender:
    """`message` counts the bytes of all steps."""
    title = f'SparseLoCo, H = {every}, error {error_decay:g}'
    options = {'ratio': message / every, 'every': every, 'error_decay': error_decay}
    return _adamw_inside(title, 'sparse_loco', decays, 0.0177, **options)


def _steps_along(title: str, method: str, first: float, **options: object) -> Contender:
    """A method whose message is the direction of a step."""
    decayed = {'optimizer': 'experiments.methods:decayed', 'optimizer_options': {'weight_decay': 0.1}}
    return Contender(title, method, {**options, **decayed, 'weight_decay': 0.0}, first)


def _rivals(compression: int, workers: int) -> list[Contender]:
    gathered, every = compression * workers // 2, compression // 8  # in 4 bits, H steps
    larger = [
        _adamw_inside('PowerSGD, rank 1', 'powersgd', _USUAL, 0.0177, rank=1),
        _steps_along('1-bit Adam', 'onebit_adam', 0.00625, freeze_after=_DENSE),
    ]
    return [
        _diloco(every, 4, _TUNED, _LATE, 0.0125),
        _diloco(every, 4, _PUBLISHED, _LATE, 0.00625),
        *(_adamw_inside('top-k', 'top_k', decays, 0.0177, ratio=gathered) for decays in (_LATE, _USUAL)),
        *(_sparse_loco(gathered, compression // 16, decays) for decays in (_LATE, _USUAL)),
        *(larger[:1] if compression == 64 else []),
        _steps_along('DeMo', 'demo', 0.0025, ratio=gathered),
        *(
            _adamw_inside(f'local AdamW, H = {every}', 'local_sgd', decays, 0.0177, every=every, bits=4)
            for decays in (_LATE, _USUAL)
        ),
        _overlapping(exact(compression, 2, 0.0177)),
        _adamw_inside("the paper's DEF", 'def', _USUAL, 0.00625, ratio=compression),
        *(larger[1:] if compression == 64 else []),
        _streaming(every // 4, _LATE, 0.00625),
        _diloco(every, 4, _PUBLISHED, _USUAL, 0.00625),
    ]


def _overlapping(contender: Contender) -> Contender:
    options = {**contender.options, 'overlap': True}
    return contender._replace(title=f'{contender.title}, overlap', options=options)


def _setting(compression: int, workers: int, name: str = '', *rivals: Contender) -> Setting:
    """DEF-Q in both numbers of bits, AdamW, and rivals."""
    where: dict[str, object] = {'size': '33k'}
    if workers != 8:
        where |= {'workers': workers, 'sequences': 32 // workers}
    best, other = (2, 1) if compression == 64 else (1, 2)
    dense = [adamw(0.8, 0.95, 0.025), adamw(0.9, 0.95, 0.025)]
    return Setting(
        name=name or f'{workers} workers, 1/{compression}',
        problem='text',
        where=where,
        contenders=[
            exact(compression, best, 0.0177),
            exact(compression, other, 0.0177),
            *dense,
            *(rivals or _rivals(compression, workers)),
        ],
        tuning_seeds=range(100, 102),
        seeds=range(1000, 1003),
        margin=0.01,
    )


_OF_THE_GRID = [
    _setting(
        *(compression, workers, f'{workers} workers, 1/{compression}, with the outer optimizer of the grid'),
        *([] if (compression, workers) == (64, 8) else [_diloco(compression // 8, 4, _BEST, _LATE, 0.0125)]),
        _streaming(compression // 32, _LATE, 0.0125, _BEST),
    )
    for compression, workers in ((64, 8), (256, 8), (64, 2), (256, 2))
]

_115K = exact(64, 2, 0.0125), adamw(0.8, 0.99, 0.0125)
SETTINGS = [
    _setting(64, 8),
    _setting(256, 8),
    _setting(64, 2),
    _setting(256, 2),
    _setting(
        *(64, 8, "DiLoCo's outer optimizer, 8 workers at 1/64"),
        *(_diloco(8, 4, outer, _LATE, 0.0125) for outer in _OUTERS),
        _diloco(8, 4, _TUNED, _USUAL, 0.0125),
        *(_diloco(64, 32, outer, _LATE, 0.0125) for outer in (_TUNED, _PUBLISHED)),
        *(_sparse_loco(256, 4, _LATE, error_decay) for error_decay in (0.8, 0.99)),
    ),
    *_OF_THE_GRID,
    # Three seeds left DiLoCo open here.
    again(
        *(_OF_THE_GRID[2], range(1010, 1020), 'AdamW, b1 = 0.8, b2 = 0.95'),
        'DiLoCo, H = 8, 4 bits, outer 1, 0.8, b1 = 0',
        'Streaming DiLoCo, a quarter every 2 steps, outer 1, 0.8, b1 = 0',
    ),
    of_115k(
        _setting(64, 2),
        *_115K,
        _streaming(2, _LATE, 0.00625, _BEST),
        _diloco(8, 4, _BEST, _LATE, 0.00625),
        _sparse_loco(64, 4, _USUAL),
        _adamw_inside('top-k', 'top_k', _LATE, 0.0125, ratio=64),
    ),
    of_115k(
        _setting(64, 8),
        *_115K,
        _streaming(2, _LATE, 0.00625, _BEST),
        _diloco(8, 4, _BEST, _LATE, 0.00625),
        _adamw_inside('top-k', 'top_k', _LATE, 0.0125, ratio=256),
        _sparse_loco(256, 4, _USUAL),
    ),
]

PAGE = """\
# Rivals on a transformer

**Question.** On a transformer, where people train: is any published method ahead of DEF-Q at equal bytes on
the wire, each with its rate tuned by the same rule?

![Differences from DEF-Q, with 95 % intervals](differences.png)

The picture has the best row of each method, chosen after the fact, the table all rows.

{table}

"Minus the first" is DEF-Q's loss minus the method's, so greater is better, with a 95 % interval over fresh
seeds; "tuned again" adds the choice of both rates ([how](../README.md)); "within the margin" says whether the
whole interval lies above -0.01.

**Findings.** With 8 workers at 1/64 of the bytes, no rival is near. In nats from DEF-Q, the best row of
each ends

- Streaming DiLoCo: <!-- number: rivals_transformer; 8 workers, 1/64, with the outer optimizer of the grid; Streaming DiLoCo, a quarter every 2 steps, outer 1, 0.8, b1 = 0; difference --><!-- /number -->,
  and <!-- number: rivals_transformer; 8 workers, 1/64; Streaming DiLoCo, a quarter every 2 steps, b1 = 0; difference --><!-- /number --> as published
- DiLoCo: <!-- number: rivals_transformer; DiLoCo's outer optimizer, 8 workers at 1/64; DiLoCo, H = 8, 4 bits, outer 1, 0.8, b1 = 0; difference --><!-- /number -->,
  and <!-- number: rivals_transformer; 8 workers, 1/64; DiLoCo, H = 8, 4 bits, outer 0.7, 0.9, b1 = 0; difference --><!-- /number --> as published
- top-k: <!-- number: rivals_transformer; 8 workers, 1/64; top-k, b1 = 0; difference --><!-- /number -->
- SparseLoCo: <!-- number: rivals_transformer; 8 workers, 1/64; SparseLoCo, H = 4, error 0.95, b1 = 0.9; difference --><!-- /number -->
- local AdamW: <!-- number: rivals_transformer; 8 workers, 1/64; local AdamW, H = 8, b1 = 0.9; difference --><!-- /number -->
- DeMo: <!-- number: rivals_transformer; 8 workers, 1/64; DeMo; difference --><!-- /number -->
- PowerSGD, with more bytes: <!-- number: rivals_transformer; 8 workers, 1/64; PowerSGD, rank 1, b1 = 0.9; difference --><!-- /number -->

and dense
AdamW <!-- number: rivals_transformer; 8 workers, 1/64; AdamW, b1 = 0.8, b2 = 0.95; difference --><!-- /number -->.

At 1/256, AdamW leads DEF-Q in 1
bit by <!-- number: rivals_transformer; 8 workers, 1/256; AdamW, b1 = 0.8, b2 = 0.95; difference --><!-- /number -->
nats. From DEF-Q, the best row of each rival ends

- DiLoCo: <!-- number: rivals_transformer; 8 workers, 1/256; DiLoCo, H = 32, 4 bits, outer 1.4, 0.5, b1 = 0; difference --><!-- /number -->,
  and <!-- number: rivals_transformer; 8 workers, 1/256, with the outer optimizer of the grid; DiLoCo, H = 32, 4 bits, outer 1, 0.8, b1 = 0; difference --><!-- /number --> with 1 and 0.8 outside
- Streaming DiLoCo: <!-- number: rivals_transformer; 8 workers, 1/256; Streaming DiLoCo, a quarter every 8 steps, b1 = 0; difference --><!-- /number -->,
  and <!-- number: rivals_transformer; 8 workers, 1/256, with the outer optimizer of the grid; Streaming DiLoCo, a quarter every 8 steps, outer 1, 0.8, b1 = 0; difference --><!-- /number --> with 1 and 0.8
- local AdamW: <!-- number: rivals_transformer; 8 workers, 1/256; local AdamW, H = 32, b1 = 0.9; difference --><!-- /number -->
- SparseLoCo: <!-- number: rivals_transformer; 8 workers, 1/256; SparseLoCo, H = 16, error 0.95, b1 = 0.9; difference --><!-- /number -->
- DeMo: <!-- number: rivals_transformer; 8 workers, 1/256; DeMo; difference --><!-- /number -->
- top-k: <!-- number: rivals_transformer; 8 workers, 1/256; top-k, b1 = 0; difference --><!-- /number -->
- the paper's DEF: <!-- number: rivals_transformer; 8 workers, 1/256; the paper's DEF, b1 = 0.9; difference --><!-- /number -->

With 2 workers at 1/64, AdamW ends <!-- number: rivals_transformer; 2 workers, 1/64; AdamW, b1 = 0.8, b2 = 0.95; difference --><!-- /number -->
from DEF-Q, a difference that three seeds do not resolve, and the best row of each rival

- DiLoCo, ten further seeds: <!-- number: rivals_transformer; 2 workers, 1/64, with the outer optimizer of the grid, again; DiLoCo, H = 8, 4 bits, outer 1, 0.8, b1 = 0; difference --><!-- /number -->,
  and <!-- number: rivals_transformer; 2 workers, 1/64; DiLoCo, H = 8, 4 bits, outer 0.7, 0.9, b1 = 0; difference --><!-- /number --> as published, with three
- Streaming DiLoCo, ten further seeds: <!-- number: rivals_transformer; 2 workers, 1/64, with the outer optimizer of the grid, again; Streaming DiLoCo, a quarter every 2 steps, outer 1, 0.8, b1 = 0; difference --><!-- /number -->,
  and <!-- number: rivals_transformer; 2 workers, 1/64; Streaming DiLoCo, a quarter every 2 steps, b1 = 0; difference --><!-- /number --> as published, with three
- 1-bit Adam, with more bytes: <!-- number: rivals_transformer; 2 workers, 1/64; 1-bit Adam; difference --><!-- /number -->
- SparseLoCo: <!-- number: rivals_transformer; 2 workers, 1/64; SparseLoCo, H = 4, error 0.95, b1 = 0.9; difference --><!-- /number -->
- top-k: <!-- number: rivals_transformer; 2 workers, 1/64; top-k, b1 = 0; difference --><!-- /number -->
- local AdamW: <!-- number: rivals_transformer; 2 workers, 1/64; local AdamW, H = 8, b1 = 0.9; difference --><!-- /number -->
- DeMo: <!-- number: rivals_transformer; 2 workers, 1/64; DeMo; difference --><!-- /number -->
- PowerSGD, with more bytes: <!-- number: rivals_transformer; 2 workers, 1/64; PowerSGD, rank 1, b1 = 0.9; difference --><!-- /number -->
- the paper's DEF: <!-- number: rivals_transformer; 2 workers, 1/64; the paper's DEF, b1 = 0.9; difference --><!-- /number -->

So with 2 workers at 1/64, ten seeds do not tell Streaming DiLoCo, its outer optimizer tuned, from DEF-Q.

On 115 k parameters, in 5,000 steps at 1/64, differences from DEF-Q over three seeds:

| | 8 workers | 2 workers |
|---|---|---|
| AdamW | <!-- number: rivals_transformer; 115 k, 8 workers, 1/64; AdamW, b1 = 0.8, b2 = 0.99; difference --><!-- /number --> | <!-- number: rivals_transformer; 115 k, 2 workers, 1/64; AdamW, b1 = 0.8, b2 = 0.99; difference --><!-- /number --> |
| Streaming DiLoCo | <!-- number: rivals_transformer; 115 k, 8 workers, 1/64; Streaming DiLoCo, a quarter every 2 steps, outer 1, 0.8, b1 = 0; difference --><!-- /number --> | <!-- number: rivals_transformer; 115 k, 2 workers, 1/64; Streaming DiLoCo, a quarter every 2 steps, outer 1, 0.8, b1 = 0; difference --><!-- /number --> |
| DiLoCo, H = 8 in 4 bits | <!-- number: rivals_transformer; 115 k, 8 workers, 1/64; DiLoCo, H = 8, 4 bits, outer 1, 0.8, b1 = 0; difference --><!-- /number --> | <!-- number: rivals_transformer; 115 k, 2 workers, 1/64; DiLoCo, H = 8, 4 bits, outer 1, 0.8, b1 = 0; difference --><!-- /number --> |
| SparseLoCo | <!-- number: rivals_transformer; 115 k, 8 workers, 1/64; SparseLoCo, H = 4, error 0.95, b1 = 0.9; difference --><!-- /number --> | <!-- number: rivals_transformer; 115 k, 2 workers, 1/64; SparseLoCo, H = 4, error 0.95, b1 = 0.9; difference --><!-- /number --> |
| top-k | <!-- number: rivals_transformer; 115 k, 8 workers, 1/64; top-k, b1 = 0; difference --><!-- /number --> | <!-- number: rivals_transformer; 115 k, 2 workers, 1/64; top-k, b1 = 0; difference --><!-- /number --> |

With 2 workers at 1/256, AdamW leads DEF-Q in 1
bit by <!-- number: rivals_transformer; 2 workers, 1/256; AdamW, b1 = 0.8, b2 = 0.95; difference --><!-- /number -->
nats, a difference that three seeds do not resolve. From DEF-Q, the best row of each rival ends

- DiLoCo: <!-- number: rivals_transformer; 2 workers, 1/256; DiLoCo, H = 32, 4 bits, outer 1.4, 0.5, b1 = 0; difference --><!-- /number -->
  with 1.4 and 0.5 outside, <!-- number: rivals_transformer; 2 workers, 1/256, with the outer optimizer of the grid; DiLoCo, H = 32, 4 bits, outer 1, 0.8, b1 = 0; difference --><!-- /number --> with 1 and 0.8,
  and <!-- number: rivals_transformer; 2 workers, 1/256; DiLoCo, H = 32, 4 bits, outer 0.7, 0.9, b1 = 0; difference --><!-- /number --> as published
- SparseLoCo: <!-- number: rivals_transformer; 2 workers, 1/256; SparseLoCo, H = 16, error 0.95, b1 = 0.9; difference --><!-- /number -->
- local AdamW: <!-- number: rivals_transformer; 2 workers, 1/256; local AdamW, H = 32, b1 = 0.9; difference --><!-- /number -->
- top-k: <!-- number: rivals_transformer; 2 workers, 1/256; top-k, b1 = 0; difference --><!-- /number -->
- Streaming DiLoCo: <!-- number: rivals_transformer; 2 workers, 1/256; Streaming DiLoCo, a quarter every 8 steps, b1 = 0; difference --><!-- /number -->,
  and <!-- number: rivals_transformer; 2 workers, 1/256, with the outer optimizer of the grid; Streaming DiLoCo, a quarter every 8 steps, outer 1, 0.8, b1 = 0; difference --><!-- /number --> with 1 and 0.8
- DeMo: <!-- number: rivals_transformer; 2 workers, 1/256; DeMo; difference --><!-- /number -->
- the paper's DEF: <!-- number: rivals_transformer; 2 workers, 1/256; the paper's DEF, b1 = 0.9; difference --><!-- /number -->

**DiLoCo's outer optimizer.** Ten pairs of rate and momentum were tried with 8 workers at 1/64. 1 and 0.8 are
best; 1 and 0.9 end <!-- number: rivals_transformer; DiLoCo's outer optimizer, 8 workers at 1/64; DiLoCo, H = 8, 4 bits, outer 1, 0.9, b1 = 0; difference --><!-- /number -->
from DEF-Q, 0.7 and 0.8 <!-- number: rivals_transformer; DiLoCo's outer optimizer, 8 workers at 1/64; DiLoCo, H = 8, 4 bits, outer 0.7, 0.8, b1 = 0; difference --><!-- /number -->,
and without momentum, at a rate of 1.4, <!-- number: rivals_transformer; DiLoCo's outer optimizer, 8 workers at 1/64; DiLoCo, H = 8, 4 bits, outer 1.4, 0, b1 = 0; difference --><!-- /number -->. With H = 64 in
float32, 1.4 and 0.5 end <!-- number: rivals_transformer; DiLoCo's outer optimizer, 8 workers at 1/64; DiLoCo, H = 64, 32 bits, outer 1.4, 0.5, b1 = 0; difference --><!-- /number -->. SparseLoCo with an error decay
of 0.8 in place of 0.95 ends <!-- number: rivals_transformer; DiLoCo's outer optimizer, 8 workers at 1/64; SparseLoCo, H = 4, error 0.8, b1 = 0; difference --><!-- /number -->,
with 0.99 <!-- number: rivals_transformer; DiLoCo's outer optimizer, 8 workers at 1/64; SparseLoCo, H = 4, error 0.99, b1 = 0; difference --><!-- /number -->, both with b1 = 0.

**Setting.** The transformer of 33 k parameters, its data and the rule for rates are those of
[few bits](../few_bits/README.md), with 8 workers of 4 sequences or 2 of 16. Bytes count what a worker's link
carries: with 8 workers, a message that all gather (top-k, SparseLoCo, DeMo) is a quarter of one that is
reduced. PowerSGD of rank 1 and 1-bit Adam send more than DEF-Q, which favours them. `b1 = 0` stands for
decays of 0 and 0.995, `b1 = 0.9` for 0.9 and 0.95. Top-k, local AdamW, DiLoCo, SparseLoCo and the paper's DEF
have AdamW inside; PowerSGD compresses the gradient that AdamW then takes. "Outer" are the rate and the
momentum of DiLoCo's outer optimizer; 0.7 and 0.9 are published.

**Limits.** Small transformers in short runs; two seeds chose each rate, on 115 k one, and three are
reported. A rival's best row was chosen after the fact, which favours it. DiLoCo's outer optimizer was tuned
with 8 workers at 1/64 alone; elsewhere three pairs were tried, in Streaming DiLoCo two, and SparseLoCo's error decays with b1 = 0.

{origins}

    python -m experiments run rivals_transformer
    python -m experiments page rivals_transformer
"""  # noqa: E501
