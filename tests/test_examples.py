"""The examples run, and do what they say."""

import importlib.util
import json
import re
from pathlib import Path

import nbformat
import numpy as np
import pytest
import tensorflow as tf
from nbclient import NotebookClient
from PIL import Image

import ad_keras
from ad_keras.cli import parse
from ad_keras.runs.config import Config

EXAMPLES = Path(__file__).parents[1] / "examples"


def example(name):
    spec = importlib.util.spec_from_file_location(f"examples_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def own_part():
    return example("own_part")


def test_stripes_hide_what_they_say(own_part):
    images = tf.ones([2, 4, 16, 3])
    several = [own_part.Stripes(8, 3)(images, [0, key]).numpy() for key in range(6)]
    for perturbed in several:
        hidden = perturbed[0, 0, :, 0] == 0
        assert hidden.sum() == 6
        np.testing.assert_array_equal(hidden[:8], hidden[8:])
        assert (perturbed == perturbed[:1, :1]).all()
    assert len(np.unique([perturbed.ravel() for perturbed in several], axis=0)) > 1


def test_the_angle_is_one_minus_the_cosine(own_part):
    rng = np.random.default_rng(0)
    replayed, recovered = rng.normal(size=(4, 6)), rng.normal(size=(2, 4, 6))
    cosines = [
        view @ latent / np.linalg.norm(view) / np.linalg.norm(latent)
        for views in recovered
        for view, latent in zip(views, replayed, strict=True)
    ]
    np.testing.assert_allclose(own_part.Angle()(replayed, recovered), 1 - np.mean(cosines))


def test_parts_of_ones_own_train_stop_continue_and_are_exported(
    own_part, tiny, eagerly, quick_export, tmp_path, flags_of, assert_same_run, capsys
):
    from ad_keras.errors import UsageError
    from ad_keras.runs.restore import restore_run
    from ad_keras.runs.training import train

    config = tiny(tmp_path, train_examples=16, dream_every=1)
    train(tiny(tmp_path, train_examples=16, epochs=1), build=own_part.build, export=False)
    own_part.main(["own_part", *flags_of(config)])
    told = capsys.readouterr().out
    assert "restored after 4 steps, with Angle" in told
    whole = tiny(tmp_path / "whole", train_examples=16)
    train(whole, build=own_part.build, export=False)
    assert_same_run(config, whole)
    history = json.loads((Path(config.run_dir) / "history.json").read_text())
    assert 0 < history["2"]["nrem/recovery_loss"] < 2
    assert (Path(config.run_dir) / "figures" / "nrem.png").is_file()
    assert any((Path(config.run_dir) / "logs").glob("events*"))
    assert ad_keras.load_encoder(config.saved_model_dir).output["latent"].shape == (None, 8)
    with pytest.raises(UsageError, match=r"begun with another model: .*Stripes"):
        train(config)
    with pytest.raises(UsageError, match="parts of its own"):
        restore_run(config.run_dir)


def test_plain_keras_tells_the_whole_story_in_few_lines(
    image_folder, eagerly, tmp_path, monkeypatch, capsys
):
    assert len((EXAMPLES / "train_pad.py").read_text().splitlines()) < 80
    monkeypatch.chdir(tmp_path)
    train_pad = example("train_pad")
    monkeypatch.setattr(train_pad, "BATCH", 8)
    model = train_pad.main(epochs=1, dataset=str(image_folder), filters=4)
    assert model.step.numpy() == 6
    assert re.search(r"[\d.]+% before, [\d.]+% after 1 epochs", capsys.readouterr().out)
    picture = np.asarray(Image.open(tmp_path / "dreams.png"))
    assert picture.shape == (3 * 32, 12 * 32, 3)  # there are 12 test images
    assert picture[-32:].std() > 1


def test_a_fine_tuned_classifier_tells_shapes(shapes, tmp_path, success):
    from ad_keras import PAD, build_encoder, build_generator, export_networks

    sizes = {"latent_dim": 8, "base_filters": 4}
    export_networks(PAD(build_encoder(**sizes), build_generator(**sizes)), tmp_path / "export")
    flags = (f"--export={tmp_path / 'export'}", f"--dataset={shapes}", "--epochs=30")
    frozen, tuned = re.findall(r": +([\d.]+)%", success(example("classify").main, *flags))
    assert float(frozen) in [round(100 * right / 92, 1) for right in range(93)]
    assert float(tuned) == 100


SHIPPED = EXAMPLES.parent / "saved_models"


@pytest.mark.parametrize("name", ["cifar10", "cifar10_best"])
def test_shipped_encoders_see_the_same_with_and_without_the_package(name):
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    served = tf.saved_model.load(str(SHIPPED / name / "encoder")).signatures["serving_default"]
    expected = ad_keras.load_encoder(SHIPPED / name)(images)
    for output, values in served(images=tf.constant(images)).items():
        np.testing.assert_allclose(values, expected[output], rtol=1e-4, atol=1e-5)
    assert np.ptp(expected["latent"], axis=0).max() > 0.1


@pytest.mark.parametrize(
    ("name", "flags", "results", "epochs"),
    [
        (
            "cifar10",
            "--flagfile=cifar10 --precision=mixed_bfloat16 --probe_every=5 --dream_every=10 "
            "--run_dir=runs/cifar10 --saved_model_dir=saved_models/cifar10",
            "cifar10/full-seed0",
            50,
        ),
        ("cifar10_best", "--flagfile=cifar10_best --run_dir=runs/cifar10_best", "cifar10_best", 50),
    ],
)
def test_shipped_encoders_are_of_their_flags_and_tell_what_was_measured(
    name, flags, results, epochs
):
    metadata = json.loads((SHIPPED / name / "metadata.json").read_text())
    config = parse(Config, ["train", *flags.split()], "train")
    assert Config.from_json(json.dumps(metadata["flags"])) == config
    assert metadata["epochs"] == epochs
    measured = json.loads((EXAMPLES.parent / "docs/results" / results / "results.json").read_text())
    for probe, figure in (("probe", "mean_of_seeds"), ("ridge_probe", "accuracy")):
        trained = measured["metrics"][probe]["values"]["trained"]
        assert metadata["test_accuracy"][probe] == trained[figure]


def test_the_shipped_generator_rebuilds_what_the_shipped_encoder_sees():
    rows = np.mgrid[:32, :32][0]
    scene = np.where(rows < 16, 200, 60)[..., None] * np.array([0.6, 0.8, 1.0])  # sky over ground
    images = np.stack([scene, scene[::-1]]).astype(np.uint8)
    latents = ad_keras.load_encoder(SHIPPED / "cifar10")(images)["latent"]
    served = tf.saved_model.load(str(SHIPPED / "cifar10" / "generator"))
    rebuilt = served.signatures["serving_default"](latent=latents)["images"].numpy()
    assert rebuilt.dtype == np.uint8
    errors = np.abs(rebuilt[:, None].astype(float) - images[None]).mean(axis=(2, 3, 4))
    assert errors.argmin(axis=1).tolist() == [0, 1]


@pytest.mark.parametrize("name", ["cifar10", "cifar10_best"])
def test_the_example_classifies_with_the_shipped_encoder(name, shapes, success):
    flags = (f"--export={SHIPPED / name}", f"--dataset={shapes}", "--epochs=15")
    frozen, tuned = re.findall(r": +([\d.]+)%", success(example("classify").main, *flags))
    assert float(frozen) == float(tuned) == 100


def test_classifying_without_an_export_says_so(refusal):
    error = refusal(example("classify").main, "--export=nowhere")
    assert error == "error: nowhere is not an export: it has no encoder.keras.\n"


def test_runs_are_compared_by_their_histories(tmp_path, success, refusal):
    compare = example("compare_runs")
    folders = [str(tmp_path / name / "run") for name in ("slow", "quick")]
    for folder, accuracy in zip(folders, (0.3, 0.5), strict=True):
        Path(folder).mkdir(parents=True)
        probed = {"probe/validation_accuracy": accuracy, "ridge_probe/validation_accuracy": 0.4}
        history = {"0": {"wake/kl_loss": 2.0}, "5": probed, "10": probed}
        Path(folder, "history.json").write_text(json.dumps(history))
    read = compare.probes(folders).query('probe == "paper\'s probe"')
    assert read[["series", "x", "value"]].to_numpy().tolist() == [
        *([folders[0], 5, 0.3], [folders[0], 10, 0.3]),
        *([folders[1], 5, 0.5], [folders[1], 10, 0.5]),
    ]
    picture = tmp_path / "curves.png"
    flags = [f"--run_dir={folder}" for folder in folders]
    printed = success(compare.main, *flags, f"--output={picture}")
    assert printed == f"{picture}: {folders[0]}, {folders[1]}\n"
    with Image.open(picture) as drawn:
        assert drawn.width > 500
    error = refusal(compare.main, flags[0], f"--output={tmp_path}/curves.doc")
    assert "curves.doc is not possible" in error
    error = refusal(compare.main, flags[0], f"--run_dir={tmp_path}")
    assert error == f"error: --run_dir={tmp_path} names no run whose history has probes.\n"


@pytest.fixture
def tutorial():
    return nbformat.read(EXAMPLES / "tutorial.ipynb", as_version=4)


def code_of(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_the_tutorial_runs(tutorial, image_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "3")
    (settings,) = [cell for cell in code_of(tutorial) if cell.source.startswith("DATASET")]
    settings.source = f"DATASET, FILTERS, BATCH, EPOCHS = {str(image_folder)!r}, 4, 8, 2"

    NotebookClient(tutorial, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()

    assert (tmp_path / "saved_models" / "tutorial" / "encoder.keras").is_file()
    assert "48 training images, 12 test images, classes cat, dog, owl" in str(tutorial)


def test_the_tutorial_tells_what_it_found_without_being_run(tutorial):
    assert (EXAMPLES / "tutorial.ipynb").stat().st_size < 300_000
    cells = code_of(tutorial)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert {(o.output_type, o.get("name")) for o in outputs} == {
        ("stream", "stdout"),
        ("display_data", None),
    }
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 5
    text = "".join(output.get("text", "") for output in outputs)
    assert len(re.findall(r"^epoch \d+: ", text, re.M)) == 8
    for probe in ("ridge_probe", "linear_probe"):
        before, after = re.findall(rf"{probe}: ([\d.]+)% before training, ([\d.]+)%", text)[0]
        assert float(after) > float(before) + 10
    assert re.search(r"/home|/root|/tmp|site-packages", str(tutorial)) is None
    links = re.findall(r"\]\(((?!https)[^)]+)\)", str(tutorial))
    assert [link for link in links if not (EXAMPLES / link).exists()] == []
    assert len(links) > 3
