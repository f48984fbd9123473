"""Tests of the reproduction: runs reused and continued, measured, and a whole report of them."""

import dataclasses
import json
import os
import re
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from ad_keras import PAD
from ad_keras.cli import interruptible
from ad_keras.errors import Interrupted, RunError, UsageError
from ad_keras.evaluation import features, suite
from ad_keras.reproduce import main
from ad_keras.reproduction import report, runs
from ad_keras.reproduction.config import ReproduceConfig
from ad_keras.runs.build import build_model
from ad_keras.runs.config import Config

RUNS = ("shapes", "shapes-no_rem")


@pytest.fixture(scope="module", autouse=True)
def cheap():
    """Without what takes longest: tracing, many steps, a classifier's fit, probes of pixels."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PAD, "run_eagerly", property(lambda _: True, lambda *_: None))
        patch.setattr(runs, "_WARM_UP_STEPS", 1)
        patch.setattr(runs, "_TIMED_STEPS", 1)
        patch.setattr(suite, "TILES", (4,))
        patch.setattr(features, "_train", lambda *_: None)
        patch.setattr(suite.Suite, "_pixels", lambda *_, **__: {"accuracy": 0.875})
        yield


@pytest.fixture(scope="module")
def workplace(cheap, shapes, tmp_path_factory):
    """A folder with a data set of two classes, and a run without REM that is half done."""
    folder = tmp_path_factory.mktemp("reproduction")
    shutil.copytree(shapes, folder / "shapes")
    runs.train(reproduction(folder, epochs=1).run_config("no_rem", 0))
    return folder


def reproduction(folder: Path, **changes) -> ReproduceConfig:
    settings = {
        **{"dataset": str(folder / "shapes"), "conditions": ("full", "no_rem"), "epochs": 2},
        **{"base_filters": 4, "latent_dim": 8, "batch_size": 48, "probe_every": 0},
        **{"num_dreams": 50, "probe_seeds": 2, "runs_dir": str(folder / "runs")},
        **{"saved_models_dir": str(folder / "exports"), "cache_dir": str(folder / "cache")},
    }
    return ReproduceConfig(**{**settings, **changes})


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path): (path.stat().st_mtime_ns, path.stat().st_size)
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def dry(workplace):
    """What a dry run says before anything else is done, and whether it left the folder alone."""
    before = snapshot(workplace)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "seconds_of_measuring", lambda *_: 5400.0)
        text = runs.estimate(reproduction(workplace))
    return text, before == snapshot(workplace)


@pytest.fixture(scope="module")
def reproduced(workplace, dry):
    """The folder of a report, and the state of the files of the epoch that was there before."""
    kept = workplace / "runs" / "shapes-no_rem" / "checkpoints" / "epochs"
    first_epoch = {name: state for name, state in snapshot(kept).items() if "epoch-1." in name}
    command = "python -m ad_keras.reproduce --some=<flags>"
    return runs.reproduce(reproduction(workplace), command), first_epoch


@pytest.fixture
def reported(monkeypatch):
    """What reports were to be written of, in place of the reports."""
    asked = []
    monkeypatch.setattr(runs, "write_report", lambda *arguments: asked.append(arguments))
    return asked


def test_dry_run_tells_what_is_to_be_done_and_writes_nothing(dry):
    text, untouched = dry
    assert untouched
    lines = [re.split(r"\s{2,}", line.strip()) for line in text.splitlines() if line]
    assert lines[0] == ["run", "seed", "state", "steps", "training", "measuring"]
    assert lines[1][1:4] == ["0", "new", "4"]
    assert lines[2][1:4] == ["0", "continues from epoch 1", "2"]
    assert lines[3][:2] == ["total", "6"]
    assert [line[-1] for line in lines[1:4]] == ["1 h 30 min", "1 h 30 min", "3 h 00 min"]
    assert lines[4][0].startswith("In all 3 h ")


def test_measuring_is_timed_on_some_images_and_taken_for_all(workplace, monkeypatch):
    asked = []

    def measure(suite, metrics):
        asked.append(metrics)
        time.sleep(0.3 if len(asked) == 1 else 0.1)  # the first time is not counted

    monkeypatch.setattr(runs.Suite, "measure", measure)
    monkeypatch.setattr(runs, "_TIMED_IMAGES", 47)
    flags = reproduction(workplace)
    seconds = runs.seconds_of_measuring(flags, *runs._check_data(flags, ()))
    assert 0.2 <= seconds < 0.25  # of 94 images of 188
    assert {"probe", "occlusion", "fid"} <= set(asked[1])


def test_times_are_of_hours_and_minutes():
    told = [runs._duration(seconds) for seconds in (0, 20, 59.6 * 60, 4000, 10799)]
    assert told == ["-", "under 1 min", "1 h 00 min", "1 h 07 min", "3 h 00 min"]


def test_an_unfinished_run_is_continued_not_begun_again(reproduced, workplace):
    _, first_epoch = reproduced
    assert len(first_epoch) == 2
    assert first_epoch.items() <= snapshot(workplace / "runs" / "shapes-no_rem").items()
    for name in RUNS:
        history = json.loads((workplace / "runs" / name / "history.json").read_text())
        assert set(history) == {"0", "1", "2"}
        assert (workplace / "exports" / name / "metadata.json").is_file()


def test_an_export_of_fewer_epochs_is_not_that_of_the_finished_run(reproduced, workplace):
    file = workplace / "exports" / "shapes" / "metadata.json"
    kept = file.read_text()
    file.write_text(json.dumps({**json.loads(kept), "epochs": 1}))
    states = [run.state for run in runs.plan(reproduction(workplace))]
    file.write_text(kept)
    assert states == ["trained, to be exported", "finished"]


def test_an_export_of_an_earlier_run_of_the_same_name_is_not_that_of_the_finished_run(
    reproduced, workplace
):
    file = workplace / "exports" / "shapes" / "metadata.json"
    kept = file.stat().st_mtime_ns
    os.utime(file, ns=(0, 0))
    states = [run.state for run in runs.plan(reproduction(workplace))]
    os.utime(file, ns=(kept, kept))
    assert states == ["trained, to be exported", "finished"]


def test_a_damaged_run_is_trained_again(reproduced, workplace, monkeypatch, tmp_path):
    shutil.copytree(workplace / "runs" / "shapes", tmp_path / "shapes")
    flags, done = reproduction(workplace, runs_dir=str(tmp_path), probe_seeds=1), []
    monkeypatch.setattr(runs, "train", lambda config: done.append("trained"))

    def measure(_):
        done.append("measured")
        return {"epochs": 1, "data": "these"}, ""

    monkeypatch.setattr(runs, "evaluate", measure)
    config = flags.run_config("full", 0)
    runs._measured(flags, config, "these")
    assert done == ["measured", "trained", "measured"]
    with pytest.raises(UsageError, match="in its own --data_dir, which are not those"):
        runs._measured(flags, config, "others")


def test_finished_runs_and_their_measurements_are_reused(
    reproduced, workplace, success, reported, tmp_path
):
    before = snapshot(workplace)
    printed = success(main, reproduction(workplace, output_dir=str(tmp_path / "again")))
    ((measured, folder, _, failed),) = reported
    assert (len(measured), folder, failed) == (2, tmp_path / "again", [])
    assert printed.count(": finished") == 2
    assert ": measuring" not in printed
    assert snapshot(workplace) == before


def test_results_are_only_reused_of_the_same_settings_data_weights_and_versions(
    reproduced, workplace, monkeypatch
):
    config = reproduction(workplace).run_config("full", 0)

    def reused(content=None, **changes):
        flags = reproduction(workplace, **changes)
        return runs._is_measured(flags, config, content or content_of(flags))

    def content_of(flags):
        return runs.joblib.hash(runs._check_data(flags, ()))

    assert reused()
    assert reused(data_dir="elsewhere", cache_dir="elsewhere")
    assert not reused(num_dreams=40)
    assert not reused(probe_seeds=1)
    train_set, test_set = runs._check_data(reproduction(workplace), ())
    for part in (train_set, test_set):
        for array in (part.images, part.labels):
            before = array.flat[0]
            array.flat[0] = before ^ 1
            assert not reused(runs.joblib.hash((train_set, test_set)))
            array.flat[0] = before
    assert reused(runs.joblib.hash((train_set, test_set)))
    (state,) = config.run_path.glob("checkpoints/recent/step-4.data*")
    kept, times = state.read_bytes(), state.stat()
    state.write_bytes(kept[:-1] + b"x")
    assert not reused()
    state.write_bytes(kept)
    os.utime(state, ns=(times.st_atime_ns, times.st_mtime_ns))
    results = config.run_path / "results.json"
    kept = results.read_text()
    results.write_text(kept.replace("full", "fool", 1))
    assert not reused()
    results.write_text(kept)
    assert reused()
    monkeypatch.setattr("importlib.metadata.version", lambda name: "99")
    assert not reused()


def test_dreams_compared_in_other_features_than_the_newest_are_measured_again(
    reproduced, workplace, reported, monkeypatch, tmp_path
):
    measured = []
    monkeypatch.setattr(runs, "_check_data", lambda flags, planned: ())

    def measure(flags, config, content):
        measured.append(config.condition)
        return "old" if config.condition == "full" and measured.count("full") == 1 else "new"

    monkeypatch.setattr(runs, "_measured", measure)
    copy = tmp_path / "runs"
    shutil.copytree(workplace / "runs", copy, ignore=shutil.ignore_patterns("logs"))
    os.utime(copy / "shapes" / "measured.json", (1, 1))
    monkeypatch.setattr(runs, "train", lambda config: None)  # which would only export
    places = {"runs_dir": str(copy), "saved_models_dir": str(tmp_path)}
    runs.reproduce(reproduction(workplace, **places), "command")
    assert measured == ["full", "no_rem", "full"]


@pytest.mark.parametrize("failure", [RunError, UsageError])
def test_a_run_that_fails_is_told_and_the_others_are_reported(
    failure, reproduced, workplace, outcome, refusal, reported, monkeypatch, tmp_path
):
    def diverge(config):
        raise failure(f"the run in {config.run_path} diverged.")

    monkeypatch.setattr(runs, "train", diverge)
    config = reproduction(
        workplace, conditions=("wake_only", "full"), output_dir=str(tmp_path / "report")
    )
    status, printed, errors = outcome(main, config)
    assert status == 1
    assert errors.count("\n") == 1
    assert "shapes-wake_only diverged" in errors
    assert f"The report in {tmp_path / 'report'} is of the others" in errors
    assert "shapes-wake_only failed: " in printed
    ((measured, _, _, (told,)),) = reported
    assert len(measured) == 1
    assert "diverged" in told
    alone = dataclasses.replace(config, conditions=("wake_only",))
    assert "The report" not in refusal(main, alone, status=1)


def test_the_report_shows_dreams_early_and_late_and_what_differs(reproduced, workplace):
    text = (reproduced[0] / "report.md").read_text()
    assert "(pictures/dreams_epoch_1.png)" in text
    assert "(pictures/dreams_epoch_2.png)" in text
    assert "(pictures/pca.png)" in text
    assert "epochs 2 (the paper: 50)" in text
    assert "base_filters 4 (the paper: 64)" in text
    assert "58.25" not in text
    assert "--some=<flags>" in text
    assert "--some=&lt;flags&gt;" in (reproduced[0] / "report.html").read_text()
    metrics = json.loads((workplace / "runs" / "shapes" / "results.json").read_text())["metrics"]
    mean = metrics["probe"]["values"]["trained"]["mean_of_seeds"]
    assert f"| PAD | {100 * mean:.2f} % (1) |" in text


def test_pictures_of_dreams_are_of_the_epoch_they_name(reproduced, workplace):
    sheets = {epoch: report.dream_sheets(workplace / "runs" / "shapes", epoch) for epoch in (1, 2)}
    assert list(sheets[1]) == [1]
    assert list(sheets[2]) == [1, 2]
    assert sheets[1][1] == sheets[2][1] != sheets[2][2]


def test_a_report_does_without_pictures_of_dreams(reproduced, workplace, monkeypatch, tmp_path):
    def missing(*_, **__):
        raise UsageError("the images are not here.")

    monkeypatch.setattr(report.data, "load", missing)
    report.write_report(report.read_runs([workplace / "runs" / "shapes"]), tmp_path, "command")
    text = (tmp_path / "report.md").read_text()
    assert "| What is left out? | pictures of dreams (the images are not here) |" in text
    assert "dreams_epoch" not in text


def test_runs_are_named_as_training_names_them():
    config = ReproduceConfig(dataset="synth_digits/50k")
    assert config.run_config("full", 0).run_path == Path("runs/synth_digits_50k")
    other = config.run_config("no_rem", 3)
    assert other.run_path == Path("runs/synth_digits_50k-no_rem-seed3")
    assert other.export_path == Path("saved_models/synth_digits_50k-no_rem-seed3")
    assert (other.condition, other.seed) == ("no_rem", 3)
    assert config.report_path == Path("runs/synth_digits_50k-report")
    train = Config(dataset="synth_digits/50k", **{"phases": ("wake", "rem")})
    assert config.run_config("no_nrem", 0).run_path == train.run_path


def test_flags_of_networks_and_of_their_training_apply_to_every_run():
    changes = {"network": "residual", "schedule": "cosine", "warmup_epochs": 2.0}
    changes |= {"average_weights": 0.9, "clip_norm": 10.0, "encoder_learning_rate": 3e-4}
    changes |= {"generator_learning_rate": 1e-4}
    flags = ReproduceConfig(**changes)
    for condition in flags.conditions:
        config = flags.run_config(condition, 0)
        assert {name: getattr(config, name) for name in changes} == changes
        assert config.condition == condition


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base_filters": 8}, "holds a run with other flags: --base_filters was 4 and is 8"),
        ({"base_filters": 8}, "another --runs_dir for a new run, or delete its folder."),
        ({"epochs": 1}, "is at step 4, beyond the 1 epochs that are wanted"),
        ({"runs_dir": "others"}, "is the export of another run, "),
        ({"batch_size": 97, "conditions": ("no_nrem",)}, "--batch_size=97 is more than the 96"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_trained(
    reproduced, workplace, refusal, changes, message
):
    before = snapshot(workplace)
    for dry_run in (False, True):
        config = reproduction(workplace, dry_run=dry_run, **changes)
        assert message in refusal(main, config)
    assert snapshot(workplace) == before


def test_finished_runs_of_other_images_are_refused(reproduced, workplace, refusal):
    first, second, *_ = sorted((workplace / "shapes" / "train" / "above").iterdir())
    kept = first.read_bytes()
    first.write_bytes(second.read_bytes())
    before = snapshot(workplace)
    try:
        for dry_run in (False, True):
            error = refusal(main, reproduction(workplace, dry_run=dry_run))
            assert "shapes was begun with 96 images of " in error
            assert "but now they are not the same" in error
            assert "another --runs_dir for a new run, or delete its folder." in error
        assert snapshot(workplace) == before
    finally:
        first.write_bytes(kept)


def test_images_without_labels_are_refused(workplace, tmp_path, refusal):
    for split in ("train", "test"):
        (tmp_path / "plain" / split).mkdir(parents=True)
        for file in sorted((workplace / "shapes" / split / "above").iterdir())[:20]:
            (tmp_path / "plain" / split / file.name).write_bytes(file.read_bytes())
    config = reproduction(workplace, dataset=str(tmp_path / "plain"), runs_dir=str(tmp_path / "r"))
    error = refusal(main, config)
    assert "has no labels, which the paper's measurements need" in error
    assert not (tmp_path / "r").exists()


def test_inception_that_is_not_reached_is_told_before_anything_is_trained(
    workplace, tmp_path, refusal, monkeypatch
):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr("ad_keras.evaluation.features.reachable", lambda address: False)
    config = reproduction(workplace, features="inception", conditions=("no_nrem",))
    assert "Inception's weights are not here" in refusal(main, config)
    assert not config.run_config("no_nrem", 0).run_path.exists()


def test_an_interruption_is_told_and_leaves_the_handlers_as_they_were():
    before = signal.getsignal(signal.SIGTERM)
    told = pytest.raises(Interrupted, match="SIGTERM: what is finished is kept")
    with told as caught, interruptible():
        signal.raise_signal(signal.SIGTERM)
    assert caught.value.exit_status == 143
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("condition", ["full", "no_rem", "no_nrem", "wake_only"])
def test_equal_updates_give_each_condition_the_full_models_number_of_encoder_updates(condition):
    flags = ReproduceConfig(equal_updates=True, epochs=50)
    config, plain = (each.run_config(condition, 1) for each in (flags, ReproduceConfig(epochs=50)))
    model = build_model(dataclasses.replace(config, base_filters=2, latent_dim=2, batch_size=2))
    model.train_step(np.zeros((2, 32, 32, 3), np.uint8))
    assert config.epochs * int(model.encoder_optimizer.iterations) == 3 * 50
    own = "" if condition == "full" else "-equal_updates"
    assert config.run_path.name == plain.run_path.name.replace("-seed1", f"{own}-seed1")
    assert flags.report_path.name == "synth_digits-equal_updates-report"
