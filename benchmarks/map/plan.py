"""What the map compares, in the order in which it is run."""

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

from benchmarks.grid import Grid
from benchmarks.league.contenders import WORKERS, Contender
from benchmarks.league.perceptron import STEPS
from benchmarks.records import Record
from def_jax.options import PAPER_DETACH

__all__ = ['PARTS', 'RATES', 'SEEDS', 'STEPS', 'TUNING_SEEDS', 'WORKERS', 'Cell', 'Key', 'cells', 'key']

RATES = Grid(0.1, 1.4)
TUNING_SEEDS = tuple(range(100, 110))  # two for each fold of the training images
SEEDS = tuple(range(20))
_SHUFFLED, _BALANCED = {'order': 'shuffled'}, {'allocation': 'balanced'}
_AUTO, _INT8, _PLAIN = {'detach': 'auto'}, {'bits': 8}, {'momentum': 0.0}


class Key(NamedTuple):
    """What the runs of a cell have in common."""

    width: int
    title: str
    bytes_of: float  # the ratio that sends as many bytes in float32
    workers: int = WORKERS  # of 64 images in all
    steps: int = STEPS
    images: int = 0  # of CIFAR-10; 0 stands for the digits

    @classmethod
    def of(cls, contender: Contender, width: int, **where: int) -> 'Key':
        """A contender's, at a width."""
        narrow = 4 if 'wire_dtype' in contender.options else 1
        return cls(width, contender.title, contender.ratio * narrow, **where)

    @classmethod
    def of_record(cls, record: Record) -> 'Key':
        return cls(**{name: record[name] for name in cls._fields if name in record})

    @property
    def sgd(self) -> 'Key':
        """SGD's at that width, which depends on the batch of all workers alone."""
        return Key.of(_sgd(), self.width, steps=self.steps, images=self.images)

    @property
    def criterion(self) -> str:
        """What chooses the rate on held-out images: the error where overfitting inflates the loss."""
        return 'error' if self.images else 'loss'

    @property
    def settings(self) -> Record:
        """What a record says of it: what is usual is left out."""
        usual = self._field_defaults
        return {name: value for name, value in self._asdict().items() if value != usual.get(name)}


class Cell(NamedTuple):
    """A contender at a width, and the points for each of which its rate is chosen."""

    key: Key
    contender: Contender
    points: tuple[str, ...]
    likely: bool  # whether all rates that other tuning seeds might have chosen are trained, too


def key(record: Record) -> tuple[Any, ...]:
    """What identifies a run."""
    return (Key.of_record(record), *(record[name] for name in ('k', 'seed', 'tuning')))


def _sgd() -> Contender:
    return Contender('SGD', 'sgd', rate=0.14)


def _plain_sgd() -> Contender:
    return Contender('SGD, no momentum', 'sgd', inner=_PLAIN, rate=1.5)


def _def(title: str, bytes_of: float, **changes) -> Contender:
    """DEF at the bytes of a ratio in float32: int8 has blocks four times as large."""
    narrow = 'wire_dtype' in changes.get('options', {})
    ratio = bytes_of / 4 if narrow else bytes_of
    start = 1.5 if changes.get('inner') == _PLAIN else 0.1
    return Contender(title, 'def', ratio, rate=start, **changes)


def paper(ratio: float) -> Contender:
    return _def('DEF (paper)', ratio)


def detached(ratio: float, detach: float | str) -> Contender:
    """The paper's DEF with another λ."""
    if detach == PAPER_DETACH:
        return paper(ratio)
    title = f'λ = {detach:g}' if isinstance(detach, float) else 'λ from the messages'
    found = _def(title, ratio, options={'detach': detach})
    return found if detach else found._replace(rate=0.026)  # from 0.07 on, some of it diverges


def ours(ratio: float) -> Contender:
    return _def('DEF, ours', ratio, blocks=_SHUFFLED | _BALANCED, options=_AUTO, inner=_PLAIN)


def ours_int8(ratio: float) -> Contender:
    return _def('DEF, ours, int8', ratio, blocks=_SHUFFLED | _BALANCED, options=_AUTO | _INT8, inner=_PLAIN)


