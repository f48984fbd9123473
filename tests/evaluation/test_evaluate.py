"""Tests of the evaluation's command line: runs in, table, results and pictures out."""

import csv
import dataclasses
import json
import shutil

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from ad_keras import data
from ad_keras.evaluate import main
from ad_keras.evaluation import features
from ad_keras.measures.latents import encode
from ad_keras.measures.neighbours import knn_accuracy
from ad_keras.measures.probe import linear_probe
from ad_keras.runs.config import Config

METRICS = "probe,logistic_probe,knn,occlusion,distances,pca,fid,kid,density_coverage"


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """A folder of images in two classes: bright above, and bright below."""
    folder = tmp_path_factory.mktemp("shapes")
    rng = np.random.default_rng(0)
    for split, count in (("train", 48), ("test", 46)):
        for name, rows in (("above", slice(0, 16)), ("below", slice(16, 32))):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 150, (32, 32, 3))
                pixels[rows] += 100
                Image.fromarray(pixels.astype(np.uint8)).save(
                    folder / split / name / f"{number:02}.png"
                )
    return folder


@pytest.fixture(scope="module")
def runs(shapes, tmp_path_factory):
    """Two finished runs of the same condition with other seeds, and their exports."""
    from ad_keras.runs.training import train

    folder = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        train(
            Config(
                dataset=str(shapes),
                base_filters=4,
                latent_dim=8,
                batch_size=16,
                epochs=2,
                seed=seed,
                dream_every=0,
                probe_every=0,
                run_dir=str(folder / f"seed{seed}"),
                saved_model_dir=str(folder / f"export{seed}"),
            )
        )
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def evaluated(outcome, cache):
    """Runs the command; its status, stdout and stderr."""

    def run(*arguments):
        return outcome(main, f"--cache_dir={cache}", *map(str, arguments))

    return run


@pytest.fixture(scope="module")
def single(runs, cache):
    """Everything of one run, evaluated once."""
    main(
        ["evaluate", f"--run_dir={runs / 'seed0'}", f"--cache_dir={cache}", f"--metrics={METRICS}"]
    )
    return json.loads((runs / "seed0" / "results.json").read_text())


@pytest.fixture
def copied_run(runs, tmp_path):
    """A copy of the first run, with the possibility to change its flags."""

    def copy(**changes):
        folder = tmp_path / "copy"
        shutil.copytree(runs / "seed0", folder)
        config = Config.from_json((folder / "flags.json").read_text())
        (folder / "flags.json").write_text(dataclasses.replace(config, **changes).to_json())
        return folder

    return copy


def test_results_are_those_of_the_public_functions(single, runs, shapes):
    from ad_keras.runs.restore import restore_run

    _, model = restore_run(runs / "seed0")
    train, test = (data.load(str(shapes), split) for split in ("train", "test"))
    latents = [encode(model.encoder, part.images) for part in (train, test)]
    probe = linear_probe(latents[0], train.labels, latents[1], test.labels, num_classes=2)
    metrics = single["metrics"]
    assert metrics["probe"]["values"]["trained"]["accuracy"] == probe.accuracy
    knn = knn_accuracy(latents[0], train.labels, latents[1], test.labels)
    assert metrics["knn"]["values"]["trained"] == knn
    mean = metrics["probe"]["values"]["trained"]["mean_of_seeds"]
    assert metrics["occlusion"]["values"]["tile_4"][0] == pytest.approx(mean)
    assert metrics["occlusion"]["values"]["tile_4"][-1] == 0.5


def test_untrained_encoder_is_that_of_the_same_seed(single, shapes, runs):
    from ad_keras.runs.build import build_model

    config = Config.from_json((runs / "seed0" / "flags.json").read_text())
    encoder = build_model(config).encoder
    train, test = (data.load(str(shapes), split) for split in ("train", "test"))
    expected = knn_accuracy(
        encode(encoder, train.images), train.labels, encode(encoder, test.images), test.labels
    )
    assert single["metrics"]["knn"]["values"]["untrained"] == expected


