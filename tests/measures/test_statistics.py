"""Tests of figures over seeds, against SciPy's tests and against noise."""

import numpy as np
import pytest
from scipy import stats

from ad_keras.measures.statistics import (
    CONTRADICTED,
    HOLDS,
    ONE_SEED,
    UNDECIDED,
    compare,
    summarise,
)

FIRST, SECOND = np.array([0.61, 0.66, 0.58, 0.63]), np.array([0.50, 0.47, 0.56])


def test_summary_is_mean_standard_error_and_students_interval():
    summary = summarise(FIRST)
    assert summary.count == 4
    assert summary.mean == pytest.approx(0.62)
    deviation = np.sqrt(((FIRST - 0.62) ** 2).sum() / 3)
    assert summary.sem == pytest.approx(deviation / 2)
    assert summary.half == pytest.approx(3.182446 * deviation / 2)  # t of 3 degrees, 97.5 %


def test_one_seed_has_no_error():
    summary = summarise([0.25])
    assert (summary.mean, summary.count) == (0.25, 1)
    assert np.isnan([summary.sem, summary.half]).all()


def test_difference_is_judged_by_welchs_test():
    found = compare(FIRST, SECOND)
    # Welch and Satterthwaite, written out.
    parts = FIRST.var(ddof=1) / 4, SECOND.var(ddof=1) / 3
    error = np.sqrt(sum(parts))
    degrees = sum(parts) ** 2 / (parts[0] ** 2 / 3 + parts[1] ** 2 / 2)
    assert found.difference == pytest.approx(FIRST.mean() - SECOND.mean())
    assert found.z == pytest.approx(found.difference / error)
    assert found.p == pytest.approx(2 * stats.t.sf(found.z, degrees))
    reach = stats.t.ppf(0.975, degrees) * error
    assert (found.low, found.high) == pytest.approx(
        (found.difference - reach, found.difference + reach)
    )
    assert found.verdict == HOLDS
    assert compare(SECOND, FIRST).verdict == CONTRADICTED


def shifted(t):
    """Two groups of five whose Welch's t (8 degrees of freedom) is given."""
    group = np.array([-2.0, -1.0, 0.0, 1.0, 2.0])
    return group + t * np.sqrt(2 * group.var(ddof=1) / 5), group


def test_the_limit_is_five_percent():
    limit = 2.306  # of t with 8 degrees of freedom, two-sided
    assert compare(*shifted(limit + 0.01)).verdict == HOLDS
    assert compare(*shifted(limit - 0.01)).verdict == UNDECIDED
    assert compare(*shifted(-limit + 0.01)).verdict == UNDECIDED
    assert compare(*shifted(-limit - 0.01)).verdict == CONTRADICTED


def test_of_the_same_runs_pairs_are_compared():
    early = np.array([0.30, 0.40, 0.50, 0.60])
    late = early + np.array([0.02, 0.03, 0.02, 0.03])
    found = compare(late, early, paired=True)
    assert found.verdict == HOLDS
    assert found.p == pytest.approx(stats.ttest_1samp(late - early, 0).pvalue)
    assert compare(late, early).verdict == UNDECIDED  # the runs differ more than the times


def test_equivalence_needs_an_interval_within_the_margin():
    near = FIRST + np.array([0.002, -0.001, 0.001, 0.0])
    assert compare(FIRST, near, margin=0.10).verdict == HOLDS
    assert compare(FIRST, near, margin=0.01).verdict == UNDECIDED
    # Far away, but not beyond doubt outside the margin.
    assert compare(FIRST, SECOND, margin=0.10).verdict == UNDECIDED
    assert compare(FIRST, SECOND - 0.3, margin=0.10).verdict == CONTRADICTED
    assert compare(SECOND - 0.3, FIRST, margin=0.10).verdict == CONTRADICTED


def test_equivalence_is_two_one_sided_tests():
    first, second = shifted(0.5)
    first, second = first / 100, second / 100
    error = np.sqrt(2 * second.var(ddof=1) / 5)
    expected = stats.t.sf((0.03 - 0.5 * error) / error, 8)  # the nearer end of the margin
    assert compare(first, second, margin=0.03).p == pytest.approx(expected)
    assert compare(second, first, margin=0.03).p == pytest.approx(expected)


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("paired", [False, True])
def test_noise_around_equal_means_is_judged_wrongly_in_five_percent(count, paired):
    rng = np.random.default_rng(count)
    trials = rng.normal(0.5, 0.02, (2000, 2, count))
    wrong = np.mean([compare(*pair, paired=paired).verdict != UNDECIDED for pair in trials])
    # Welch's test is careful with two seeds. The error of a share of 2,000 is 0.005.
    assert wrong < 0.065
    if count == 4 or paired:
        assert wrong > 0.035


def test_noise_is_rarely_called_equivalent_when_it_lies_at_the_margin():
    rng = np.random.default_rng(0)
    trials = rng.normal(0.5, 0.02, (2000, 2, 4)) + np.array([[0.03], [0.0]])
    wrong = np.mean([compare(*pair, margin=0.03).verdict == HOLDS for pair in trials])
    assert wrong < 0.065


def test_a_group_whose_seeds_agree_to_the_last_digit_is_as_good_as_a_number():
    same, others = [0.2, 0.2, 0.2], [0.3, 0.36, 0.32]
    expected = stats.ttest_1samp(others, 0.2)
    found = compare(others, same)
    assert found.p == pytest.approx(expected.pvalue)
    assert found.z == pytest.approx(expected.statistic)


def test_one_seed_is_not_judged():
    found = compare(FIRST, SECOND[:1])
    assert found.verdict == ONE_SEED
    assert found.difference == pytest.approx(0.12)
    assert np.isnan([found.low, found.high, found.z, found.p]).all()


def test_seeds_without_scatter_decide_nothing():
    assert compare([0.5, 0.5], [0.4, 0.4]).verdict == UNDECIDED
    assert compare([0.5, 0.6], [0.4, 0.5], paired=True).verdict == UNDECIDED
