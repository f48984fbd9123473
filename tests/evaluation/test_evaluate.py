"""Tests of the evaluation's command line: runs in, table, results and pictures out."""

import csv
import dataclasses
import functools
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from ad_keras import PAD, data, load_encoder
from ad_keras.errors import Interrupted
from ad_keras.evaluate import main
from ad_keras.evaluation import features, suite
from ad_keras.measures.latents import encode
from ad_keras.measures.neighbours import knn_accuracy
from ad_keras.runs.build import build_model
from ad_keras.runs.config import Config
from ad_keras.runs.restore import restore_run
from ad_keras.runs.training import train

METRICS = "probe,knn,occlusion,distances,pca,fid,kid,density_coverage"


@pytest.fixture(scope="module")
def runs(shapes, tiny, tmp_path_factory):
    """Two finished runs of the same condition with other seeds, and the export of the second."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:  # tracing takes longer than four steps
        patch.setattr(PAD, "run_eagerly", property(lambda _: True, lambda *_: None))
        for seed in (0, 1):
            changes = {"seed": seed, "batch_size": 48, "run_dir": str(folder / f"seed{seed}")}
            train(tiny(folder, dataset=str(shapes), **changes), export=seed == 1)
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def evaluated(success, cache):
    """Runs the command: what it prints."""
    return functools.partial(success, main, f"--cache_dir={cache}", "--probe_seeds=2")


@pytest.fixture(scope="module")
def single(runs, cache):
    """Everything of one run, evaluated once."""
    folder = runs / "seed0"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features, "_train", lambda *_: None)  # features of any network will do
        patch.setattr(suite, "TILES", (4,))
        flags = (f"--run_dir={folder}", f"--cache_dir={cache}", f"--metrics={METRICS}")
        main(["evaluate", *flags, "--probe_seeds=2"])
    return results_in(folder)


@pytest.fixture
def copied_run(runs, tmp_path):
    """A copy of a run with other flags, which a second call changes again."""

    def copy(name="seed0", **changes):
        folder = tmp_path / name
        if not folder.exists():
            shutil.copytree(runs / name, folder)
        config = Config.from_json((folder / "flags.json").read_text())
        (folder / "flags.json").write_text(dataclasses.replace(config, **changes).to_json())
        return folder

    return copy


@pytest.fixture
def neighbours(shapes):
    """The accuracy of the nearest neighbours in the latents of an encoder."""
    train, test = (data.load(str(shapes), split) for split in ("train", "test"))

    def accuracy(encoder):
        latents, of_test = (encode(encoder, part.images) for part in (train, test))
        return knn_accuracy(latents, train.labels, of_test, test.labels)

    return accuracy


def results_in(folder):
    return json.loads((folder / "results.json").read_text())


def test_results_are_of_the_restored_encoder_and_of_that_of_the_same_seed(single, runs, neighbours):
    config, model = restore_run(runs / "seed0")
    assert single["metrics"]["knn"]["values"] == {
        "trained": neighbours(model.encoder),
        "untrained": neighbours(build_model(config).encoder),
    }


def test_every_figure_has_its_protocol(single):
    assert list(single["metrics"]) == METRICS.split(",")
    for entry in single["metrics"].values():
        assert entry["protocol"]["text"]
        assert entry["protocol"]["seed"] == 0
    for name in ("fid", "kid", "density_coverage"):
        assert "classifier" in single["metrics"][name]["protocol"]["features"]
        assert single["metrics"][name]["protocol"]["images"] == 48
        assert set(single["metrics"][name]["values"]) == {"early", "late", "test_images"}
    assert (single["epochs"], single["step"], single["training_seed"]) == (2, 4, 0)
    assert (single["precision"], single["chance"]) == ("float32", 0.5)


def test_pictures_can_be_opened_and_tensorboard_has_the_figures(single, runs):
    for name in ("occlusion", "confusion", "distances", "pca", "fid"):
        with Image.open(runs / "seed0" / "figures" / f"{name}.png") as picture:
            picture.load()
            assert min(picture.size) > 200
            assert len(set(picture.convert("L").tobytes())) > 2
    (events,) = (runs / "seed0" / "logs" / "evaluation").glob("events.*")
    assert b"evaluation/probe/trained/accuracy" in events.read_bytes()


def test_table_has_our_figures_and_the_classifier_and_real_features_are_kept(
    single, evaluated, runs, tmp_path, monkeypatch
):
    def refuse(*_):
        raise AssertionError("trained again")

    monkeypatch.setattr(features, "_train", refuse)
    (events,) = (runs / "seed0" / "logs" / "evaluation").iterdir()
    printed = evaluated(
        f"--run_dir={runs / 'seed0'}", "--metrics=fid,knn,probe", f"--output_dir={tmp_path}"
    )
    accuracy = single["metrics"]["probe"]["values"]["trained"]["accuracy"]
    assert f"{100 * accuracy:.1f} %" in printed
    assert "linear probe (the paper's, SGD)" in printed
    assert "published" in printed
    assert str(tmp_path / "results.json") in printed
    again, before = results_in(tmp_path)["metrics"], single["metrics"]
    assert again.pop("fid")["values"]["late"] == pytest.approx(
        before["fid"]["values"]["late"], rel=1e-3
    )
    assert again == {name: before[name] for name in ("probe", "knn")}
    assert events.exists()  # with all figures, where all are
    assert len([*(tmp_path / "logs" / "evaluation").iterdir()]) == 1


def test_for_choices_the_images_that_training_can_leave_out_replace_the_test_images(
    evaluated, refusal, runs, copied_run, shapes
):
    folder = copied_run("seed1", train_examples=90)
    before = {file.name: file.read_bytes() for file in folder.glob("results.*")}
    printed = evaluated(f"--run_dir={folder}", "--held_out", "--metrics=knn")
    assert "measured on held-out training images" in printed
    train, rows = data.load(str(shapes), "train"), data.validation_split(90, 1)
    latents = encode(restore_run(folder)[1].encoder, train.images)
    fitted, scored = ((latents[part], train.labels[part]) for part in rows)
    found = results_in(folder / "held_out")
    assert found["held_out"] is True
    assert found["metrics"]["knn"]["values"]["trained"] == knn_accuracy(*fitted, *scored)
    assert found["metrics"]["knn"]["protocol"]["test_images"] == 9
    assert {file.name: file.read_bytes() for file in folder.glob("results.*")} == before
    arguments = (f"--run_dir={folder}", "--held_out")
    assert "is for one run" in refusal(main, *arguments, f"--run_dir={runs / 'seed0'}")
    assert f"--dataset={shapes}" in refusal(main, *arguments, "--dataset=synth_digits")
    copied_run("seed1", hold_out=True)  # which it did not
    assert "was trained on some of the images" in refusal(main, *arguments)


def test_repeated_runs_give_mean_and_standard_error_and_a_line_of_the_csv_each(
    evaluated, runs, tmp_path
):
    (tmp_path / "figures").mkdir()
    for name in ("layers", "mine"):  # the former of an earlier evaluation
        (tmp_path / "figures" / f"{name}.png").touch()
    arguments = [f"--run_dir={runs / name}" for name in ("seed0", "seed1")]
    printed = evaluated(*arguments, "--metrics=knn", f"--output_dir={tmp_path}")
    kept = {path.name for path in (tmp_path / "figures").iterdir()}
    assert "mine.png" in kept
    assert "layers.png" not in kept
    combined = results_in(tmp_path)
    assert combined["training_seeds"] == [0, 1]
    values = [results_in(runs / f"seed{s}")["metrics"]["knn"]["values"] for s in (0, 1)]
    entry, trained = combined["metrics"]["knn"], [each["trained"] for each in values]
    assert entry["values"] == values
    assert entry["mean"]["trained"] == pytest.approx(np.mean(trained))
    assert entry["sem"]["trained"] == pytest.approx(np.std(trained, ddof=1) / np.sqrt(2))
    assert "2 runs of full, epoch 2, float32: mean +- standard error" in printed
    assert " +- " in printed
    with open(tmp_path / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    rows = [row for row in rows if (row["metric"], row["of"]) == ("knn", "trained")]
    assert [(row["run"], row["seed"]) for row in rows] == [("seed0", "0"), ("seed1", "1")]
    assert [float(row["value"]) for row in rows] == trained
    assert all("majority of the nearest" in row["protocol"] for row in rows)


def test_an_export_of_an_unfinished_run_is_measured_as_such_and_like_its_run(
    evaluated, refusal, runs, neighbours, tmp_path
):
    folder = tmp_path / "export"
    shutil.copytree(runs / "export", folder)
    shutil.rmtree(folder / "generator")  # as of the encoder that a clone has
    needed = f"{folder} has no generator, which kid, density_coverage need"
    assert needed in refusal(main, f"--export={folder}", "--metrics=kid,knn,density_coverage")
    error = refusal(main, f"--export={folder}", f"--output_dir={folder}")
    assert "is the folder of --export, which the next export replaces" in error
    metadata = json.loads((folder / "metadata.json").read_text())
    metadata["flags"]["epochs"] = 5
    (folder / "metadata.json").write_text(json.dumps(metadata))
    before = sorted(folder.iterdir())
    printed = evaluated(f"--export={folder}", "--metrics=knn,pca")
    assert f"{folder}: step 4, epoch 2 of 5" in printed
    assert sorted(folder.iterdir()) == before
    beside = tmp_path / "export-evaluation"
    assert (beside / "figures" / "pca.png").is_file()
    found = results_in(beside)
    assert (found["epochs"], found["planned_epochs"], found["step"]) == (2, 5, 4)
    expected = neighbours(restore_run(runs / "seed1")[1].encoder)
    assert found["metrics"]["knn"]["values"]["trained"] == pytest.approx(expected, abs=0.03)


def test_an_unfinished_run_says_where_it_is_and_how_far_its_measuring_is(evaluated, copied_run):
    folder = copied_run(epochs=7)
    printed = evaluated(f"--run_dir={folder}", "--metrics=knn,pca")
    assert f"{folder}: step 4, epoch 2 of 7\n[1/2] knn: nearest neighbours\n[2/2] pca" in printed
    found = results_in(folder)
    assert (found["epochs"], found["planned_epochs"], found["step"]) == (2, 7, 4)
    assert "epochs 2 (the paper: 50)" in found["differences"]


def test_a_damaged_checkpoint_is_not_what_the_results_are_labelled_with(evaluated, copied_run):
    folder = copied_run()
    for part in (folder / "checkpoints" / "recent").glob("step-4.data*"):
        part.write_bytes(b"")
    printed = evaluated(f"--run_dir={folder}", "--metrics=knn")
    assert "step-4 is damaged" in printed
    assert (results_in(folder)["epochs"], results_in(folder)["step"]) == (1, 2)


def test_an_earlier_epoch_that_is_damaged_is_left_out(single, evaluated, copied_run):
    folder = copied_run()
    for part in (folder / "checkpoints" / "epochs").glob("epoch-1.data*"):
        part.write_bytes(b"")
    printed = evaluated(f"--run_dir={folder}", "--metrics=fid")
    assert "epoch-1 is damaged" in printed
    assert "It is left out." in printed
    assert set(results_in(folder)["metrics"]["fid"]["values"]) == {"late", "test_images"}


def test_a_signal_while_earlier_epochs_are_restored_is_no_damage(copied_run, outcome, monkeypatch):
    def restore(folder, epoch=None):
        if epoch:
            raise Interrupted("SIGINT", 130)
        return restore_run(folder)

    monkeypatch.setattr("ad_keras.evaluation.runs.restore_run", restore)
    status, printed, _ = outcome(main, f"--run_dir={copied_run()}", "--metrics=epochs")
    assert status == 130
    assert "left out" not in printed


def test_a_state_within_an_epoch_does_not_pass_for_an_end(evaluated, refusal, copied_run, runs):
    folder = copied_run()
    record = json.loads((folder / "data.json").read_text())
    (folder / "data.json").write_text(json.dumps(record | {"images": 144}))  # three steps an epoch
    assert "epoch 1.33333 of 2" in evaluated(f"--run_dir={folder}", "--metrics=knn")
    found = results_in(folder)
    assert (found["epochs"], found["step"]) == (pytest.approx(4 / 3, abs=1e-5), 4)
    assert "epochs 1.33333 (the paper: 50)" in found["differences"]
    error = refusal(main, f"--run_dir={runs / 'seed1'}", f"--run_dir={folder}", "--metrics=knn")
    assert f"{folder} is at epoch 1.33333: choose one" in error


def test_runs_at_different_epochs_have_no_mean(refusal, copied_run, runs):
    folder = copied_run()
    for part in (folder / "checkpoints" / "recent").glob("step-4.*"):
        part.unlink()
    error = refusal(main, f"--run_dir={runs / 'seed1'}", f"--run_dir={folder}", "--metrics=knn")
    assert f"{runs / 'seed1'} is at epoch 2, {folder} is at epoch 1: choose one" in error


def test_what_is_not_measured_again_stays_unless_epoch_or_data_are_others(
    single, evaluated, refusal, copied_run, shapes, tmp_path
):
    folder = copied_run().rename(tmp_path / "renamed")
    picture = folder / "figures" / "pca.png"
    (folder / "results.json").write_text(json.dumps(single))
    content, old = picture.read_bytes(), picture.with_name("knn.csv")
    old.touch()
    evaluated(f"--run_dir={folder}", "--metrics=knn")
    assert not old.exists()
    assert results_in(folder)["metrics"] == single["metrics"]
    assert picture.read_bytes() == content
    printed = evaluated(f"--run_dir={folder}", "--metrics=knn", "--epoch=1")
    assert "fid, kid, density_coverage dropped, measured of other weights" in printed
    found = results_in(folder)
    assert list(found["metrics"]) == ["knn"]
    assert (found["epochs"], found["step"]) == (1, 2)
    assert not picture.exists()
    other = tmp_path / "other"
    shutil.copytree(shapes, other)
    (other / "test" / "above" / "00.png").unlink()
    arguments = (f"--dataset={other}", "--metrics=pca", "--epoch=1")
    assert "knn dropped" in evaluated(f"--run_dir={folder}", *arguments)
    assert list(results_in(folder)["metrics"]) == ["pca"]
    error = refusal(main, f"--run_dir={folder}", "--metrics=knn", "--epoch=7")
    assert "the epochs kept are: 1, 2" in error


def test_what_was_measured_of_other_weights_is_dropped(evaluated, refusal, runs, tmp_path):
    folder, results = tmp_path / "export", tmp_path / "results"
    shutil.copytree(runs / "export", folder)
    arguments = (f"--export={folder}", f"--output_dir={results}")
    evaluated(*arguments, "--metrics=pca")
    evaluated(*arguments, "--metrics=knn")
    assert list(results_in(results)["metrics"]) == ["knn", "pca"]
    encoder = load_encoder(folder)  # as of a run that was trained again, all else being equal
    encoder.set_weights([1.01 * weight for weight in encoder.get_weights()])
    encoder.save(folder / "encoder.keras")
    assert "pca dropped, measured of other weights" in evaluated(*arguments, "--metrics=knn")
    assert list(results_in(results)["metrics"]) == ["knn"]
    error = refusal(main, *arguments, "--metrics=epochs", status=1)
    assert f"{folder} cannot be measured: of earlier epochs, none is kept" in error


def test_runs_of_other_conditions_or_the_same_seed_are_refused(refusal, copied_run, runs):
    folder = copied_run(kl_weight=0.5)
    error = refusal(main, f"--run_dir={runs / 'seed1'}", f"--run_dir={folder}")
    assert "not seeds of one condition: --kl_weight is 1.0 and 0.5" in error
    assert "have the same --seed=0" in refusal(main, *[f"--run_dir={runs / 'seed0'}"] * 2)


def test_data_without_labels_name_the_metrics_that_need_them(
    evaluated, refusal, runs, shapes, tmp_path
):
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        for file in sorted((shapes / split / "above").iterdir())[:24]:
            shutil.copy(file, tmp_path / split)
    arguments = (f"--run_dir={runs / 'seed0'}", f"--dataset={tmp_path}")
    needed = "which probe, logistic_probe, ridge_probe, epochs, knn, occlusion, distances need"
    assert needed in refusal(main, *arguments)
    evaluated(*arguments, "--metrics=pca", f"--output_dir={tmp_path}")
    assert "--features=inception" in refusal(main, *arguments, "--metrics=fid")
