"""How certain a difference is, when the rates were chosen by chance as well.

A side of a comparison is a method: its losses on held-out data by rate and tuning seed, and its results with
fresh seeds at every rate that tuning would choose in 5 % of the cases or more.

Two questions have an interval each, of Student's t over the fresh seeds, so that three do not seem to be
many. `at_chosen` estimates the difference at the two rates that were chosen. `tuned_again` predicts what
someone who tunes again would get: its mean weighs the rates by how often they would be chosen, and its
interval holds the choice of both as well, by a bootstrap over the tuning seeds. The second is wider, and more
seeds do not make it narrow.

Runs of one seed share initial parameters and batches whatever the method, so fresh seeds are paired from
`PAIRED` on; fewer leave the deviation of the differences to chance, and Welch's interval, with more degrees
of freedom, takes its place.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import optimize, special, stats

__all__ = [
    'LIKELY',
    'PAIRED',
    'Difference',
    'Side',
    'at_chosen',
    'holm',
    'likely',
    'mean_std',
    'shares',
    'student',
    'tuned_again',
]

LIKELY = 0.05  # a rate that is chosen in this share of the cases gets fresh seeds
PAIRED = 5  # seeds
_DRAWS = 4000  # of the choice

Tried = Mapping[int, np.ndarray]  # losses by rate, [tuning seeds]; infinite for a run that diverged


class Side(NamedTuple):
    """One method of a comparison; rates are numbers of a grid."""

    tried: Tried
    fresh: Mapping[int, np.ndarray]  # results by rate, [seeds], greater is better

    @property
    def weights(self) -> dict[int, float]:
        """How much each rate with fresh seeds counts; they add up to 1."""
        found = shares(self.tried)
        total = sum(found[k] for k in self.fresh)
        return {k: found[k] / total for k in self.fresh}

    @property
    def chosen(self) -> int:
        """The rate that counts most."""
        weights = self.weights
        return max(weights, key=lambda k: weights[k])

    @property
    def mean(self) -> float:
        return float(sum(weight * np.mean(self.fresh[k]) for k, weight in self.weights.items()))


class Difference(NamedTuple):
    """The difference of two sides, with a 95 % interval and the p-value of there being none."""

    mean: float
    low: float
    high: float
    p_value: float

    def text(self, digits: int = 2) -> str:
        """The mean and its interval, e.g. '+0.12 [-0.30, +0.54]'; the mean alone without an interval."""
        shown = f'{self.mean:+.{digits}f}'
        return (
            f'{shown} [{self.low:+.{digits}f}, {self.high:+.{digits}f}]' if math.isfinite(self.low) else shown
        )

    def within(self, margin: float) -> str:
        """Whether the first side is behind by less than a margin: 'yes', 'no', or 'open' if it may be."""
        return 'yes' if self.low > -margin else 'no' if self.high < -margin else 'open'


def at_chosen(ours: Side, theirs: Side) -> Difference:
    """The difference of two methods at the rates that were chosen, ours minus theirs.

    >>> certain = {0: np.array([1.0, 1.0]), 1: np.array([2.0, 2.0])}
    >>> a, b = (Side(certain, {0: np.array(values)}) for values in ([3, 2, 4, 3, 2], [1, 1, 2, 2, 1]))
    >>> at_chosen(a, b).text()
    '+1.40 [+0.72, +2.08]'
    """
    part = student(ours.fresh[ours.chosen], theirs.fresh[theirs.chosen])
    return _difference(part[0], [(1.0, *part)])


def tuned_again(ours: Side, theirs: Side) -> Difference:
    """The difference of two methods whose rates someone tunes again, ours minus theirs."""
    return _difference(ours.mean - theirs.mean, _parts(ours, theirs))


def _difference(mean: float, parts: Sequence[tuple[float, float, float, float]]) -> Difference:
    """A mean, with the interval of a mixture of Student's distributions, see `_parts`."""
    if not math.isfinite(mean) or any(freedom < 1 for _, _, _, freedom in parts):
        return Difference(mean, -math.inf, math.inf, 1.0)

    def below(x: float) -> float:
        return sum(w * float(special.stdtr(df, (x - m) / max(error, 1e-12))) for w, m, error, df in parts)

    reach = 1e-9 + max(abs(m) + 1e4 * error for _, m, error, _ in parts)
    low, high = (optimize.brentq(lambda x, q=q: below(x) - q, -reach, reach) for q in (0.025, 0.975))
    return Difference(mean, low, high, min(1.0, 2 * min(below(0.0), 1 - below(0.0))))


