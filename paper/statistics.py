"""How certain a number of a table is: mean and standard deviation, paired intervals, equivalence.

Runs with one seed share their initial parameters, batches and augmentation whatever the method, so methods
are compared seed by seed. Student's t gives the intervals; two one-sided t tests at 5 % each decide whether
two methods are equivalent.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

__all__ = ['MARGIN', 'Difference', 'mean_std', 'paired_difference']

MARGIN = 0.5  # in points: two methods whose mean accuracies differ by less count as equivalent


class Difference(NamedTuple):
    """The mean of paired differences, one per seed."""

    mean: float
    standard_error: float  # nan for a single pair
    num_pairs: int

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """The confidence interval of the mean, by Student's t; (-inf, inf) for a single pair."""
        if self.num_pairs < 2:
            return -math.inf, math.inf
        half = float(stats.t.ppf((1 + confidence) / 2, self.num_pairs - 1)) * self.standard_error
        return self.mean - half, self.mean + half

    def equivalent(self, margin: float = MARGIN) -> bool:
        """Whether the difference is shown to be smaller than `margin`, by two one-sided tests at 5 %."""
        low, high = self.interval(0.9)
        return -margin < low and high < margin

    def text(self, digits: int = 2) -> str:
        """The mean and its 95 % interval, e.g. '+0.12 [-0.30, +0.54]'; the mean alone for a single pair.

        >>> paired_difference([3, 2, 4], [1, 1, 1]).text()
        '+2.00 [-0.48, +4.48]'
        """
        if self.num_pairs < 2:
            return f'{self.mean:+.{digits}f}'
        low, high = self.interval()
        return f'{self.mean:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]'


def paired_difference(
    ours: Mapping[int, float] | Sequence[float], theirs: Mapping[int, float] | Sequence[float]
) -> Difference | None:
    """The difference of two methods, ours minus theirs.

    Args:
        ours: a number per seed: by seed, or in the order of the seeds.
        theirs: the same; only seeds that both have are compared.

    Returns:
        The difference; None if no seed is in both.

    >>> paired_difference({0: 98.5, 1: 99.0, 2: 98.0}, {1: 98.0, 2: 98.0}).mean
    0.5
    """
    first, second = (dict(v) if isinstance(v, Mapping) else dict(enumerate(v)) for v in (ours, theirs))
    differences = [first[seed] - second[seed] for seed in first if seed in second]
    if not differences:
        return None
    count = len(differences)
    error = float(np.std(differences, ddof=1)) / math.sqrt(count) if count > 1 else math.nan
    return Difference(float(np.mean(differences)), error, count)


def mean_std(values: Sequence[float], digits: int) -> str:
    """Mean ± sample standard deviation; a single value has no deviation.

    >>> mean_std([1.0, 3.0], 1)
    '2.0 ± 1.4'
    """
    spread = f' ± {np.std(values, ddof=1):.{digits}f}' if len(values) > 1 else ''
    return f'{np.mean(values):.{digits}f}{spread}'
