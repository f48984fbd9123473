"""Tests of the report from saved results alone: no data, no checkpoints, no training."""

import base64
import dataclasses
import html
import io
import json
import re
from html.parser import HTMLParser

import pandas as pd
import pytest
from PIL import Image

from ad_keras.evaluation.published import differences
from ad_keras.reproduce import main
from ad_keras.reproduction.report import read_runs, write_report
from ad_keras.runs.config import CONDITIONS, Config


class Page(HTMLParser):
    """The pictures of a page, and all else that it refers to."""

    def __init__(self, text):
        super().__init__()
        self.images, self.references = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if tag == "img" and name == "src":
                self.images.append(value)
            elif name in ("src", "href", "srcset", "data", "action"):
                self.references.append(value)


@pytest.fixture(scope="module")
def reported(save_runs, tmp_path_factory):
    """A folder of saved results of all conditions, with its report, and a map of one run."""
    folder = save_runs(tmp_path_factory.mktemp("saved"))
    points = pd.DataFrame({"x": range(40), "y": range(40), "label": [n % 10 for n in range(40)]})
    (folder / "full-seed0" / "figures").mkdir()
    points.to_csv(folder / "full-seed0" / "figures" / "pca.csv", index=False)
    (folder / "pictures" / "run").mkdir(parents=True)
    for name in ("dreams_epoch_3", "somebodys_own"):
        (folder / "pictures" / f"{name}.png").touch()
    main(["reproduce", f"--results_dir={folder}"])
    return folder


@pytest.fixture
def report_of(save_runs, tmp_path, monkeypatch):
    """Writes a report without pictures of some runs, after a change to them; its Markdown."""
    monkeypatch.setattr("ad_keras.reproduction.report._picture", lambda *_, **__: [])

    def write(conditions, seeds=(0, 1), change=lambda folder: None, failed=(), **settings) -> str:
        folder = save_runs(tmp_path / "runs", conditions, seeds, **settings)
        change(folder)
        write_report(read_runs(list(folder.iterdir())), tmp_path / "out", "the command", failed)
        return (tmp_path / "out" / "report.md").read_text()

    return write


def test_the_page_has_its_pictures_inside_and_nothing_outside(reported):
    text = (reported / "report.html").read_text()
    page = Page(text)
    assert len(page.images) == 6
    for source in page.images:
        kind, _, content = source.partition(",")
        assert kind == "data:image/png;base64"
        with Image.open(io.BytesIO(base64.b64decode(content))) as picture:
            picture.load()
            assert min(picture.size) > 150
            assert len(set(picture.convert("L").tobytes())) > 2
    assert page.references == []
    assert not re.search(r"https?://|url\(|@import|<script", text)


def test_the_page_and_the_markdown_say_the_same(reported):
    page, text = (
        html.unescape((reported / f"report.{kind}").read_text()) for kind in ("html", "md")
    )
    for line in text.splitlines():
        cells = line.strip("| ").split(" | ") if line[:1] == "|" else []
        for cell in cells:
            assert "---" in cell or f">{cell.strip()}</t" in page
    assert page.count("<h2>") == text.count("\n## ") == 8


def test_the_pictures_of_the_markdown_exist(reported):
    named = re.findall(r"!\[.*\]\((.*)\)", (reported / "report.md").read_text())
    assert len(named) == 6
    # A folder, which might be a run's, and a picture that no report wrote.
    others = {reported / "pictures" / name for name in ("run", "somebodys_own.png")}
    assert {reported / name for name in named} | others == set((reported / "pictures").iterdir())


def test_it_opens_with_one_sentence_and_what_it_rests_on(reported):
    text = (reported / "report.md").read_text()
    assert text.splitlines()[2] == "After 50 epochs on cifar10, 16 of the paper's 16 claims hold."
    assert "| With how many seeds? | PAD 4, w/o memory mix 4, w/o REM 4," in text
    assert "| What differs from the paper? | nothing |" in text


def test_table_1_sets_ours_beside_the_published(reported):
    text = (reported / "report.md").read_text()
    # Means of 58.2 and 58.25; errors of 0.194 and 0.70; by SciPy's ttest_ind_from_stats, z -0.07.
    assert "| PAD | 58.20 ± 0.19 % (4) | 58.25 ± 0.70 % (4) | -0.05 [-2.20, +2.10] | -0.1 |" in text
    assert "| w/o REM | 46.10 ± 0.19 % (4) | 46.00 ± 0.43 % (4) | +0.10 [-1.19, +1.39]" in text
    assert "| untrained encoder | 32.20 ± 0.10 % (4) |" in text
    assert "| raw pixels | 36.10 ± 0.00 % (4) |" in text
    assert "| PAD | 65.10 ± 0.17 % (4) | 64.10 ± 0.17 % (4) |" in text  # the other readouts
    assert "| raw pixels | not measured | 34.30 ± 0.00 % (4) |" in text


