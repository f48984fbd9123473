"""Tests of results as table, text, file and pictures, without any model."""

import copy
import json
import math
import re

import numpy as np
import pandas as pd
import pytest

from ad_keras.evaluation import plots, report
from ad_keras.evaluation.published import LINEAR_SEPARABILITY, sample

SHARES = [0.0, 0.3, 0.6]


def result(seed=0, shift=0.0, early=True) -> dict:
    """What `results.json` could say, every figure another."""
    counts = [[8.0 + seed, 2.0 - seed], [3.0, 7.0]]
    fid = {"late": {"nrem": 21.0 + shift, "rem": 32.0 + shift}, "test_images": 4.0}
    values = {
        "probe": {
            "trained": {"accuracy": 0.41, "confusion": counts, "mean_of_seeds": 0.4512 + shift},
            "pixels": {"accuracy": 0.31},
        },
        "logistic_probe": {"trained": {"accuracy": 0.61 + shift}},
        "knn": {"trained": 0.52 + shift},
        "occlusion": {"tile_4": [0.45 + shift, 0.33 + shift, 0.22 + shift]},
        "pca": {"trained": {"explained_variance": [0.25, 0.125]}},
        "dimensions": {"trained": 29.86},
        "fid": {**({"early": {"nrem": 43.0, "rem": 54.0}} if early else {}), **fid},
        "kid": {"late": {"rem": {"distance": 0.0071, "deviation_of_subsets": 0.001}}},
        "layers": {"conv1": {"probe": float("nan"), "ridge_probe": 0.37}},
    }
    return {
        "name": f"seed{seed}",
        "dataset": "cifar10",
        "trained_on": "cifar10",
        "condition": "no_rem",
        "class_names": ["above", "below"],
        "epochs": 50,
        "step": 99,
        "training_seed": seed,
        "precision": "mixed_bfloat16",
        "differences": [],
        "metrics": {
            name: {"protocol": {"probabilities": SHARES}, "values": value}
            for name, value in values.items()
        },
    }


def test_tidy_has_every_figure_in_a_line():
    frame = report.tidy(result()).set_index(["metric", "of", "figure"])
    assert set(frame.run) == {"seed0"}
    expected = {
        ("probe", "trained", "mean_of_seeds"): 0.4512,
        ("probe", "pixels", "accuracy"): 0.31,
        ("knn", "trained", ""): 0.52,
        ("occlusion", "tile_4", "0.3"): 0.33,
        ("pca", "trained", "explained_variance"): 0.375,
        ("dimensions", "trained", ""): 29.86,
        ("fid", "early", "nrem"): 43.0,
        ("fid", "test_images", ""): 4.0,
        ("kid", "late", "rem/distance"): 0.0071,
        ("layers", "conv1", "ridge_probe"): 0.37,
    }
    for place, value in expected.items():
        assert frame.value[place] == value
    assert np.isnan(frame.value["layers", "conv1", "probe"])
    assert len(frame) == 19


def test_runs_are_combined_into_means_and_standard_errors():
    shifts = (0.0, 0.03, -0.012)
    combined = report.combine([result(seed, shift) for seed, shift in enumerate(shifts)])
    assert combined["runs"] == ["seed0", "seed1", "seed2"]
    assert combined["training_seeds"] == [0, 1, 2]
    assert "lacking" not in combined
    entry = combined["metrics"]["occlusion"]
    assert entry["mean"]["tile_4/0.3"] == pytest.approx(0.33 + np.mean(shifts))
    assert entry["sem"]["tile_4/0.3"] == pytest.approx(np.std(shifts, ddof=1) / np.sqrt(3))
    assert entry["values"][1]["tile_4"] == [0.48, 0.36, 0.25]
    text = report.table(combined)
    assert "3 runs of no_rem, epoch 50, mixed_bfloat16: mean +- standard error" in text
    error = 100 * np.std(shifts, ddof=1) / np.sqrt(3)
    assert f"{100 * (0.61 + np.mean(shifts)):.1f} +- {error:.1f} %" in text
    assert "29.9 +- 0.0\n" in text  # filled dimensions