def _parts(ours: Side, theirs: Side) -> list[tuple[float, float, float, float]]:
    """For each pair of rates that is chosen: how often, and mean, error and freedom of the difference."""
    pairs, counts = np.unique(
        np.stack([_choices(side.tried, i) for i, side in enumerate((ours, theirs))]),
        axis=1,
        return_counts=True,
    )
    known = [
        (int(a), int(b), int(count))
        for a, b, count in zip(*pairs, counts, strict=True)
        if a in ours.fresh and b in theirs.fresh
    ]
    total = sum(count for *_, count in known)
    return [(count / total, *student(ours.fresh[a], theirs.fresh[b])) for a, b, count in known]


def student(first: np.ndarray, second: np.ndarray) -> tuple[float, float, float]:
    """Mean, standard error and degrees of freedom of a difference over seeds; freedom 0 for a single one."""
    count, mean = len(first), float(np.mean(first) - np.mean(second))
    if count < 2 or len(second) != count:
        return mean, math.nan, 0
    if count >= PAIRED:
        return mean, float(stats.sem(first - second)), count - 1
    variances = [np.var(x, ddof=1) / count for x in (first, second)]
    squares = sum(v**2 for v in variances) / (count - 1)
    return mean, math.sqrt(sum(variances)), sum(variances) ** 2 / squares if squares else count - 1


def _choices(tried: Tried, side: int = 0) -> np.ndarray:
    """The rates that tuning seeds drawn again would choose, [draws]; both sides draw the same seeds.

    Rates that did equally well, as accuracies on few images do, are drawn by lot, by each side for itself.
    """
    return _chosen(tuple((rate, *values.tolist()) for rate, values in tried.items()), side)


@functools.cache
def _chosen(tried: tuple[tuple[float, ...], ...], side: int) -> np.ndarray:
    """`_choices` of rates, each with its losses: a page asks for the same ones again and again."""
    rates, losses = np.array([row[0] for row in tried]), np.array([row[1:] for row in tried])
    drawn = np.random.default_rng(0).integers(0, losses.shape[1], (_DRAWS, losses.shape[1]))
    means = losses[:, drawn].mean(-1)
    lots = np.random.default_rng(1 + side).random(means.shape)
    return rates[(means + 1e-9 * lots).argmin(0)]


def shares(tried: Tried) -> dict[int, float]:
    """How often each rate would be chosen by as many tuning seeds, drawn again: a bootstrap."""
    chosen = _choices(tried)
    return {k: float(np.mean(chosen == k)) for k in tried}


def likely(tried: Tried) -> list[int]:
    """The rates that would be chosen in `LIKELY` of the cases or more, most often first."""
    found = shares(tried)
    return sorted((k for k in found if found[k] >= LIKELY), key=lambda k: -found[k])


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for their number by Holm's step-down procedure.

    >>> holm([0.03, 0.01, 0.04])
    [0.06, 0.03, 0.06]
    """
    order = np.argsort(p_values, kind='stable')
    scaled = [(len(order) - rank) * p_values[i] for rank, i in enumerate(order)]
    found = dict(zip(order, np.minimum(1, np.maximum.accumulate(scaled)), strict=True))
    return [float(found[i]) for i in range(len(order))]


def mean_std(values: Sequence[float], digits: int) -> str:
    """Mean ± sample standard deviation; a single value has no deviation.

    >>> mean_std([1.0, 3.0], 1)
    '2.0 ± 1.4'
    """
    spread = f' ± {np.std(values, ddof=1):.{digits}f}' if len(values) > 1 else ''
    return f'{np.mean(values):.{digits}f}{spread}'