def edited(file, **changes):
    """Replaces entries of a file of JSON."""
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    ("setting", "value", "published"),
    [
        *(("epochs", 20, "50"), ("latent_dim", 8, "256"), ("base_filters", 2, "64")),
        *(("batch_size", 32, "64"), ("beta_1", 0.9, "0.5"), ("beta_2", 0.99, "0.999")),
        *((f"{name}_learning_rate", 0.001, "0.0002") for name in ("encoder", "generator")),
        *(("image_size", 64, "32"), ("train_examples", 900, "0"), ("hold_out", True, "False")),
        *(("mask_per", "image", "batch"), ("kl_weight", 0.5, "1.0")),
        ("dataset", "synth_digits", "cifar10, svhn"),
    ],
)
def test_each_setting_that_is_not_the_papers_is_named(setting, value, published):
    config = Config(**{"dataset": "cifar10", setting: value})
    assert differences(config) == [f"{setting} {value} (the paper: {published})"]


@pytest.mark.parametrize("condition", CONDITIONS)
def test_the_papers_settings_do_not_differ_whatever_the_condition(condition):
    config = Config(dataset="svhn", precision="mixed_bfloat16", seed=3, **CONDITIONS[condition])
    assert differences(config) == []
    longer = dataclasses.replace(config, epochs=100)
    assert differences(longer, epochs=50) == []
    assert differences(longer) == ["epochs 100 (the paper: 50)"]


def test_other_settings_are_named_and_not_set_beside_the_published(report_of):
    text = report_of(("full", "no_rem"), base_filters=2)
    assert "Published numbers do not stand here: base_filters 2 (the paper: 64)." in text
    assert "| base_filters 2 (the paper: 64); fewer than 4 seeds |" in text
    assert "58.25" not in text


def test_runs_measured_earlier_are_not_set_beside_the_published(report_of):
    def shorten(folder):
        for file in folder.glob("*/results.json"):
            edited(file, epochs=1)

    text = report_of(("full",), change=shorten)
    assert "Published numbers do not stand here: epochs 1 (the paper: 50)." in text


def test_precision_is_named_but_no_hindrance(report_of):
    text = report_of(("full",), precision="mixed_bfloat16")
    assert "precision mixed_bfloat16 (the paper: float32)" in text
    assert "ours, epoch 50, mixed_bfloat16" in text
    assert "58.25 ± 0.70 % (4)" in text


def test_one_seed_is_shown_but_not_judged(report_of):
    text = report_of(("full", "no_rem"), seeds=(1,))
    rem = "| Table 1 | REM raises linear separability | one seed: not judged |"
    assert f"{rem} PAD: 58.05 % (1); w/o REM: 45.95 % (1) | +12.10 (one seed) |" in text
    assert "| PAD | 58.05 % (1) | 58.25 ± 0.70 % (4) | -0.20 (one seed) |  |" in text
    sentence = "0 of the paper's 16 claims hold, 6 not judged for want of seeds, 10 not measured."
    assert sentence in text.splitlines()[2]


def test_what_is_missing_is_named_and_left_out(report_of):
    def damage(folder):
        (folder / "no_rem-seed1" / "results.json").unlink()
        edited(folder / "full-seed0" / "results.json", epochs=20)
        edited(folder / "full-seed3" / "results.json", dataset="svhn")
        edited(folder / "no_rem-seed3" / "results.json", held_out=True)

    text = report_of(("full", "no_rem"), seeds=range(4), change=damage, failed=["x failed: why"])
    lacking = ("PAD, seed 0", "PAD, seed 3", "w/o REM, seed 1", "w/o REM, seed 3")
    lacking = "; ".join(f"{run} (not measured at epoch 50)" for run in lacking)
    assert f"| What is left out? | x failed: why; {lacking} |" in text
    assert "| With how many seeds? | PAD 2, w/o REM 2 |" in text
    (held_out,) = re.findall("^.*Training PAD raises.*$", text, re.MULTILINE)
    assert re.findall(r"\((\d)\)", held_out) == ["2", "2"]


def test_dreams_are_not_compared_in_features_of_other_weights(report_of, monkeypatch):
    def renew(folder):
        for run in folder.glob("*"):
            weights = {"0": "new", "1": "old", "2": "old"}[run.name[-1]]
            edited(run / "results.json", features={"name": f"the {weights}", "weights": weights})

    def record(name, caption, *_, **__):
        captions.append(caption)
        return []

    captions = []
    monkeypatch.setattr("ad_keras.reproduction.report._picture", record)

    rem = "| Figure 3 | REM dreams come nearer to real images as PAD trains: their FID falls |"
    text = report_of(("full", "no_rem"), seeds=(0, 1, 2), change=renew)
    own = "(measured in other features)"
    left_out = f"dreams of PAD, seed 0 {own}; dreams of w/o REM, seed 0 {own}"
    told = "FID of dreams, early (epoch 2) and late, in features of: the old."
    assert any(caption.startswith(told) for caption in captions)
    assert f"| What is left out? | {left_out} |" in text
    (line,) = [line for line in text.splitlines() if line.startswith(rem)]
    assert re.findall(r"\((\d)\)", line) == ["2", "2"]
    assert "| PAD | 58.05 ± 0.17 % (3) |" in text


