"""Tests of the exported networks, in this process and in ones that have only TensorFlow."""

import json
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import ad_keras.runs.export
from ad_keras import PAD, Hippocampus, build_encoder, build_generator, export_networks, load_encoder
from ad_keras.errors import UsageError

SIZE, LATENT, BATCH = 16, 8, 8
FILES = {"encoder", "generator", "encoder.keras", "metadata.json"}
ALONE = """
import sys
sys.modules["ad_keras"] = None  # importing it is an error from here on
import numpy as np
import tensorflow as tf
"""


def pixels(seed=0, count=BATCH):
    return np.random.default_rng(seed).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)


def random_latents(count=5):
    return np.random.default_rng(9).normal(size=(count, LATENT)).astype(np.float32)


def trained_model(dtype="float32", steps=2):
    networks = {"image_size": SIZE, "latent_dim": LATENT, "base_filters": 4, "dtype": dtype}
    model = PAD(
        build_encoder(**networks), build_generator(**networks), hippocampus=Hippocampus(BATCH)
    )
    rng = np.random.default_rng(0)
    for network in (model.encoder, model.generator):
        network.set_weights([rng.normal(0, 0.15, w.shape) for w in network.get_weights()])
    model.compile()
    for step in range(steps):
        model.train_step(pixels(step))
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


