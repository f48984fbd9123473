"""Tests of the exported networks, in this process and in ones that have only TensorFlow."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from ad_keras import PAD, Hippocampus, build_encoder, build_generator, export_networks, load_encoder
from ad_keras.errors import UsageError
from ad_keras.runs.export import versions

SIZE, LATENT, BATCH = 16, 8, 8
FILES = {"encoder", "generator", "encoder.keras", "metadata.json"}
ALONE = """
import sys
sys.modules["ad_keras"] = None  # importing it is an error from here on
import keras
import numpy as np
import tensorflow as tf

inputs = np.load("inputs.npz")
images = inputs["images"]
for number, folder in enumerate(sys.argv[1:]):
    encoder = tf.saved_model.load(folder + "/encoder").signatures["serving_default"]
    generator = tf.saved_model.load(folder + "/generator").signatures["serving_default"]
    found = {**encoder(images=tf.constant(images)), **generator(latent=inputs["latents"])}
    found["loaded"] = keras.saving.load_model(folder + "/encoder.keras")(images)["latent"]
    np.savez(f"outputs{number}.npz", **{name: value.numpy() for name, value in found.items()})
"""
"""For a process that sees neither the tests' folder nor this package."""


def pixels(seed=0, count=BATCH):
    return np.random.default_rng(seed).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)


def random_latents(count=5):
    return np.random.default_rng(9).normal(size=(count, LATENT)).astype(np.float32)


def new_model(dtype="float32"):
    """A model with weights as different as training makes them."""
    networks = {"image_size": SIZE, "latent_dim": LATENT, "base_filters": 4, "dtype": dtype}
    model = PAD(
        build_encoder(**networks), build_generator(**networks), hippocampus=Hippocampus(BATCH)
    )
    rng = np.random.default_rng(0)
    for network in (model.encoder, model.generator):
        network.set_weights([rng.normal(0, 0.15, w.shape) for w in network.get_weights()])
    model.compile()
    model.step.assign(2)
    return model


def expected_outputs(model, images, latents):
    """What the model's own networks make of raw images and of latents."""
    outputs = model.encoder(tf.constant(images / 127.5 - 1, tf.float32))
    dreams = np.array(tf.cast(model.generator(latents), tf.float32))
    return {
        "latent": np.array(outputs["latent"]),
        "external_probability": 1 / (1 + np.exp(-np.array(outputs["external_logit"]))),
        "images": (dreams + 1) * 127.5,
    }


def full_disk(*arguments, **kwargs):
    raise OSError("No space left on device")


@pytest.fixture(scope="module")
def model():
    return new_model()


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exports") / "digits"
    export_networks(model, folder, {"dataset": "digits", "flags": {"seed": 3}})
    return folder


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    model = new_model("mixed_bfloat16")
    folder = tmp_path_factory.mktemp("exports") / "mixed"
    export_networks(model, folder)
    return model, folder


@pytest.mark.parametrize("network", ["encoder", "generator"])
def test_a_saved_model_holds_each_weight_once(model, exported, network):
    stored = tf.train.list_variables(str(exported / network / "variables" / "variables"))
    sizes = {name: np.prod(shape, dtype=int) for name, shape in stored if "VARIABLE" in name}
    numbers = sum(size for name, size in sizes.items() if not name.startswith("save_counter"))
    assert numbers == getattr(model, network).count_params()


def test_metadata_say_what_the_encoder_takes_and_where_it_comes_from(exported):
    metadata = json.loads((exported / "metadata.json").read_text())
    assert metadata["image_shape"] == [SIZE, SIZE, 3]
    assert metadata["image_range"] == [0, 255]
    assert metadata["latent_dim"] == LATENT
    assert metadata["step"] == 2
    assert metadata["dataset"] == "digits"
    assert metadata["flags"] == {"seed": 3}
    assert metadata["versions"]["tensorflow"] == tf.__version__
    assert metadata["versions"]["keras"] == keras.__version__
    assert set(metadata["versions"]) == {"ad_keras", "tensorflow", "keras", "numpy"}


