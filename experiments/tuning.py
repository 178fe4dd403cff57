"""What an experiment compares, and how each method's rate is chosen: one rule for all.

Rates lie on a geometric grid, which grows until every rate that tuning would choose in 5 % of the cases or
more is inside it. The best has the lowest mean loss on validation data over tuning seeds. Fresh seeds then
train at each of those rates, and are tested on data that choose no rate.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from def_jax.baselines.methods import get_method
from experiments import problems, statistics, wire
from experiments.spec import Record, Spec
from experiments.statistics import Side

__all__ = ['Cell', 'Contender', 'Setting', 'cell', 'tune']

_LIMIT = 12  # times a grid may grow
_BASE = 0.1  # the grid's rate number 0

Get = Callable[[Sequence[Spec]], Sequence[Record]]


class Contender(NamedTuple):
    """A method with its settings, and where its grid begins."""

    title: str
    method: str
    options: Mapping[str, Any]
    first: float = _BASE  # the rate that is tried first, with its two neighbours
    rates: Sequence[float] = ()  # candidates in place of a grid, where a paper's protocol is repeated
    point: str = ''  # where it is evaluated; its method's answer if empty
    paper: str = ''  # the paper's number
    revision: str = ''  # of its runs, see `spec.Spec`


@dataclasses.dataclass(frozen=True)
class Setting:
    """Methods on one problem.

    Attributes:
        name: its heading.
        problem: a key of `problems.PROBLEMS`.
        where: arguments of the problem.
        contenders: the methods; all others are compared with the first.
        tuning_seeds: of the runs that choose rates; none is in `seeds`.
        seeds: of the runs that are reported.
        factor: between rates of the grid.
        margin: how far behind the first a method may be and count as equal, in the unit of the headline.
        tuning_where: arguments of the problem that differ in the runs that choose rates.
        by_accuracy: whether rates are chosen by accuracy, as the paper does, not by loss.
        at: the step whose evaluation is reported; 0 for the last.

    Raises:
        ValueError: at construction, if a seed both chooses and is reported.
    """

    name: str
    problem: str
    where: Mapping[str, Any]
    contenders: Sequence[Contender]
    tuning_seeds: Sequence[int]
    seeds: Sequence[int]
    margin: float
    factor: float = 2**0.5
    tuning_where: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    by_accuracy: bool = False
    at: int = 0

    def __post_init__(self):
        if shared := set(self.tuning_seeds) & set(self.seeds):
            raise ValueError(
                f'tuning_seeds and seeds of {self.name!r} share {sorted(shared)}; they must not.'
            )

    @property
    def percent(self) -> bool:
        """Whether the headline is a share, reported in %; otherwise it is a loss."""
        return problems.PROBLEMS[self.problem].headline == 'accuracy'

    def rate(self, contender: Contender, k: int) -> float:
        return contender.rates[k] if contender.rates else float(f'{_BASE * self.factor**k:.4g}')

    def first(self, contender: Contender) -> int:
        return round(math.log(contender.first / _BASE) / math.log(self.factor))

    def spec(self, contender: Contender, k: int, seed: int) -> Spec:
        """The run of a method at a rate of the grid; its seed tells whether it chooses or is reported."""
        tunes = seed in self.tuning_seeds
        return Spec(
            self.problem,
            contender.method,
            self.rate(contender, k),
            seed,
            {**self.where, **(self.tuning_where if tunes else {})},
            dict(contender.options),
            'validation' if tunes else 'test',
            contender.revision,
        )


class Cell(NamedTuple):
    """A finished method in a setting."""

    setting: Setting
    contender: Contender
    side: Side  # test accuracies in %, or losses with their sign turned

    def at_the_edge(self, k: int) -> bool:
        """Whether a rate is the least or greatest of several that were tried."""
        return len(self.side.tried) > 1 and k in (min(self.side.tried), max(self.side.tried))

    @property
    def spec(self) -> Spec:
        """One of the runs that are reported."""
        return self.setting.spec(self.contender, self.side.chosen, self.setting.seeds[0])

    @property
    def bytes(self) -> str:
        """What its programs send of a float32 all-reduce, e.g. '1/62.4'; empty if that is not on file."""
        found = wire.known(self.spec)
        return '' if found is None else '1' if found == 1 else f'1/{found:.3g}'

    @property
    def headline(self) -> str:
        """Mean and deviation at the chosen rate; or that a fresh run diverges."""
        if not math.isfinite(self.side.mean):
            return 'diverges'
        found = np.abs(self.side.fresh[self.side.chosen])
        return statistics.mean_std(found, 2 if self.setting.percent else 3)


def cell(setting: Setting, contender: Contender, get: Get) -> Cell:
    """Chooses a method's rate and looks at its fresh seeds.

    Args:
        setting: where.
        contender: the method.
        get: the records of runs: trains those that are missing, or raises LookupError.
    """
    point = contender.point or get_method(contender.method).answer

    def values(ks: Sequence[int], seeds: Sequence[int], name: str) -> np.ndarray:
        records = get([setting.spec(contender, k, seed) for k in ks for seed in seeds])
        return np.array([_metric(record, name) for record in records]).reshape(len(ks), len(seeds))

    def losses(ks: Sequence[int]) -> np.ndarray:
        if not setting.tuning_seeds:
            return np.zeros((len(ks), 1))
        by = f'validation_accuracy_{point}' if setting.by_accuracy else f'validation_loss_{point}'
        return (-1 if setting.by_accuracy else 1) * values(ks, setting.tuning_seeds, by)

    if contender.rates:
        tried = _finite(range(len(contender.rates)), losses(range(len(contender.rates))))
    else:
        tried = tune(losses, setting.first(contender))
    name, scale = ('test_accuracy', 100.0) if setting.percent else ('test_loss', -1.0)
    name = f'{name}_{point}' + (f'@{setting.at}' if setting.at else '')
    fresh = {k: scale * values([k], setting.seeds, name)[0] for k in statistics.likely(tried)}
    return Cell(setting, contender, Side(tried, fresh))


def _metric(record: Record, name: str) -> float:
    """A metric of a run, NaN of one that diverged: the trainer stops it, and in lanes its loss is None."""
    if not record.metrics:
        return math.nan
    if name not in record.metrics:
        raise ValueError(f'{record.spec} has no {name}, but {", ".join(record.metrics)}.')
    loss = name.replace('accuracy', 'loss').partition('@')[0]
    value, lost = record.metrics[name], record.metrics.get(loss, 0.0) is None
    return math.nan if value is None or lost else value


def _finite(ks: Sequence[int], losses: np.ndarray) -> dict[int, np.ndarray]:
    found = np.asarray(losses, float)
    return dict(zip(ks, np.where(np.isfinite(found), found, np.inf), strict=True))


def tune(losses: Callable[[Sequence[int]], np.ndarray], first: int) -> dict[int, np.ndarray]:
    """Tries the rates around `first`, and more while one at an edge may be chosen: the best, or a likely one.

    Args:
        losses: of the rates of some numbers, [rates, tuning seeds]; what is not finite counts as infinite,
            and while all of them do, lower rates are tried.
        first: the number in the middle.

    Returns:
        The losses by number, in order.

    Raises:
        LookupError: if such a one is still at an edge after growing twelve times.
    """
    tried: dict[int, np.ndarray] = {}
    new = [first - 1, first, first + 1]
    for _ in range(_LIMIT + 1):
        tried |= _finite(new, losses(new))
        least, greatest = min(tried), max(tried)
        best = min(sorted(tried), key=lambda k: tried[k].mean())  # the least of those that diverge alike
        chosen = {best, *statistics.likely(tried)}
        new = [k for k, edge in ((least - 1, least), (greatest + 1, greatest)) if edge in chosen]
        if not new:
            return dict(sorted(tried.items()))
    raise LookupError(f'no rate is best: numbers {min(tried)} to {max(tried)} were tried; an edge is likely.')