def test_runs_without_an_early_epoch_are_named_whichever_comes_first():
    for order in ((True, False), (False, True)):
        runs = [result(seed, 0.1 * seed, early) for seed, early in enumerate(order)]
        combined = report.combine(runs)
        lacking = f"seed{order.index(False)}"
        assert combined["lacking"] == {lacking: ["fid early"]}
        assert combined["metrics"]["fid"]["mean"]["early/nrem"] == 43.0
        assert combined["metrics"]["fid"]["mean"]["late/nrem"] == pytest.approx(21.05)
        assert f"{lacking} has no fid early" in report.table(combined)


def test_dreams_of_other_early_epochs_are_not_averaged():
    runs = [result(0), result(1, 0.1), result(2, early=False)]
    for run, epoch in zip(runs, (1, 2), strict=False):
        run["metrics"]["fid"]["protocol"]["early_epoch"] = epoch
    runs[1]["metrics"]["fid"]["values"]["early"]["nrem"] = 45.0
    combined = report.combine(runs)
    assert combined["lacking"] == {"seed0": ["fid early"], "seed2": ["fid early"]}
    assert combined["metrics"]["fid"]["mean"]["early/nrem"] == 45.0
    assert combined["metrics"]["fid"]["mean"]["late/nrem"] == pytest.approx((42.0 + 21.1) / 3)


def test_runs_in_folders_of_one_name_are_told_apart_by_their_seeds():
    runs = [{**result(seed, early=bool(seed)), "name": "run"} for seed in (0, 1)]
    combined = report.combine(runs)
    assert combined["runs"] == ["run, seed 0", "run, seed 1"]
    assert combined["lacking"] == {"run, seed 0": ["fid early"]}


def test_runs_with_other_metrics_are_combined_as_far_as_they_go():
    first, second = result(), result(1, 0.1)
    del second["metrics"]["knn"]
    for seeds, each in ((5, first), (2, second)):  # so that the other's cannot be averaged with it
        each["metrics"]["occlusion"]["protocol"]["probe_seeds"] = seeds
    combined = report.combine([second, first])
    assert combined["lacking"] == {"seed1": ["occlusion tile_4", "knn trained"]}
    assert combined["metrics"]["knn"]["mean"] == {"trained": 0.52}
    assert combined["metrics"]["occlusion"]["mean"]["tile_4/0.3"] == 0.33


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_figure_that_is_not_finite_is_told(value):
    diverged = result()
    diverged["metrics"]["logistic_probe"]["values"] = {"trained": {"accuracy": value}}
    assert re.search(r"logistic regression\) +trained +not finite", report.table(diverged))


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_gap_of_one_run_leaves_the_figures_of_the_others(order):
    gap = result(1)
    gap["metrics"]["occlusion"] = {"protocol": {"gaps": {"occlusion": "overflowed"}}, "values": {}}
    gap["metrics"]["logistic_probe"]["values"] = {"trained": {"accuracy": float("nan")}}
    runs = [result(0), gap]
    combined = report.combine([runs[number] for number in order])
    assert combined["metrics"]["occlusion"]["mean"]["tile_4/0.3"] == 0.33
    assert combined["metrics"]["logistic_probe"]["mean"]["trained/accuracy"] == 0.61
    assert {"occlusion tile_4", "logistic_probe trained"} <= set(combined["lacking"]["seed1"])
    assert re.search(r"logistic regression\) +trained +61\.0 %", report.table(combined))


def test_chance_is_the_share_of_the_commonest_class_also_in_results_of_earlier_versions():
    results = result()
    trained = results["metrics"]["probe"]["values"]["trained"]
    trained["confusion"] = [[8.0, 2.0], [10.0, 20.0]]
    assert report.chance(results) == 0.75
    assert report.chance(report.combine([results, result(2)])) == (30 + 10) / (40 + 20)
    trained["confusion"] = [[math.nan, 2.0], [10.0, 20.0]]
    assert report.chance(results) == 0.5
    del results["metrics"]["probe"]
    assert report.chance(results) == 0.5
    assert report.chance(results | {"chance": 0.6}) == 0.6
    assert math.isnan(report.chance(results | {"chance": None}))


def test_bars_begin_at_zero_and_are_labelled_with_three_digits_or_whole_numbers():
    values = {"late": (0.98765, 0.98765), "early": (8.0, 286.4), "first": (1234.5678,)}
    lines = [("PAD", name, value) for name, pair in values.items() for value in pair]
    rows = pd.DataFrame(lines, columns=["group", "series", "value"])
    (axes,) = plots.bars({"": rows}, "FID").axes
    assert [label.get_text() for label in axes.texts] == ["0.988", "147", "1235"]
    assert axes.get_ylim()[0] == 0  # the interval of two seeds reaches far below