def test_a_fresh_process_without_the_package_runs_the_exports(model, exported, mixed, tmp_path):
    images, latents = pixels(7, count=5), random_latents()
    np.savez(tmp_path / "inputs.npz", images=images, latents=latents)
    done = subprocess.run(
        [sys.executable, "-I", "-c", ALONE, exported, mixed[1]],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for number, (each, tolerance) in enumerate(((model, 1e-5), (mixed[0], 0.03))):
        outputs = np.load(tmp_path / f"outputs{number}.npz")
        assert set(outputs) == {"latent", "external_probability", "images", "loaded"}
        expected = expected_outputs(each, images, latents)
        for name in ("latent", "external_probability"):
            assert outputs[name].dtype == np.float32
            assert outputs[name].shape == expected[name].shape
            scale = np.abs(expected[name]).max()
            np.testing.assert_allclose(outputs[name], expected[name], atol=tolerance * scale)
        np.testing.assert_allclose(outputs["loaded"], outputs["latent"], atol=1e-5)
        assert outputs["images"].dtype == np.uint8
        assert outputs["images"].shape == (5, SIZE, SIZE, 3)
        rounding = 0.501 + 255 * tolerance
        assert np.abs(outputs["images"] - expected["images"]).max() < rounding
        assert outputs["images"].std() > 5


def test_an_export_of_mixed_precision_computes_in_float32(mixed):
    model, folder = mixed
    full = new_model()
    full.encoder.set_weights(model.encoder.get_weights())
    encoder = load_encoder(folder)
    assert [(t.name, t.dtype) for t in encoder.inputs] == [("images", "uint8")]
    latent = encoder.predict(pixels(), verbose=0)["latent"]
    expected = expected_outputs(full, pixels(), random_latents())["latent"]
    np.testing.assert_allclose(latent, expected, atol=1e-5)
    assert (latent != expected_outputs(model, pixels(), random_latents())["latent"]).any()


def test_the_loaded_encoder_can_be_fine_tuned_and_saved(exported, tmp_path):
    encoder = load_encoder(str(exported))
    assert len(encoder.trainable_variables) == 8
    logits = keras.layers.Dense(10)(encoder.output["latent"])
    classifier = keras.Model(encoder.input, logits)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    classifier.compile(keras.optimizers.SGD(0.1), loss)
    before = encoder.get_weights()
    classifier.fit(pixels(), np.arange(BATCH), verbose=0)
    moved = [(one != two).any() for one, two in zip(before, encoder.get_weights(), strict=True)]
    assert sum(moved) == 6  # all but the external head, on which the classes do not depend
    classifier.save(tmp_path / "classifier.keras")
    again = keras.saving.load_model(tmp_path / "classifier.keras")
    np.testing.assert_allclose(
        again.predict(pixels(), verbose=0), classifier.predict(pixels(), verbose=0), atol=1e-6
    )


@pytest.fixture
def earlier(exported, tmp_path):
    """A copy of the export, with its files."""
    folder = shutil.copytree(exported, tmp_path / "deep" / "digits")
    return folder, contents(folder)


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_exporting_again_replaces_everything_and_does_not_change_the_model(model, earlier):
    folder, _ = earlier
    stray = folder / "encoder" / "stray"
    stray.write_text("from the first export")
    first = load_encoder(folder).predict(pixels(), verbose=0)["latent"]
    kernel = model.encoder.trainable_variables[0]
    before = kernel.numpy()
    try:
        kernel.assign(1.5 * before)
        variables = [variable.numpy() for variable in model.variables]
        export_networks(model, str(folder), {"note": "second"})
        for variable, value in zip(model.variables, variables, strict=True):
            np.testing.assert_array_equal(variable, value)
        expected = expected_outputs(model, pixels(), random_latents())["latent"]
    finally:
        kernel.assign(before)
    assert {path.name for path in folder.iterdir()} == FILES
    assert not stray.exists()
    assert [path.name for path in folder.parent.iterdir()] == ["digits"]
    metadata = json.loads((folder / "metadata.json").read_text())
    assert (metadata["note"], metadata["step"]) == ("second", 2)
    second = load_encoder(folder).predict(pixels(), verbose=0)["latent"]
    assert np.abs(second - first).max() > 1e-4
    np.testing.assert_allclose(second, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("owner", "name"), [(keras.Model, "save"), (Path, "write_text")], ids=["keras_file", "metadata"]
)
def test_a_failing_export_leaves_the_earlier_one_and_nothing_else(
    quick_export, monkeypatch, model, earlier, owner, name
):
    folder, before = earlier
    monkeypatch.setattr(owner, name, full_disk)
    with pytest.raises(OSError, match="No space left"):
        export_networks(model, folder, {"note": "second"})
    assert [path.name for path in folder.parent.iterdir()] == ["digits"]
    assert contents(folder) == before


def test_a_failing_first_export_leaves_nothing(monkeypatch, model, tmp_path, quick_export):
    monkeypatch.setattr(keras.Model, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        export_networks(model, tmp_path / "digits")
    assert list(tmp_path.iterdir()) == []


def test_an_interruption_while_switching_keeps_the_earlier_export_whole(
    monkeypatch, model, earlier, quick_export
):
    folder, before = earlier
    rename = Path.rename

    def interrupted(source, target):
        if "partial" in source.name:
            raise KeyboardInterrupt
        return rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", interrupted)
        with pytest.raises(KeyboardInterrupt):
            export_networks(model, folder, {"note": "second"})
    (kept,) = folder.parent.iterdir()
    assert contents(kept) == before
    export_networks(model, folder, {"note": "third"})
    assert [path.name for path in folder.parent.iterdir()] == ["digits"]
    assert json.loads((folder / "metadata.json").read_text())["note"] == "third"


def test_an_export_that_was_killed_while_switching_is_brought_back_first(
    monkeypatch, model, earlier, quick_export
):
    folder, before = earlier
    folder.rename(folder.with_name(".digits.previous"))  # between the two renames
    folder.with_name(".digits.partial").mkdir()
    folder.with_name("digits.previous").mkdir()  # somebody's own
    monkeypatch.setattr(keras.Model, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        export_networks(model, folder, {"note": "second"})
    assert contents(folder) == before
    assert sorted(path.name for path in folder.parent.iterdir()) == ["digits", "digits.previous"]


def test_an_export_stays_where_a_link_leads(model, earlier, quick_export):
    folder, _ = earlier
    link = folder.with_name("link")
    link.symlink_to(folder)
    for note in ("second", "third"):
        export_networks(model, link, {"note": note})
        assert link.is_symlink()
        assert json.loads((folder / "metadata.json").read_text())["note"] == note


def test_the_version_of_what_is_not_installed_is_unknown():
    assert versions(("numpy", "absent")) == {"numpy": np.__version__, "absent": "unknown"}


def test_a_folder_without_an_encoder_is_refused_by_name(tmp_path):
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(UsageError, match=rf"{folder} is not an export"):
            load_encoder(folder)


@pytest.mark.parametrize("damage", ["empty", "no archive", "cut", "flipped"])
def test_a_damaged_encoder_is_refused_by_name(exported, tmp_path, damage):
    whole = (exported / "encoder.keras").read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 255
    content = {"empty": b"", "cut": whole[: len(whole) // 2], "flipped": flipped}
    (tmp_path / "encoder.keras").write_bytes(content.get(damage, b"no archive"))
    with pytest.raises(UsageError, match=r"encoder\.keras cannot be read .*export it again"):
        load_encoder(tmp_path)


def residual_networks():
    """An encoder and a generator of other layers: branches, additions, normalisation."""
    layers = keras.layers
    images = keras.Input((SIZE, SIZE, 3), name="pictures")
    x = layers.Conv2D(6, 3, strides=2, padding="same", dtype="mixed_bfloat16")(images)
    branch = layers.Conv2D(6, 3, padding="same", activation="relu")(x)
    x = layers.BatchNormalization()(layers.Add()([x, branch]))
    side = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 1)(images))
    x = layers.Concatenate()([layers.Flatten()(x), side])
    latent = layers.Dense(LATENT, dtype="float32")(x)
    logit = layers.Reshape((), dtype="float32")(layers.Dense(1)(x))
    encoder = keras.Model(images, {"latent": latent, "external_logit": logit})

    latent = keras.Input((LATENT,), name="code")
    x = layers.Reshape((4, 4, 6))(layers.Dense(96)(latent))
    x = layers.Add()([x, layers.Conv2D(6, 3, padding="same")(x)])
    x = layers.UpSampling2D(4)(x)
    dreams = layers.Conv2D(3, 3, padding="same", activation="tanh")(x)
    return encoder, keras.Model(latent, dreams)


def test_any_functional_networks_train_and_are_exported(tmp_path):
    encoder, generator = residual_networks()
    model = PAD(encoder, generator, hippocampus=Hippocampus(BATCH))
    model.compile()
    model.train_step(pixels(1))
    export_networks(model, tmp_path / "export")
    images, latents = pixels(5), random_latents()
    expected = expected_outputs(model, images, latents)
    loaded = load_encoder(tmp_path / "export")(images)
    served = tf.saved_model.load(str(tmp_path / "export" / "encoder")).signatures
    outputs = served["serving_default"](images=tf.constant(images))
    for name in ("latent", "external_probability"):
        # The first layer computes in bfloat16 in training.
        np.testing.assert_allclose(loaded[name], expected[name], atol=0.05)
        np.testing.assert_allclose(outputs[name], loaded[name], atol=1e-5)
        assert np.ptp(loaded[name]) > 1e-3
    dream = tf.saved_model.load(str(tmp_path / "export" / "generator")).signatures
    pictures = dream["serving_default"](latent=tf.constant(latents))["images"]
    np.testing.assert_allclose(pictures, expected["images"], atol=1.0)