def test_what_was_measured_otherwise_than_most_is_left_out(report_of):
    def change(folder):
        entries = json.loads((folder / "full-seed0" / "results.json").read_text())["metrics"]
        entries["fid"]["protocol"]["images"] = 500
        edited(folder / "full-seed0" / "results.json", metrics=entries)
        edited(folder / "full-seed2" / "results.json", data="of other test images")

    text = report_of(("full", "no_rem"), seeds=(0, 1, 2), change=change)
    assert "| What is left out? | fid of PAD, seed 0 (measured otherwise); probe, " in text
    rem = "| Figure 3 | REM dreams come nearer to real images as PAD trains: their FID falls |"
    (line,) = [line for line in text.splitlines() if line.startswith(rem)]
    assert re.findall(r"\((\d)\)", line) == ["1", "1"]
    assert "| PAD | 57.90 ± 0.15 % (2) |" in text
    assert "| w/o REM | 45.95 ± 0.17 % (3) |" in text


def test_runs_without_dreams_do_not_decide_whose_features_count(report_of):
    def without(folder):
        for run in folder.glob("no_*"):
            results = json.loads((run / "results.json").read_text())
            del results["features"], results["metrics"]["fid"]
            (run / "results.json").write_text(json.dumps(results))

    text = report_of(("full", "no_rem", "no_nrem"), change=without)
    assert "| What is left out? | nothing |" in text
    assert re.search(r"their FID falls \| holds", text)


def test_results_of_some_metrics_are_enough(report_of):
    def cut(folder):
        for file in folder.glob("*/results.json"):
            metrics = json.loads(file.read_text())["metrics"]
            edited(file, metrics={"ridge_probe": metrics["ridge_probe"]})
        for file in folder.glob("*/history.json"):
            file.unlink()

    text = report_of(("full", "no_rem"), change=cut)
    assert "| REM raises linear separability: ridge | holds |" in text
    assert "| REM raises linear separability | not measured |" in text


def test_what_cannot_be_reported_is_told_in_one_line(refusal, save_runs, tmp_path):
    assert f"{tmp_path} holds no runs" in refusal(main, f"--results_dir={tmp_path}")
    folder = save_runs(tmp_path / "a", ("full",), (0,))
    (folder / "full-seed0" / "results.json").write_text("{")
    assert "results.json cannot be read" in refusal(main, f"--results_dir={folder}")
    (folder / "full-seed0" / "results.json").unlink()
    assert "none of the 1 runs was measured" in refusal(main, f"--results_dir={folder}")
    save_runs(folder, ("no_rem",), (0,), base_filters=8)
    assert "--base_filters is 64 and 8" in refusal(main, f"--results_dir={folder}")
    other = save_runs(tmp_path / "b", ("full",), (0,), kl_weight=0.5)
    assert "of none of the paper's conditions" in refusal(main, f"--results_dir={other}")
    plain = save_runs(tmp_path / "plain", ("full",))
    edited(plain / "full-seed0" / "results.json", class_names=[])
    assert "on images without labels, which" in refusal(main, f"--results_dir={plain}")
    twice = save_runs(tmp_path / "c", ("full",))
    (twice / "full-seed3").rename(twice / "copy")
    edited(twice / "copy" / "flags.json", seed=2)
    assert "are of the same condition and seed" in refusal(main, f"--results_dir={twice}")
    (twice / "copy" / "control.json").touch()
    main(["reproduce", f"--results_dir={twice}"])  # in which a control does not count


def test_runs_of_equal_updates_are_compared_at_the_full_models_epoch_and_say_theirs(report_of):
    epochs = {"full": 50, "no_rem": 75, "wake_only": 150}

    def prolong(folder):
        for condition, own in epochs.items():
            for run in folder.glob(f"{condition}-seed*"):
                for name in ("flags.json", "results.json"):
                    edited(run / name, epochs=own)
        edited(folder / "wake_only-seed2" / "results.json", epochs=149)

    text = report_of(tuple(epochs), (0, 1, 2), change=prolong)
    assert "After 50 epochs of the full model, and as many updates of the other encoders," in text
    assert "| What differs from the paper? | epochs 75 (the paper: 50); epochs 150 (the" in text
    assert "| PAD | 58.05 ± 0.17 % (3) | 58.25 ± 0.70 % (4) |" in text
    assert "| w/o REM (75 epochs) | 45.95 ± 0.17 % (3) |  |  |  |" in text
    assert "| Wake only (150 epochs) | 42.00 ± 0.15 % (2) |  |  |  |" in text
    early = "Wake only, seed 2 (not measured at epoch 50)"  # though that is its 49.7th of them
    assert f"| What is left out? | {early} |" in text
    assert re.search(r"REM raises linear separability \| holds", text)