def test_published_figures_stand_beside_ours_of_the_same_settings_only():
    def line(results):
        text = report.table(results)
        (found,) = [row for row in text.splitlines() if " trained, mean of seeds " in row]
        return found, text

    found, _ = line(result())
    assert "45.1 %" in found
    assert "46.00 +- 0.43 % (epoch 50, 4 seeds)" in found
    shorter = result() | {"differences": ["epochs 10 (the paper: 50)"], "epochs": 10}
    found, text = line(shorter)
    assert "46.00" not in text
    assert "not as in the paper: epochs 10 (the paper: 50)" in text
    for change in ({"condition": "nrem_mixed"}, {"trained_on": "svhn"}):
        assert "46.00" not in line(result() | change)[1]


@pytest.mark.parametrize("dataset", ["cifar10", "svhn"])
def test_samples_have_the_published_means_and_errors(dataset):
    for condition, (mean, sem) in LINEAR_SEPARABILITY[dataset].items():
        values = sample(dataset, condition)
        assert values.mean() == pytest.approx(mean)
        assert values.std(ddof=1) / np.sqrt(4) == pytest.approx(sem)
    assert sample(dataset, "nrem_mixed") is None
    assert sample("mnist", "full") is None


def test_published_numbers_are_those_of_table_1():
    percent = {
        name: [(round(100 * mean, 2), round(100 * sem, 2)) for mean, sem in table.values()]
        for name, table in LINEAR_SEPARABILITY.items()
    }
    assert percent == {
        "cifar10": [(58.25, 0.70), (53.87, 0.85), (46.00, 0.43), (58.00, 0.34), (42.25, 0.54)],
        "svhn": [(78.92, 0.40), (60.87, 5.07), (42.30, 1.51), (73.25, 0.22), (41.93, 0.65)],
    }
    order = ["full", "no_memory_mix", "no_rem", "no_nrem", "wake_only"]
    assert [list(table) for table in LINEAR_SEPARABILITY.values()] == [order] * 2


@pytest.mark.parametrize("runs", [1, 2])
def test_files_hold_the_figures_the_pictures_and_the_maps(tmp_path, runs):
    results = report.combine([result(0), result(1, 0.1)]) if runs == 2 else result()
    before = copy.deepcopy(results)
    coordinates = np.arange(10.0).reshape(5, 2)
    report.write(results, tmp_path, {"pca": coordinates}, np.array([0, 1, 0, 1, 1]))
    assert str(results) == str(before)
    written = json.loads((tmp_path / "results.json").read_text())
    layers = written["metrics"]["layers"]["values"]
    assert (layers[0] if runs == 2 else layers)["conv1"]["probe"] is None  # NaN is no JSON
    names = {file.name for file in (tmp_path / "figures").iterdir()}
    pictures = {f"{name}.png" for name in ("occlusion", "confusion", "layers", "fid", "pca")}
    assert names == {*pictures, "pca.csv"}
    lines = (tmp_path / "figures" / "pca.csv").read_text().splitlines()
    assert lines[:2] == ["x,y,label", "0,1,0"]
    assert len(lines) == 6


def test_tensorboard_has_the_finite_figures_and_nothing_older(tmp_path):
    import tensorflow as tf
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    report.log(result(), tmp_path / "events")
    report.log(result(shift=0.01), tmp_path / "events")
    events = EventAccumulator(str(tmp_path / "events"), size_guidance={"tensors": 0})
    events.Reload()

    def points(tag):
        return [
            (point.step, float(tf.make_ndarray(point.tensor_proto)))
            for point in events.Tensors(f"evaluation/{tag}")
        ]

    assert points("knn/trained") == [(50, pytest.approx(0.53))]
    assert points("fid/late/rem") == [(50, pytest.approx(32.01))]
    shares = [(0, pytest.approx(0.46)), (30, pytest.approx(0.34)), (60, pytest.approx(0.23))]
    assert points("occlusion/tile_4") == shares
    assert "evaluation/layers/conv1/probe" not in events.Tags()["tensors"]