def run_alone(code, folder, *arguments):
    """Runs code in a fresh Python that sees neither this folder nor this package."""
    result = subprocess.run(
        [sys.executable, "-I", "-c", ALONE + code, *map(str, arguments)],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


def full_disk(*arguments, **kwargs):
    raise OSError("No space left on device")


@pytest.fixture(scope="module")
def model():
    return trained_model()


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exports") / "digits"
    export_networks(model, folder, {"dataset": "digits", "flags": {"seed": 3}})
    return folder


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    model = trained_model("mixed_bfloat16")
    folder = tmp_path_factory.mktemp("exports") / "mixed"
    export_networks(model, folder)
    return model, folder


def test_an_export_is_four_things(exported):
    assert {path.name for path in exported.iterdir()} == FILES
    assert [path.name for path in exported.parent.iterdir()] == ["digits"]


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


def test_a_fresh_process_with_only_tensorflow_runs_the_exports(model, exported, mixed, tmp_path):
    folders, models = (exported, mixed[1]), (model, mixed[0])
    images, latents = pixels(7, count=5), random_latents()
    np.savez(tmp_path / "inputs.npz", images=images, latents=latents)
    run_alone(
        """
inputs = np.load("inputs.npz")
for number, folder in enumerate(sys.argv[1:]):
    encoder = tf.saved_model.load(folder + "/encoder").signatures["serving_default"]
    generator = tf.saved_model.load(folder + "/generator").signatures["serving_default"]
    outputs = encoder(images=tf.constant(inputs["images"]))
    assert set(outputs) == {"latent", "external_probability"}, outputs
    dreams = generator(latent=tf.constant(inputs["latents"]))
    assert set(dreams) == {"images"}, dreams
    np.savez(f"outputs{number}.npz", **{k: v.numpy() for k, v in {**outputs, **dreams}.items()})
    assert encoder(images=tf.zeros([1, 16, 16, 3], tf.uint8))["latent"].shape == (1, 8)
    for wrong in (tf.zeros([1, 16, 16, 3]), tf.zeros([1, 8, 8, 3], tf.uint8)):
        try:
            encoder(images=wrong)
        except Exception:
            continue
        raise AssertionError("took " + str(wrong.dtype))
""",
        tmp_path,
        *folders,
    )
    for number, (each, tolerance) in enumerate(zip(models, (1e-5, 0.03), strict=True)):
        outputs = np.load(tmp_path / f"outputs{number}.npz")
        expected = expected_outputs(each, images, latents)
        assert outputs["latent"].dtype == outputs["external_probability"].dtype == np.float32
        assert outputs["latent"].shape == (5, LATENT)
        assert outputs["external_probability"].shape == (5,)
        assert outputs["images"].dtype == np.uint8
        assert outputs["images"].shape == (5, SIZE, SIZE, 3)
        for name in ("latent", "external_probability"):
            scale = np.abs(expected[name]).max()
            np.testing.assert_allclose(outputs[name], expected[name], atol=tolerance * scale)
        rounding = 0.501 + 255 * tolerance
        assert np.abs(outputs["images"] - expected["images"]).max() < rounding
        assert outputs["images"].std() > 5


def test_an_export_of_mixed_precision_computes_in_float32(mixed):
    model, folder = mixed
    full = trained_model(steps=0)
    full.encoder.set_weights(model.encoder.get_weights())
    latent = load_encoder(folder).predict(pixels(), verbose=0)["latent"]
    expected = expected_outputs(full, pixels(), random_latents())["latent"]
    np.testing.assert_allclose(latent, expected, atol=1e-5)
    assert (latent != expected_outputs(model, pixels(), random_latents())["latent"]).any()


def test_a_fresh_process_without_the_package_loads_and_trains_the_keras_file(
    model, exported, tmp_path
):
    np.save(tmp_path / "images.npy", pixels())
    run_alone(
        """
import keras
encoder = keras.saving.load_model(sys.argv[1])
images = np.load("images.npy")
np.save("latent.npy", encoder.predict(images, verbose=0)["latent"])
classifier = keras.Sequential([encoder, keras.layers.Lambda(lambda outputs: outputs["latent"])])
before = encoder.get_weights()
classifier.compile("sgd", "mse")
classifier.fit(images, np.ones((len(images), 8)), verbose=0)
assert any((one != two).any() for one, two in zip(before, encoder.get_weights()))
""",
        tmp_path,
        exported / "encoder.keras",
    )
    expected = expected_outputs(model, pixels(), random_latents())["latent"]
    np.testing.assert_allclose(np.load(tmp_path / "latent.npy"), expected, atol=1e-5)


def test_saved_model_cli_shows_the_names(exported, tmp_path):
    command = [sys.executable, "-I", "-m", "tensorflow.python.tools.saved_model_cli", "show"]
    command += ["--tag_set", "serve", "--signature_def", "serving_default", "--dir"]
    running = [
        subprocess.Popen(
            [*command, exported / network], cwd=tmp_path, stdout=-1, stderr=-3, text=True
        )
        for network in ("encoder", "generator")
    ]
    encoder, generator = (process.communicate()[0] for process in running)
    assert [process.returncode for process in running] == [0, 0], encoder + generator
    for text, tensor, dtype in (
        (encoder, "inputs['images']", "DT_UINT8"),
        (encoder, "outputs['latent']", "DT_FLOAT"),
        (encoder, "outputs['external_probability']", "DT_FLOAT"),
        (generator, "inputs['latent']", "DT_FLOAT"),
        (generator, "outputs['images']", "DT_UINT8"),
    ):
        assert f"{tensor} tensor_info:\n      dtype: {dtype}" in text
    assert "shape: (-1, 16, 16, 3)" in encoder
    assert "shape: (-1, 8)" in encoder


def test_tfsm_layer_runs_both_networks(model, exported):
    images, latents = pixels(3), random_latents()
    expected = expected_outputs(model, images, latents)
    encoder = keras.layers.TFSMLayer(str(exported / "encoder"), call_endpoint="serving_default")
    outputs = encoder(images)
    np.testing.assert_allclose(outputs["latent"], expected["latent"], atol=1e-5)
    np.testing.assert_allclose(
        outputs["external_probability"], expected["external_probability"], atol=1e-5
    )
    generator = keras.layers.TFSMLayer(str(exported / "generator"), call_endpoint="serving_default")
    dreams = generator(latents)["images"].numpy()
    assert np.abs(dreams - expected["images"]).max() < 0.51


def test_the_loaded_encoder_takes_raw_images_and_equals_the_trained_one(model, exported):
    encoder = load_encoder(exported)
    assert [(t.name, t.dtype) for t in encoder.inputs] == [("images", "uint8")]
    expected = expected_outputs(model, pixels(4), random_latents())
    images = pixels(4)
    for outputs in (encoder(images), encoder.predict(images, verbose=0)):
        assert set(outputs) == {"latent", "external_probability"}
        for name, value in outputs.items():
            np.testing.assert_allclose(value, expected[name], atol=1e-5)


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
        again.predict(pixels(), verbose=0),
        classifier.predict(pixels(), verbose=0),
        atol=1e-6,
    )


