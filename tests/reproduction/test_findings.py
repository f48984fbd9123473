"""Tests of the judge: the paper's own table, noise, and figures of which each is another."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from ad_keras.evaluation.published import LINEAR_SEPARABILITY, sample
from ad_keras.measures.statistics import CONTRADICTED, HOLDS, ONE_SEED
from ad_keras.reproduction import findings
from ad_keras.reproduction.findings import ACCURACY, NOT_MEASURED, judge, judge_all, tidy, values
from ad_keras.runs.config import CONDITIONS

SEEDS = range(4)


@pytest.fixture(scope="module")
def frame(made_results, made_history):
    """All conditions, four seeds."""
    return pd.concat(
        [
            tidy(condition, seed, made_results(condition, seed), made_history(condition, seed))
            for condition in CONDITIONS
            for seed in SEEDS
        ]
    )


def shares_lost(*decays):
    return tuple(1 - 0.7**decay for decay in decays)


def area(decay):
    left = [(1 - share / 10) ** decay for share in range(11)]
    return (sum(left) - left[0] / 2 - left[-1] / 2) / 10


# Both means that each claim must compare, from the table in conftest.py.
EXPECTED = {
    "REM raises linear separability": (0.582, 0.461),
    "Mixing memories in REM raises linear separability": (0.582, 0.531),
    "NREM does not change linear separability of clean images (CIFAR-10)": (0.582, 0.577),
    "NREM dreams come nearer to real images as PAD trains: their FID falls": (90.0, 41.0),
    "REM dreams come nearer to real images as PAD trains: their FID falls": (110.0, 53.0),
    "Training PAD raises linear separability (held-out images)": (0.552, 0.302),
    "Without NREM, a larger share of the accuracy above chance is lost under 30 % occlusion": (
        *shares_lost(2.41, 1.37),
    ),
    "Without REM, distances within classes are larger, against those between classes": (
        *(0.83, 0.61),
    ),
    "Without NREM, occluded images are further from clean ones, against distances between "
    "classes": (0.65, 0.41),
    "REM from noise only makes no big difference to linear separability": (0.571, 0.582),
    "REM from memories only makes no big difference to linear separability": (0.587, 0.582),
    "REM before NREM makes no big difference to linear separability": (0.569, 0.582),
    "NREM of mixed memories protects less: a larger share is lost under 30 % occlusion": (
        *shares_lost(1.93, 1.37),
    ),
    "PAD keeps its linear separability from epoch 50 to 100 (held-out images)": (0.557, 0.552),
    "PAD without NREM loses linear separability from epoch 50 to 100 (held-out images)": (
        0.546,
        0.497,
    ),
    "Wake only loses linear separability from epoch 50 to 100 (held-out images)": (0.412, 0.361),
}
EXPECTED_CHECKS = {
    "REM raises linear separability: logistic regression": (0.651, 0.523),
    "Mixing memories in REM raises linear separability: logistic regression": (0.651, 0.603),
    "NREM does not change linear separability of clean images (CIFAR-10): logistic regression": (
        0.651,
        0.646,
    ),
    "REM raises linear separability: ridge": (0.641, 0.512),
    "Mixing memories in REM raises linear separability: ridge": (0.641, 0.592),
    "NREM does not change linear separability of clean images (CIFAR-10): ridge": (0.641, 0.637),
    "REM raises linear separability without NREM": (0.577, 0.423),
    "REM raises linear separability (held-out images)": (0.552, 0.441),
    "Without NREM, more is lost under 30 % occlusion: tiles of 1 px": shares_lost(2.14, 1.11),
    "Without NREM, more is lost under 30 % occlusion: tiles of 2 px": shares_lost(2.26, 1.23),
    "Without NREM, more is lost under 30 % occlusion: tiles of 8 px": shares_lost(2.64, 1.51),
    "NREM enlarges the area under the curve": (area(1.37), area(2.41)),
    "Without REM, the ratio within classes is nearer to the untrained encoder's": (
        0.88 - 0.61,
        0.88 - 0.83,
    ),
    "Reconstructions improve with training: their loss falls": (0.31, 0.12),
}


def test_each_claim_reads_the_figures_that_it_is_about_and_holds(frame):
    for found, expected in zip(
        judge_all(frame, "cifar10", 50), (EXPECTED, EXPECTED_CHECKS), strict=True
    ):
        assert [finding.claim.text for finding in found] == list(expected)
        for finding, means in zip(found, expected.values(), strict=True):
            compared = [finding.first.mean, finding.second.mean]
            assert compared == pytest.approx(means, rel=2e-5, abs=2e-5), finding.claim.text
            assert (finding.first.count, finding.second.count) == (4, 4)
            assert finding.verdict == HOLDS, finding.claim.text


def test_no_claim_holds_when_its_figures_are_exchanged(frame):
    for claim in (*findings.CLAIMS, *findings.CHECKS):
        finding = judge(claim, frame, 50)
        turned = dataclasses.replace(
            claim,
            first=claim.second,
            second=claim.first,
            figure=claim.than or claim.figure,
            than=claim.figure,
            epochs=claim.epochs[::-1],
        )
        other = judge(turned, frame, 50)
        assert other.comparison.difference == pytest.approx(-finding.comparison.difference)
        if claim.margin is None and claim.dataset != "svhn":
            assert other.verdict == CONTRADICTED, claim.text


@pytest.mark.parametrize("dataset", ["cifar10", "svhn"])
def test_of_the_papers_own_table_every_claim_holds(dataset):
    rows = [
        (condition, seed, 50, *ACCURACY, value)
        for condition in LINEAR_SEPARABILITY[dataset]
        for seed, value in enumerate(sample(dataset, condition))
    ]
    claims, checks = judge_all(pd.DataFrame(rows, columns=findings.COLUMNS), dataset, 50)
    judged = [finding for finding in claims if finding.verdict != NOT_MEASURED]
    assert [finding.claim.source for finding in judged] == ["Table 1"] * 3
    judged += [finding for finding in checks if finding.verdict != NOT_MEASURED]
    assert len(judged) == 4
    for finding in judged:
        assert finding.verdict == HOLDS
        if finding.claim.margin is None:
            first = LINEAR_SEPARABILITY[dataset][finding.claim.first]
            second = LINEAR_SEPARABILITY[dataset][finding.claim.second]
            # Standard errors of four seeds are half their deviations.
            expected = stats.ttest_ind_from_stats(
                *(first[0], 2 * first[1], 4), *(second[0], 2 * second[1], 4), equal_var=False
            )
            assert finding.comparison.p == pytest.approx(expected.pvalue)
            assert finding.comparison.z == pytest.approx(expected.statistic)


def test_what_the_paper_found_on_one_data_set_does_not_count_on_others(frame):
    def of_nrem(found):
        return [f.claim.dataset for f in found if f.claim.dataset]

    for dataset, counted, checked in (
        ("cifar10", ["cifar10"], ["cifar10"] * 2),
        ("svhn", ["svhn"], ["svhn"] * 2),
        ("synth_digits", [], ["cifar10", "svhn"] * 3),
    ):
        claims, checks = judge_all(frame, dataset, 50)
        assert of_nrem(claims) == counted
        assert of_nrem(checks) == checked


def test_one_seed_is_not_judged_and_its_difference_is_shown(frame):
    claims, _ = judge_all(frame[frame.seed == 1], "cifar10", 50)
    assert {finding.verdict for finding in claims} == {ONE_SEED}
    assert claims[0].comparison.difference == pytest.approx(0.582 - 0.461)
    assert np.isnan(claims[0].comparison.low)


def test_what_was_not_measured_is_said(frame):
    claims, _ = judge_all(frame[frame.condition == "full"], "cifar10", 50)
    for finding in claims:
        measured = finding.claim.first == finding.claim.second == "full"
        assert (finding.verdict != NOT_MEASURED) == measured


def test_runs_are_compared_at_the_same_epoch(frame):
    later = frame.copy()
    of_results = (later.condition == "no_rem") & (later.metric == "probe") & (later.of == "trained")
    later.loc[of_results, "epoch"] = 20
    assert judge_all(later, "cifar10", 50)[0][0].verdict == NOT_MEASURED


def test_probes_of_earlier_epochs_stand_beside_those_of_the_last(made_results):
    results = made_results("full", 0)
    earlier = {"probe": {"mean_of_seeds": 0.375}, "ridge_probe": {"accuracy": 0.4375}}
    results["metrics"]["epochs"] = {"protocol": {}, "values": {"10": earlier}}
    frame = tidy("full", 0, results, {})
    last = results["metrics"]["probe"]["values"]["trained"]["mean_of_seeds"]
    assert values(frame, "full", ACCURACY, 50).to_list() == [last]
    assert values(frame, "full", ACCURACY, 50, epoch=10).to_list() == [0.375]
    ridge = ("ridge_probe", "trained", "accuracy")
    assert values(frame, "full", ridge, 50, epoch=10).to_list() == [0.4375]
    assert "epochs" not in set(frame.metric)


def test_a_curve_of_one_epoch_has_no_first_and_last(made_results):
    history = {"50": {"probe/validation_accuracy": 0.5}}
    frame = pd.concat([tidy("full", s, made_results("full", s), history) for s in SEEDS])
    assert judge_all(frame, "cifar10", 50)[0][5].verdict == NOT_MEASURED


def test_figures_that_are_not_finite_are_left_out(made_results):
    broken = made_results("no_rem", 0)
    broken["metrics"]["probe"]["values"]["trained"]["mean_of_seeds"] = None
    others = [tidy("no_rem", seed, made_results("no_rem", seed), {}) for seed in (1, 2)]
    found = values(pd.concat([tidy("no_rem", 0, broken, {}), *others]), "no_rem", ACCURACY, 50)
    assert found.index.to_list() == [1, 2]
    assert found.mean() == pytest.approx(0.461)


def test_nothing_is_lost_of_an_accuracy_at_chance(made_results):
    results = made_results("full", 0)
    results["metrics"]["occlusion"]["values"] = {"tile_4": [0.1] * 11}
    frame = tidy("full", 0, results, {})
    assert frame[frame.figure == "lost_accuracy"].value.isna().all()