def test_every_figure_has_its_protocol(single):
    assert list(single["metrics"]) == METRICS.split(",")
    for entry in single["metrics"].values():
        assert entry["protocol"]["text"]
        assert entry["protocol"]["seed"] == 0
    for name in ("fid", "kid", "density_coverage"):
        assert "classifier" in single["metrics"][name]["protocol"]["features"]
        assert single["metrics"][name]["protocol"]["images"] == 48
        assert set(single["metrics"][name]["values"]) == {"early", "late", "test_images"}
    assert single["features"]["test_accuracy"] > 0.9
    assert (single["epochs"], single["step"], single["training_seed"]) == (2, 12, 0)


@pytest.mark.parametrize("name", ["occlusion", "confusion", "distances", "pca", "fid"])
def test_pictures_can_be_opened(single, runs, name):
    with Image.open(runs / "seed0" / "figures" / f"{name}.png") as picture:
        picture.load()
        assert min(picture.size) > 200
        assert len(set(picture.convert("L").tobytes())) > 2


def test_tensorboard_has_the_figures(single, runs):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = str(runs / "seed0" / "logs" / "evaluation")
    events = EventAccumulator(folder, size_guidance={"tensors": 0})  # 0: all, no sample
    events.Reload()
    (point,) = events.Tensors("evaluation/probe/trained/accuracy")
    expected = single["metrics"]["probe"]["values"]["trained"]["accuracy"]
    assert point.step == 2
    assert tf.make_ndarray(point.tensor_proto) == pytest.approx(expected)
    curve = events.Tensors("evaluation/occlusion/tile_4")
    assert [entry.step for entry in curve] == list(range(0, 101, 10))


def test_table_has_our_figures(single, evaluated, runs, tmp_path):
    status, printed, errors = evaluated(
        f"--run_dir={runs / 'seed0'}", "--metrics=knn,probe", f"--output_dir={tmp_path}"
    )
    assert (status, errors) == (0, "")
    accuracy = single["metrics"]["probe"]["values"]["trained"]["accuracy"]
    assert f"{100 * accuracy:.1f} %" in printed
    assert "linear probe (the paper's, SGD)" in printed
    assert "published" in printed
    assert str(tmp_path / "results.json") in printed
    again = json.loads((tmp_path / "results.json").read_text())["metrics"]
    assert again == {name: single["metrics"][name] for name in ("probe", "knn")}


def test_classifier_and_real_features_are_kept(single, evaluated, runs, tmp_path, monkeypatch):
    def refuse(*_):
        raise AssertionError("trained again")

    monkeypatch.setattr(features, "_train", refuse)
    arguments = (f"--run_dir={runs / 'seed0'}", "--metrics=fid", f"--output_dir={tmp_path}")
    assert evaluated(*arguments)[0] == 0
    again = json.loads((tmp_path / "results.json").read_text())["metrics"]["fid"]["values"]
    assert again["late"] == pytest.approx(single["metrics"]["fid"]["values"]["late"], rel=1e-3)


def test_repeated_runs_give_mean_and_standard_error(evaluated, runs, tmp_path):
    status, printed, errors = evaluated(
        f"--run_dir={runs / 'seed0'}",
        f"--run_dir={runs / 'seed1'}",
        "--metrics=knn,occlusion",
        f"--output_dir={tmp_path}",
    )
    assert (status, errors) == (0, "")
    combined = json.loads((tmp_path / "results.json").read_text())
    each = [json.loads((runs / f"seed{s}" / "results.json").read_text()) for s in (0, 1)]
    assert combined["training_seeds"] == [0, 1]
    values = [result["metrics"]["knn"]["values"]["trained"] for result in each]
    entry = combined["metrics"]["knn"]
    assert entry["mean"]["trained"] == pytest.approx(np.mean(values))
    assert entry["sem"]["trained"] == pytest.approx(np.std(values, ddof=1) / np.sqrt(2))
    assert "2 runs of full, epoch 2: mean +- standard error" in printed
    assert " +- " in printed
    assert (tmp_path / "figures" / "occlusion.png").is_file()