def changes(ratio: float) -> list[Contender]:
    """What separates the paper's DEF from ours, each alone, and some together."""
    both = _SHUFFLED | _BALANCED
    return [
        _def('int8', ratio, options=_INT8),
        _def('no momentum', ratio, inner=_PLAIN),
        _def('shuffled', ratio, blocks=_SHUFFLED),
        _def('balanced', ratio, blocks=_BALANCED),
        _def('ours with momentum', ratio, blocks=both, options=_AUTO),
        _def('ours with momentum, int8', ratio, blocks=both, options=_AUTO | _INT8),
        _def('ours with λ = 0.3', ratio, blocks=both, inner=_PLAIN),
        _def('ours with λ = 0.3, int8', ratio, blocks=both, options=_INT8, inner=_PLAIN),
    ]


def momentum(ratio: float) -> list[Contender]:
    """The changes without momentum, and the same with it."""
    named = {c.title: c for c in changes(ratio)}
    equal = _def('ours with equal shares', ratio, blocks=_SHUFFLED, options=_AUTO, inner=_PLAIN)
    return [named['no momentum'], named['ours with momentum'], named['ours with momentum, int8'], equal]


def in_flight(ratio: float) -> list[tuple[Contender, Contender]]:
    """The paper's setting and ours, each beside the same with its messages a step later."""
    settings = paper(ratio), ours(ratio), ours_int8(ratio)
    return [
        (c, c._replace(title=f'{c.title}, overlap', options={**c.options, 'overlap': True})) for c in settings
    ]


_FIRST = [_sgd(), paper(64), ours(64), ours_int8(64), paper(16), detached(64, 1.0), ours(16)]
_ALL_POINTS = [detached(ratio, λ) for ratio in (64, 16) for λ in (0.0, PAPER_DETACH, 1.0, 'auto')]
_AT_256 = [paper(256), detached(256, 1.0), ours(256), ours_int8(256)]
_REST = [detached(16, 1.0), ours_int8(16)]
_AT_16 = [paper(16), ours(16), *momentum(16)[:2]]
_LONGER = [{'steps': 4 * STEPS}]
_IMAGES = [{'images': n} for n in (1_000, 50_000, 5_000)]
_ON_IMAGES = [_sgd()._replace(rate=0.04), paper(64)._replace(rate=0.03), ours_int8(64)._replace(rate=0.4)]
_OF_WORKERS = [paper(64), ours_int8(64), detached(64, 0.0), ours(64)]
# A part: widths, contenders, points, whether all likely rates are trained, and numbers of workers, steps or
# images of CIFAR-10 where they are not the league's. What matters most comes first.
PARTS: dict[str, tuple] = {
    'first': ((64, 192, 32, 96), _FIRST[:4], ('y',), False),
    'wide': ((384,), _FIRST[:2], ('y',), False),
    'rates': ((96, 64, 192, 32, 384), _FIRST[:4], ('y',), True),
    'wide_ours': ((384,), _FIRST[2:4], ('y',), False),
    'more': ((64, 192, 96, 32, 384), _FIRST[4:], ('y',), False),
    'narrow': ((16,), _FIRST, ('y',), False),
    'changes': ((192, 64), changes(64), ('y',), False),
    'overlap': ((64, 192), [later for ratio in (64, 16) for _, later in in_flight(ratio)], ('y',), False),
    'workers': ((64,), _OF_WORKERS, ('y',), False, [{'workers': n} for n in (32, 2, 64, 16, 4)]),
    'longer': ((192,), _FIRST[:4], ('y',), False, _LONGER),
    'longer_momentum': ((192,), [_plain_sgd(), *momentum(64)], ('y',), False, _LONGER),
    'longer_rates': ((192,), _FIRST[:4], ('y',), True, _LONGER),
    'longer_16': ((192,), _AT_16, ('y',), False, _LONGER),
    'images': ((64,), _ON_IMAGES, ('y',), False, _IMAGES),
    'outputs': ((64, 192), _ALL_POINTS, ('x', 'y', 'own'), False),
    'rest': ((64, 192, 384, 96, 32, 16), _AT_256 + _REST, ('y',), False),
    'widest': ((768,), _FIRST + _AT_256 + _REST, ('y',), False),
}


def cells(part: str) -> Iterator[Cell]:
    """The cells of a part, in order."""
    widths, contenders, points, likely, *others = PARTS[part]
    for width, other, contender in itertools.product(widths, *others or [({},)], contenders):
        at = points if contender.method == 'def' else ('x',)
        yield Cell(Key.of(contender, width, **other), contender, at, likely)
