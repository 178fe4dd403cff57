"""How certain a number of a table is: mean and standard deviation, intervals of differences, equivalence.

Runs with one seed share their initial parameters, batches and augmentation whatever the method, so methods
are compared seed by seed, if there are at least `PAIRED` seeds. With fewer, the standard deviation of the
differences is itself a matter of chance, and Welch's interval is used, which has more degrees of freedom. Two
points of the same runs are always compared run by run. Student's t gives the intervals; two one-sided t tests
at 5 % each decide whether two methods are equivalent; Holm's correction is for many tests at once.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

__all__ = ['MARGIN', 'PAIRED', 'Difference', 'holm', 'mean_std', 'paired_difference', 'seed_difference']

MARGIN = 0.5  # in points: two methods whose mean accuracies differ by less count as equivalent
PAIRED = 5  # seeds


class Difference(NamedTuple):
    """The difference of two means over seeds."""

    mean: float
    standard_error: float  # nan for a single seed
    num_seeds: int  # the fewer of both
    freedom: float  # degrees of freedom of the standard error

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """The confidence interval of the mean, by Student's t; (-inf, inf) for a single seed."""
        if self.num_seeds < 2:
            return -math.inf, math.inf
        half = float(stats.t.ppf((1 + confidence) / 2, self.freedom)) * self.standard_error
        return self.mean - half, self.mean + half

    def equivalent(self, margin: float = MARGIN) -> bool:
        """Whether the difference is shown to be smaller than `margin`, by two one-sided tests at 5 %."""
        low, high = self.interval(0.9)
        return -margin < low and high < margin

    @property
    def p_value(self) -> float:
        """Of the two-sided test that there is no difference; 1 for a single seed.

        >>> round(paired_difference([3, 2, 4], [1, 1, 1]).p_value, 3)
        0.074
        """
        if self.num_seeds < 2:
            return 1.0
        if not self.standard_error:
            return 0.0 if self.mean else 1.0
        return float(2 * stats.t.sf(abs(self.mean) / self.standard_error, self.freedom))

    def text(self, digits: int = 2) -> str:
        """The mean and its 95 % interval, e.g. '+0.12 [-0.30, +0.54]'; the mean alone for a single seed.

        >>> paired_difference([3, 2, 4], [1, 1, 1]).text()
        '+2.00 [-0.48, +4.48]'
        """
        if self.num_seeds < 2:
            return f'{self.mean:+.{digits}f}'
        low, high = self.interval()
        return f'{self.mean:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]'


def seed_difference(
    ours: Mapping[int, float] | Sequence[float],
    theirs: Mapping[int, float] | Sequence[float],
    *,
    same_runs: bool = False,
) -> Difference | None:
    """The difference of two methods, ours minus theirs: paired from `PAIRED` common seeds on, else Welch's.

    Args:
        ours: a number per seed: by seed, or in the order of the seeds.
        theirs: the same; only seeds that both have are compared.
        same_runs: whether both are points of the same runs, which are paired whatever their number.

    Returns:
        The difference; None if no seed is in both.

    >>> seed_difference([76.0, 76.5, 77.0], [74.0, 73.9, 73.8]).text()
    '+2.60 [+1.42, +3.78]'
    """
    paired = paired_difference(ours, theirs)
    if paired is None or same_runs or not 2 <= paired.num_seeds < PAIRED:
        return paired
    first, second = _common(ours, theirs)
    count = len(first)
    variances = np.var(first, ddof=1) / count, np.var(second, ddof=1) / count
    total, squares = sum(variances), sum(v**2 / (count - 1) for v in variances)
    freedom = float(total**2 / squares) if squares else float(count - 1)
    return Difference(paired.mean, math.sqrt(total), count, freedom)


def paired_difference(
    ours: Mapping[int, float] | Sequence[float], theirs: Mapping[int, float] | Sequence[float]
) -> Difference | None:
    """The difference of two methods, ours minus theirs, seed by seed; see `seed_difference`.

    >>> paired_difference({0: 98.5, 1: 99.0, 2: 98.0}, {1: 98.0, 2: 98.0}).mean
    0.5
    """
    first, second = _common(ours, theirs)
    if not len(first):
        return None
    count, differences = len(first), first - second
    error = float(np.std(differences, ddof=1)) / math.sqrt(count) if count > 1 else math.nan
    return Difference(float(np.mean(differences)), error, count, count - 1)


def _common(*methods: Mapping[int, float] | Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of the seeds that both have."""
    first, second = (dict(v) if isinstance(v, Mapping) else dict(enumerate(v)) for v in methods)
    seeds = [seed for seed in first if seed in second]
    return np.array([first[seed] for seed in seeds]), np.array([second[seed] for seed in seeds])


def holm(p_values: Sequence[float], level: float = 0.05) -> list[bool]:
    """Which hypotheses are rejected at a family-wise level, by Holm's step-down procedure.

    >>> holm([0.03, 0.01, 0.04])
    [False, True, False]
    """
    order = np.argsort(p_values, kind='stable')
    passed = [p_values[i] <= level / (len(order) - rank) for rank, i in enumerate(order)]
    rejected = [False] * len(order)
    for i, good in zip(order, np.cumprod(passed), strict=True):
        rejected[i] = bool(good)
    return rejected


def mean_std(values: Sequence[float], digits: int) -> str:
    """Mean ± sample standard deviation; a single value has no deviation.

    >>> mean_std([1.0, 3.0], 1)
    '2.0 ± 1.4'
    """
    spread = f' ± {np.std(values, ddof=1):.{digits}f}' if len(values) > 1 else ''
    return f'{np.mean(values):.{digits}f}{spread}'