def test_an_export_is_measured_like_its_run(evaluated, runs, tmp_path):
    for number, source in enumerate(("--run_dir={}/seed1", "--export={}/export1")):
        status, _, errors = evaluated(
            source.format(runs), "--metrics=knn,pca", f"--output_dir={tmp_path / str(number)}"
        )
        assert (status, errors) == (0, "")
    of_run, of_export = (
        json.loads((tmp_path / name / "results.json").read_text())["metrics"]["knn"]["values"]
        for name in "01"
    )
    assert of_run == pytest.approx(of_export, abs=0.03)


def one_line(result, message):
    status, printed, errors = result
    assert (status, printed) == (2, "")
    assert message in errors
    assert errors.count("\n") == 1


def results_in(folder):
    return json.loads((folder / "results.json").read_text())


def test_an_unfinished_run_says_where_it_is_and_how_far_its_measuring_is(evaluated, copied_run):
    folder = copied_run(epochs=7)
    status, printed, errors = evaluated(f"--run_dir={folder}", "--metrics=knn,pca")
    assert (status, errors) == (0, "")
    assert f"{folder}: step 12, epoch 2 of 7\n[1/2] knn: nearest neighbours\n[2/2] pca" in printed
    found = results_in(folder)
    assert (found["epochs"], found["planned_epochs"], found["step"]) == (2, 7, 12)
    assert "epochs 2 (the paper: 50)" in found["differences"]


def test_an_epoch_that_is_kept_can_be_chosen(evaluated, copied_run):
    folder = copied_run()
    assert evaluated(f"--run_dir={folder}", "--metrics=knn", "--epoch=1")[0] == 0
    assert (results_in(folder)["epochs"], results_in(folder)["step"]) == (1, 6)
    status, _, errors = evaluated(f"--run_dir={folder}", "--metrics=knn", "--epoch=7")
    assert status == 1
    assert "the epochs kept are: 1, 2" in errors


def test_a_damaged_checkpoint_is_not_what_the_results_are_labelled_with(evaluated, copied_run):
    folder = copied_run()
    for part in (folder / "checkpoints" / "recent").glob("step-12.data*"):
        part.write_bytes(b"")
    status, printed, _ = evaluated(f"--run_dir={folder}", "--metrics=knn")
    assert status == 0
    assert "step-12 is damaged" in printed
    assert (results_in(folder)["epochs"], results_in(folder)["step"]) == (1, 6)


def test_runs_at_different_epochs_have_no_mean(evaluated, copied_run, runs):
    folder = copied_run()
    for part in (folder / "checkpoints" / "recent").glob("step-12.*"):
        part.unlink()
    result = evaluated(f"--run_dir={runs / 'seed1'}", f"--run_dir={folder}", "--metrics=knn")
    one_line(result, f"{runs / 'seed1'} is at epoch 2, {folder} is at epoch 1: choose one")


def test_what_is_not_measured_again_stays(evaluated, copied_run):
    folder = copied_run()
    (folder / "results.json").unlink(missing_ok=True)
    assert evaluated(f"--run_dir={folder}", "--metrics=pca,distances")[0] == 0
    before, picture = results_in(folder), folder / "figures" / "pca.png"
    content = picture.read_bytes()
    assert evaluated(f"--run_dir={folder}", "--metrics=knn")[0] == 0
    after = results_in(folder)["metrics"]
    assert list(after) == ["knn", "distances", "pca"]
    assert {name: after[name] for name in before["metrics"]} == before["metrics"]
    assert picture.read_bytes() == content
    # Of other weights, they do not.
    status, printed, _ = evaluated(f"--run_dir={folder}", "--metrics=knn", "--epoch=1")
    assert status == 0
    assert "distances, pca dropped, measured of other weights" in printed
    assert list(results_in(folder)["metrics"]) == ["knn"]
    assert not picture.exists()


def test_results_of_other_labels_are_not_kept_and_not_read_from_the_cache(
    evaluated, copied_run, shapes, tmp_path
):
    folder, other = copied_run(), tmp_path / "other"
    shutil.copytree(shapes, other)
    moved, names = other / "test" / "moved", ("above", "below")
    for old, new in zip((names[0], names[1], "moved"), ("moved", *names), strict=True):
        (other / "test" / old).rename(moved if new == "moved" else other / "test" / new)
    arguments = (f"--run_dir={folder}", "--metrics=probe", "--probe_seeds=1")
    assert evaluated(*arguments, f"--dataset={shapes}")[0] == 0
    first = results_in(folder)["metrics"]["probe"]["values"]["pixels"]["accuracy"]
    assert evaluated(*arguments, f"--dataset={other}")[0] == 0
    swapped = results_in(folder)["metrics"]["probe"]["values"]["pixels"]["accuracy"]
    assert first > 0.9
    assert swapped == pytest.approx(1 - first)


