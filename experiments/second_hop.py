"""The second hop, and waiting: at equal bytes, does another code for the mean, or another order, train better?

The plan, committed before its runs. With the own chunk exact, 1 bit at 1/256 ends 0.05 nats behind AdamW on
the transformer of 33 k parameters, nearly all of it rounding, the second more than the first. So at equal
bytes, in blocks of the size that follows: more levels for the mean that comes back than for the messages,
and fewer; ternary numbers, five of which fill a byte; four levels in place of three in 2 bits; and every
block in the same order, which waits least. Rates are chosen as in `experiments.own_chunk`, by three seeds;
five others are reported. What ends ahead of 1 bit at 1/256, its interval clear of zero, is tried at 1/1024,
too, and becomes an option if it is ahead there as well. All else is removed again.
"""

from experiments.adamw import adamw
from experiments.methods import REVISION
from experiments.own_chunk import exact
from experiments.tuning import Contender, Setting

__all__ = ['PAGE', 'SETTINGS']

_CODES = {
    9: '1 bit, mean in fifths of a byte',
    5: '1 bit, mean in 2 bits',
    3: 'fifths of a byte',
    7: 'four levels in 2 bits',
    6: '2 bits, mean in 1 bit',
}


def _coded(compression: int, code: int, first: float) -> Contender:
    options = {'ratio': compression, 'bits': code}
    return Contender(f'1/{compression}, {_CODES[code]}', 'def_q', options, first, revision=REVISION)


def _cyclic(contender: Contender) -> Contender:
    options = {**contender.options, 'order': 'cyclic'}
    return contender._replace(title=f'{contender.title}, cyclic', options=options)


def _setting(compression: int, first: float, codes: tuple[int, ...]) -> Setting:
    best = exact(compression, 1, first)
    return Setting(
        name=f'33 k, 1/{compression}',
        problem='text',
        where={'size': '33k'},
        contenders=[
            best,
            exact(compression, 2, first),
            *(_coded(compression, code, first) for code in codes),
            _cyclic(best),
            adamw(0.8, 0.95, 0.025),
        ],
        tuning_seeds=range(100, 103),
        seeds=range(1000, 1005),
        margin=0.01,
    )


SETTINGS = [_setting(256, 0.0177, tuple(_CODES))]

PAGE = """\
# The second hop

**Question.** With the own chunk exact, 1 bit at 1/256 ends behind AdamW on a transformer. At equal bytes, does
another code, for the messages or for the mean that comes back, or another order of the blocks train better?

![Differences from 1 bit, with 95 % intervals](differences.png)

{table}

{origins}

    python -m experiments run second_hop
    python -m experiments page second_hop
"""
