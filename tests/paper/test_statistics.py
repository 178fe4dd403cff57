"""Intervals and equivalence, against SciPy's own tests and numbers worked by hand."""

import math

import numpy as np
import pytest
from scipy import stats

from paper.statistics import paired_difference, seed_difference

OURS = {0: 98.2, 1: 98.9, 2: 97.4, 3: 98.6}
THEIRS = {0: 98.8, 1: 98.7, 2: 98.1, 3: 98.9}
SAMPLES = list(OURS.values()), list(THEIRS.values())


def test_the_interval_is_that_of_the_paired_t_test():
    difference = paired_difference(OURS, THEIRS)
    test = stats.ttest_rel(*SAMPLES)
    for confidence in (0.9, 0.95):
        expected = test.confidence_interval(confidence)
        assert difference.interval(confidence) == pytest.approx((expected.low, expected.high))
    assert difference.text() == '-0.35 [-0.99, +0.29]'


@pytest.mark.parametrize('margin', [0.2, 0.5, 0.9, 1.0, 3.0])
def test_equivalence_is_two_one_sided_tests_at_5_percent(margin):
    differences = np.subtract(*SAMPLES)
    above = stats.ttest_1samp(differences, -margin, alternative='greater').pvalue
    below = stats.ttest_1samp(differences, margin, alternative='less').pvalue
    assert paired_difference(OURS, THEIRS).equivalent(margin) == (max(above, below) < 0.05)


def test_few_seeds_have_welch_intervals_and_the_points_of_a_run_paired_ones():
    difference, test = seed_difference(OURS, THEIRS), stats.ttest_ind(*SAMPLES, equal_var=False)
    assert difference.interval() == pytest.approx((*test.confidence_interval(),))
    assert difference.p_value == pytest.approx(test.pvalue)
    paired = paired_difference(OURS, THEIRS)
    assert paired.p_value == pytest.approx(stats.ttest_rel(*SAMPLES).pvalue)
    assert seed_difference(OURS, THEIRS, same_runs=True) == paired
    five = OURS | {4: 98.0}, THEIRS | {4: 98.5}
    assert seed_difference(*five) == paired_difference(*five) != paired


def test_only_common_seeds_are_compared():
    assert paired_difference(OURS, {2: 97.0, 7: 1.0}) == pytest.approx((0.4, math.nan, 1, 0), nan_ok=True)
    assert paired_difference(OURS, {7: 1.0}) is None


def test_a_single_pair_shows_nothing():
    difference = paired_difference({0: 98.0}, {0: 98.0})
    assert difference.interval() == (-math.inf, math.inf)
    assert not difference.equivalent(10.0)
    assert difference.text() == '+0.00'