def test_every_figure_is_a_line_of_the_csv(evaluated, runs, tmp_path):
    arguments = [f"--run_dir={runs / name}" for name in ("seed0", "seed1")]
    assert evaluated(*arguments, "--metrics=knn", f"--output_dir={tmp_path}")[0] == 0
    with open(tmp_path / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    rows = [row for row in rows if (row["metric"], row["of"]) == ("knn", "trained")]
    values = results_in(tmp_path)["metrics"]["knn"]["values"]
    assert [(row["run"], row["seed"]) for row in rows] == [("seed0", "0"), ("seed1", "1")]
    assert [float(row["value"]) for row in rows] == [value["trained"] for value in values]
    assert all("majority of the nearest" in row["protocol"] for row in rows)


def test_results_of_an_export_lie_beside_it(evaluated, runs):
    before = sorted((runs / "export0").iterdir())
    assert evaluated(f"--export={runs / 'export0'}", "--metrics=pca")[0] == 0
    assert sorted((runs / "export0").iterdir()) == before
    assert (runs / "export0-evaluation" / "figures" / "pca.png").is_file()


def test_an_export_of_an_unfinished_run_is_measured_as_such(evaluated, copied_run, tmp_path):
    from ad_keras.export import main as export

    folder, exported = copied_run(epochs=5), tmp_path / "export"
    export(["export", f"--run_dir={folder}", f"--saved_model_dir={exported}"])
    _, out, _ = evaluated(f"--export={exported}", "--metrics=pca", f"--output_dir={tmp_path}")
    assert f"{exported}: step 12, epoch 2 of 5" in out
    result = results_in(tmp_path)
    assert (result["epochs"], result["planned_epochs"], result["step"]) == (2, 5, 12)


def test_runs_of_other_conditions_are_refused(evaluated, copied_run, runs):
    folder = copied_run(kl_weight=0.5)
    result = evaluated(f"--run_dir={runs / 'seed1'}", f"--run_dir={folder}")
    one_line(result, "not seeds of one condition: --kl_weight is 1.0 and 0.5")


def test_the_same_seed_twice_is_refused(evaluated, copied_run, runs):
    result = evaluated(f"--run_dir={runs / 'seed0'}", f"--run_dir={copied_run()}")
    one_line(result, "have the same --seed=0")


def test_data_without_labels_name_the_metrics_that_need_them(evaluated, runs, shapes, tmp_path):
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        for file in sorted((shapes / split / "above").iterdir())[:24]:
            shutil.copy(file, tmp_path / split)
    arguments = (f"--run_dir={runs / 'seed0'}", f"--dataset={tmp_path}")
    one_line(
        evaluated(*arguments),
        "which probe, logistic_probe, ridge_probe, epochs, knn, occlusion, distances need",
    )
    assert evaluated(*arguments, "--metrics=pca", f"--output_dir={tmp_path}")[0] == 0
    result = evaluated(*arguments, "--metrics=fid", f"--output_dir={tmp_path}")
    one_line(result, "--features=inception")


def test_a_class_with_too_few_images_is_named(evaluated, runs, shapes, tmp_path):
    shutil.copytree(shapes, tmp_path / "few")
    (tmp_path / "few" / "test" / "below" / "00.png").unlink()
    result = evaluated(f"--run_dir={runs / 'seed0'}", f"--dataset={tmp_path / 'few'}")
    one_line(result, "class 'below' has 45 test images, too few for the 1000 pairs")


def test_inception_without_network_says_how_to_get_it(evaluated, runs, monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr(features, "reachable", lambda address: False)
    result = evaluated(f"--run_dir={runs / 'seed0'}", "--metrics=fid", "--features=inception")
    one_line(result, "--inception_weights=PATH, or use --features=classifier")
