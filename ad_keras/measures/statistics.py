"""Figures of several seeds: their mean and its uncertainty, and whether two groups differ."""

import dataclasses
import math
import warnings
from collections.abc import Sequence

import numpy as np
from scipy import stats

HOLDS, CONTRADICTED, UNDECIDED = "holds", "contradicted", "undecided"
ONE_SEED = "one seed: not judged"

_ERROR_RATE = 0.05  # of all tests; intervals are of 95 %


@dataclasses.dataclass(frozen=True)
class Summary:
    """A figure over seeds.

    Attributes:
        mean: over the seeds.
        sem: standard error of the mean (the deviation has n - 1); NaN for one seed.
        half: half the width of the mean's 95 % interval (Student's t); NaN for one seed.
        count: of the seeds.
    """

    mean: float
    sem: float
    half: float
    count: int


@dataclasses.dataclass(frozen=True)
class Comparison:
    """How two groups of seeds differ.

    Attributes:
        verdict: `HOLDS`, `CONTRADICTED`, `UNDECIDED` or `ONE_SEED`.
        difference: of the means, first less second.
        low: lower end of the difference's 95 % interval; NaN where the seeds do not suffice.
        high: upper end.
        z: the difference in its standard errors.
        p: of the test that the verdict rests on.
    """

    verdict: str
    difference: float
    low: float = math.nan
    high: float = math.nan
    z: float = math.nan
    p: float = math.nan


def summarise(values: Sequence[float]) -> Summary:
    """Mean, standard error and 95 % interval.

    Args:
        values: one of each seed, at least one.
    """
    values, count = np.asarray(values, np.float64), len(values)
    if count < 2:
        return Summary(float(values.mean()), math.nan, math.nan, count)
    sem = float(stats.sem(values))
    half = sem * float(stats.t.ppf(1 - _ERROR_RATE / 2, count - 1))
    return Summary(float(values.mean()), sem, half, count)


def compare(
    first: Sequence[float],
    second: Sequence[float],
    *,
    paired: bool = False,
    margin: float | None = None,
) -> Comparison:
    """Judges whether the first group lies above the second, or whether both are equivalent.

    Welch's test for groups of different runs, the paired t-test for two figures of the same runs.
    Equivalence holds if two one-sided tests say that the difference is within the margin (TOST),
    and is contradicted if the whole 95 % interval of the difference is outside it.

    Args:
        first: a figure of each seed.
        second: the same of the other group; if paired, of the same seeds in the same order.
        paired: whether the figures belong together by pairs.
        margin: of equivalence, in the figures' unit; None judges whether the first lies above.
    """
    first, second = (np.asarray(values, np.float64) for values in (first, second))
    difference = float(first.mean() - second.mean())
    if min(len(first), len(second)) < 2:
        return Comparison(ONE_SEED, difference)
    spread = (first - second,) if paired else (first, second)
    if all(np.allclose(values, values[0]) for values in spread):
        return Comparison(UNDECIDED, difference)  # the seeds say nothing of the uncertainty

    def test(lifted: float = 0.0, **options):
        if paired:
            return stats.ttest_rel(first, second - lifted, **options)
        with warnings.catch_warnings():  # one group's seeds may agree to the last digit
            warnings.simplefilter("ignore", RuntimeWarning)
            return stats.ttest_ind(first, second - lifted, equal_var=False, **options)

    result = test()
    low, high = map(float, result.confidence_interval(1 - _ERROR_RATE))
    if margin is None:
        p, verdict = float(result.pvalue), UNDECIDED
        if p < _ERROR_RATE:
            verdict = HOLDS if difference > 0 else CONTRADICTED
    else:
        sides = test(margin, alternative="greater"), test(-margin, alternative="less")
        p = float(max(side.pvalue for side in sides))
        verdict = HOLDS if p < _ERROR_RATE else UNDECIDED
        if low > margin or high < -margin:
            verdict = CONTRADICTED
    return Comparison(verdict, difference, low, high, float(result.statistic), p)