def test_exporting_does_not_change_the_model(model, tmp_path):
    before = [v.numpy().copy() for v in model.variables]
    export_networks(model, tmp_path / "once")
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)
    model.encoder(np.zeros((1, SIZE, SIZE, 3), np.float32))


def test_exporting_again_replaces_everything(tmp_path):
    model = trained_model(steps=0)
    folder = tmp_path / "deep" / "digits"
    export_networks(model, folder, {"note": "first"})
    (folder / "stray").write_text("from the first export")
    first = load_encoder(folder).predict(pixels(), verbose=0)["latent"]
    model.train_step(pixels())
    export_networks(model, str(folder), {"note": "second"})
    assert {path.name for path in folder.iterdir()} == FILES
    assert [path.name for path in folder.parent.iterdir()] == ["digits"]
    metadata = json.loads((folder / "metadata.json").read_text())
    assert (metadata["note"], metadata["step"]) == ("second", 1)
    second = load_encoder(folder).predict(pixels(), verbose=0)["latent"]
    assert np.abs(second - first).max() > 1e-4
    expected = expected_outputs(model, pixels(), random_latents())["latent"]
    np.testing.assert_allclose(second, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("owner", "name"),
    [(ad_keras.runs.export, "to_pixels"), (keras.Model, "save"), (Path, "write_text")],
    ids=["generator", "keras_file", "metadata"],
)
def test_a_failing_export_leaves_the_earlier_one_and_nothing_else(
    monkeypatch, tmp_path, owner, name
):
    model = trained_model(steps=0)
    folder = tmp_path / "digits"
    export_networks(model, folder, {"note": "first"})
    before = {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}

    monkeypatch.setattr(owner, name, full_disk)
    with pytest.raises(OSError, match="No space left"):
        export_networks(model, folder, {"note": "second"})
    assert [path.name for path in tmp_path.iterdir()] == ["digits"]
    after = {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert after == before


def test_a_failing_first_export_leaves_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(keras.Model, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        export_networks(trained_model(steps=0), tmp_path / "digits")
    assert list(tmp_path.iterdir()) == []


def test_an_interruption_while_switching_keeps_the_earlier_export_whole(monkeypatch, tmp_path):
    model = trained_model(steps=0)
    folder = tmp_path / "digits"
    export_networks(model, folder, {"note": "first"})
    rename = Path.rename

    def interrupted(source, target):
        if "partial" in source.name:
            raise KeyboardInterrupt
        return rename(source, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export_networks(model, folder, {"note": "second"})
    (kept,) = tmp_path.iterdir()
    assert {path.name for path in kept.iterdir()} == FILES
    assert json.loads((kept / "metadata.json").read_text())["note"] == "first"
    monkeypatch.undo()
    export_networks(model, folder, {"note": "third"})
    assert [path.name for path in tmp_path.iterdir()] == ["digits"]


def test_an_export_that_was_killed_while_switching_is_brought_back_first(monkeypatch, tmp_path):
    model = trained_model(steps=0)
    folder = tmp_path / "digits"
    export_networks(model, folder, {"note": "first"})
    folder.rename(tmp_path / "digits.previous")  # between the two renames
    (tmp_path / ".digits.partial").mkdir()
    monkeypatch.setattr(keras.Model, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        export_networks(model, folder, {"note": "second"})
    assert json.loads((folder / "metadata.json").read_text())["note"] == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["digits"]


def test_a_folder_without_an_encoder_is_refused_by_name(tmp_path):
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(UsageError, match=rf"{folder} is not an export"):
            load_encoder(folder)


@pytest.mark.parametrize("content", [b"", b"no archive", None])
def test_a_damaged_encoder_is_refused_by_name(exported, tmp_path, content):
    whole = (exported / "encoder.keras").read_bytes()
    (tmp_path / "encoder.keras").write_bytes(
        whole[: len(whole) // 2] if content is None else content
    )
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
    for step in range(2):
        model.train_step(pixels(step))
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
