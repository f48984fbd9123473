import concurrent.futures
import contextlib
import dataclasses
import errno
import json
import os
import re
import resource
import shutil
import signal
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format
from PIL import Image
from tensorboard.plugins import projector
from tensorboard.plugins.hparams import plugin_data_pb2

import ad_keras
from ad_keras import PAD, Hippocampus, data, dream, export
from ad_keras import train as program
from ad_keras.data import load, validation_split
from ad_keras.errors import Interrupted, RunError, UsageError
from ad_keras.measures.latents import encode
from ad_keras.measures.probe import linear_probe
from ad_keras.runs import callbacks, reports
from ad_keras.runs.build import build_model
from ad_keras.runs.callbacks import Guard
from ad_keras.runs.checkpoints import newest_step
from ad_keras.runs.config import RUN_ONLY, Config
from ad_keras.runs.parts import describe_model, difference
from ad_keras.runs.restore import export_metadata, restore_export, restore_run
from ad_keras.runs.training import train

SHEETS = ("wake", "nrem", "rem", "traversal")
LOSSES = {
    *("wake/reconstruction_loss", "wake/kl_loss", "wake/external_loss"),
    *("wake/external_probability", "nrem/recovery_loss"),
    *("rem/internal_loss", "rem/external_probability"),
}
PROBE = "probe/validation_accuracy"


def events(run_folder: str | Path) -> dict[str, list[tuple[int, tf.compat.v1.Summary.Value]]]:
    """What TensorBoard finds in a run: by tag, steps and values."""
    found = {}
    for file in sorted(Path(run_folder, "logs").glob("events.*")):
        for record in tf.data.TFRecordDataset(str(file)).as_numpy_iterator():
            event = tf.compat.v1.Event.FromString(record)
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, value))
    return found


def scalars(run_folder: str | Path, tag: str) -> dict[int, float]:
    return {step: float(tf.make_ndarray(value.tensor)) for step, value in events(run_folder)[tag]}


def held_out(config) -> data.ImageSet:
    """The images that a run's probe is scored on."""
    train_set = load(config.dataset, "train")
    rows = validation_split(len(train_set), config.seed)[1]
    return data.ImageSet(train_set.images[rows], train_set.labels[rows], train_set.class_names)


def probe_accuracy(config, encoder) -> float:
    """The paper's probe of an encoder."""
    images = load(config.dataset, "train")
    latents = encode(encoder, images.images)
    parts = [
        part[rows]
        for rows in validation_split(len(images), config.seed)
        for part in (latents, images.labels)
    ]
    return linear_probe(*parts, num_classes=3, seed=config.seed).accuracy


def shows(page: np.ndarray, image: np.ndarray) -> bool:
    """Whether an image stands somewhere on a page, enlarged by a whole number."""
    scale = 64 // len(image)
    enlarged = np.kron(image, np.ones((scale, scale, 1), np.uint8))
    corners = np.argwhere((page[: 1 - len(enlarged), : 1 - len(enlarged)] == image[0, 0]).all(-1))
    return any(
        (page[top : top + len(enlarged), left : left + len(enlarged)] == enlarged).all()
        for top, left in corners
    )


@contextlib.contextmanager
def largest_file(size: int):
    """Lets the system refuse to write more than so many bytes into a file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class StopAt(keras.callbacks.Callback):
    """Asks training to stop after a step, and notes what it is told."""

    def __init__(self, step: int | None = None):
        super().__init__()
        self.step, self.told = step, []

    def on_train_begin(self, logs=None):
        self.told.append("begin")

    def on_epoch_begin(self, epoch, logs=None):
        self.told.append(epoch)

    def on_train_batch_end(self, batch, logs=None):
        if int(self.model.step.numpy()) == self.step:
            self.model.stop_training = True

    def on_train_end(self, logs=None):
        self.told.append("end")


@pytest.fixture(scope="module")
def plain(tiny, quick_train, tmp_path_factory):
    """Configuration and result of `finished` without all that does not change the weights."""
    config = tiny(tmp_path_factory.mktemp("plain"), epochs=4, log_every=50)
    return config, quick_train(config)


class TestRecords:
    def test_history_has_losses_and_probe_of_every_epoch(self, finished):
        _, result = finished
        assert json.loads((result.run_folder / "history.json").read_text()) == result.history
        assert list(result.history) == ["0", "1", "2", "3", "4"]
        assert not LOSSES & result.history["0"].keys()
        for epoch, entry in result.history.items():
            assert PROBE in entry
            if epoch != "0":
                assert entry.keys() >= LOSSES
                assert all(np.isfinite(value) for value in entry.values())

    def test_first_probe_is_of_the_untrained_encoder(self, finished, rebuilt):
        config, result = finished
        assert result.history["0"][PROBE] == probe_accuracy(config, rebuilt(config).encoder)

    def test_losses_rates_and_probes_are_logged_at_their_steps(self, finished):
        _, result = finished
        found = events(result.run_folder)
        assert found.keys() >= LOSSES | {"images_per_second"}
        for tag in LOSSES:
            logged = scalars(result.run_folder, tag)
            assert sorted(logged) == list(range(2, 25, 2))
            # The last entry of an epoch is the epoch's mean.
            for epoch in range(1, 5):
                expected = result.history[str(epoch)][tag]
                assert logged[6 * epoch] == pytest.approx(expected, rel=1e-6)
        assert min(scalars(result.run_folder, "images_per_second").values()) > 0
        for network in ("encoder", "generator"):
            rates = scalars(result.run_folder, f"{network}_learning_rate")
            assert rates == dict.fromkeys(range(2, 25, 2), pytest.approx(2e-4))
        logged = scalars(result.run_folder, "epoch")
        assert logged == {step: pytest.approx(step / 6) for step in range(2, 25, 2)}
        logged = scalars(result.run_folder, PROBE)
        assert logged == {
            step: pytest.approx(result.history[str(step // 6)][PROBE]) for step in range(0, 25, 6)
        }

    def test_dreams_and_latents_are_logged_at_their_steps(self, finished):
        _, result = finished
        found = events(result.run_folder)
        for tag in (*(f"dreams/{name}" for name in SHEETS), "latents"):
            assert [step for step, _ in found[tag]] == [0, 6, 12, 18, 24], tag
        for name in SHEETS:
            _, _, *pictures = tf.make_ndarray(found[f"dreams/{name}"][-1][1].tensor)
            shown = tf.io.decode_png(pictures[0]).numpy()
            saved = np.asarray(Image.open(result.run_folder / "figures" / f"{name}.png"))
            np.testing.assert_array_equal(shown, saved)
        histogram = tf.make_ndarray(found["latents"][-1][1].tensor)  # [left, right, count]
        assert histogram[:, 2].sum() == 5 * 8

    def test_hyper_parameters_are_logged(self, finished):
        config, result = finished
        ((_, value),) = events(result.run_folder)["_hparams_/session_start_info"]
        content = plugin_data_pb2.HParamsPluginData.FromString(value.metadata.plugin_data.content)
        logged = content.session_start_info.hparams
        assert logged["batch_size"].number_value == 8
        assert logged["encoder_learning_rate"].number_value == pytest.approx(2e-4)
        assert logged["phases"].string_value == "wake,nrem,rem"
        assert logged["condition"].string_value == "full"
        assert logged.keys() >= {field.name for field in dataclasses.fields(config)} - RUN_ONLY
        assert not {"run_dir", "saved_model_dir"} & logged.keys()

    def test_pictures_are_sheets_of_held_out_images(self, finished):
        config, result = finished
        folder = result.run_folder / "figures"
        pages = {name: np.asarray(Image.open(folder / f"{name}.png")) for name in SHEETS}
        for page in pages.values():
            assert page.dtype == np.uint8
            assert page.shape[2] == 3
            assert page.shape[1] == pages["wake"].shape[1] > 12 * 64
            assert page.std() > 10
        rows = {name: page.shape[0] // 64 for name, page in pages.items()}
        assert rows == {"wake": 2, "nrem": 4, "rem": 3, "traversal": 6}
        everything = np.asarray(Image.open(folder / "dreams.png"))
        np.testing.assert_array_equal(everything, np.concatenate(list(pages.values())))
        for image in held_out(config).images:
            for page in (pages["wake"], pages["nrem"], pages["rem"]):
                assert shows(page, image)
        fitted = validation_split(48, config.seed)[0]
        for image in load(config.dataset, "train").images[fitted[:5]]:
            assert not shows(everything, image)

    def test_projector_shows_latents_labels_and_thumbnails_of_the_same_images(self, finished):
        config, result = finished
        logs = result.run_folder / "logs"
        parsed = text_format.Parse(
            (logs / "projector_config.pbtxt").read_text(), projector.ProjectorConfig()
        )
        (embedding,) = parsed.embeddings
        expected = held_out(config)
        latents = np.loadtxt(logs / embedding.tensor_path, delimiter="\t")
        encoder = ad_keras.load_encoder(result.export_folder)
        outputs = encoder.predict(expected.images, verbose=0)
        np.testing.assert_allclose(latents, outputs["latent"], rtol=1e-3, atol=1e-6)
        labels = (logs / embedding.metadata_path).read_text().splitlines()
        assert labels == [expected.class_names[label] for label in expected.labels]
        side = list(embedding.sprite.single_image_dim)
        assert side == [32, 32]
        sprite = np.asarray(Image.open(logs / embedding.sprite.image_path))
        assert sprite.shape == (3 * 32, 3 * 32, 3)  # the smallest square that holds five
        for number, image in enumerate(expected.images):
            top, left = 32 * (number // 3), 32 * (number % 3)
            np.testing.assert_array_equal(sprite[top : top + 32, left : left + 32], image)

    def test_pictures_probes_logs_and_export_can_be_switched_off(self, plain):
        config, result = plain
        assert [epoch for epoch, entry in result.history.items() if PROBE in entry] == ["0", "4"]
        found = events(result.run_folder)
        assert [step for step, _ in found[PROBE]] == [0, 24]
        assert not any(tag.startswith("dreams/") for tag in found)
        assert not (result.run_folder / "figures").exists()
        for tag in LOSSES:  # every epoch's end has them all the same
            logged = scalars(result.run_folder, tag)
            assert logged == {
                6 * epoch: pytest.approx(result.history[str(epoch)][tag]) for epoch in range(1, 5)
            }
        assert result.export_folder is None
        assert not Path(config.saved_model_dir).exists()

    def test_pictures_and_probes_come_every_so_many_epochs_and_at_the_end(
        self, tiny, tmp_path, quick_train
    ):
        # The whole data set is one mini-batch, and an epoch one step.
        config = tiny(tmp_path, train_examples=8, epochs=5, dream_every=2, probe_every=3)
        result = quick_train(config)
        probed = [epoch for epoch, entry in result.history.items() if PROBE in entry]
        assert probed == ["0", "3", "5"]
        shown = [step for step, _ in events(result.run_folder)["dreams/rem"]]
        assert shown == [0, 2, 4, 5]
        assert newest_step(config.run_path) == 5


class TestRepeatability:
    def test_same_flags_give_the_same_bits(self, finished, plain, assert_same_run):
        assert_same_run(plain[0], finished[0])

    def test_another_seed_gives_other_weights_and_another_order_of_images(
        self, plain, tiny, rebuilt, tmp_path, quick_train
    ):
        new = build_model(tiny(tmp_path, seed=1))
        same = rebuilt(plain[0])
        for network in ("encoder", "generator"):
            pairs = zip(getattr(new, network).weights, getattr(same, network).weights, strict=True)
            assert all((one.numpy() != two.numpy()).any() for one, two in pairs if one.ndim > 1)
        losses = []
        for seed in (0, 1):  # of a model that begins the same
            config = tiny(tmp_path / str(seed), seed=seed, epochs=1)
            history = quick_train(config, build=lambda _: rebuilt(plain[0])).history
            losses.append(history["1"]["wake/reconstruction_loss"])
        assert losses[0] == plain[1].history["1"]["wake/reconstruction_loss"] != losses[1]

    def test_larger_images_train_in_bfloat16_and_are_restored_in_float32(
        self, tiny, eagerly, tmp_path
    ):
        changes = {"precision": "mixed_bfloat16", "image_size": 64, "epochs": 1, "dream_every": 1}
        config = tiny(tmp_path, train_examples=8, **changes)
        result = train(config, export=False)
        assert all(np.isfinite(value) for value in result.history["1"].values())
        page = np.asarray(Image.open(result.run_folder / "figures" / "wake.png"))
        assert page.std() > 10
        encoder = restore_run(result.run_folder)[1].encoder
        assert encoder.inputs[0].shape == (None, 64, 64, 3)
        assert all(layer.compute_dtype == "float32" for layer in encoder.layers[1:])


class TestData:
    def test_unlabelled_images_train_and_the_end_says_what_needs_labels(
        self, image_folder, tiny, tmp_path, quick_main, success
    ):
        loose = tmp_path / "loose" / "train"
        loose.mkdir(parents=True)
        for number, file in enumerate(sorted((image_folder / "train").rglob("*.png"))):
            shutil.copy(file, loose / f"{number}.png")
        config = tiny(tmp_path, dataset=str(loose.parent), epochs=1, dream_every=1, probe_every=1)
        out = success(quick_main, config)
        assert "no labels" in out
        assert "probe" in out
        history = json.loads(Path(config.run_dir, "history.json").read_text())
        assert not any(PROBE in entry for entry in history.values())
        logs = Path(config.run_dir, "logs")
        assert not (logs / "labels.tsv").exists()
        assert "metadata_path" not in (logs / "projector_config.pbtxt").read_text()
        assert len((logs / "latents.tsv").read_text().splitlines()) == 5

    def test_images_of_a_single_class_train(self, image_folder, tiny, tmp_path, quick_train):
        shutil.copytree(image_folder / "train" / "cat", tmp_path / "cats" / "train" / "cat")
        result = quick_train(tiny(tmp_path, dataset=str(tmp_path / "cats"), epochs=1))
        assert list(result.history) == ["0", "1"]

    def test_subset_is_trained_on_the_whole_of_it(self, tiny, tmp_path, quick_train):
        result = quick_train(tiny(tmp_path, train_examples=24, epochs=1))
        assert restore_run(result.run_folder)[1].step.numpy() == 3
        assert len((result.run_folder / "logs" / "latents.tsv").read_text().splitlines()) == 2

    def test_held_out_images_have_no_part_in_training(
        self, image_folder, tiny, tmp_path, quick_train, state_of, assert_same_run
    ):
        rows = validation_split(48, 0)[1]
        other = shutil.copytree(image_folder, tmp_path / "other")
        files = [
            file
            for number in range(16)
            for file in sorted((other / "train").glob(f"*/{number:02}.png"))
        ]
        for row in rows:  # `load` has the classes take turns
            Image.new("RGB", (32, 32), "red").save(files[row])
        changed = (load(str(other), "train").images != load(str(image_folder), "train").images).any(
            axis=(1, 2, 3)
        )
        np.testing.assert_array_equal(np.flatnonzero(changed), rows)
        configs, steps = [], []
        for hold_out in (True, False):
            for name, images in (("first", image_folder), ("second", other)):
                folder = tmp_path / f"{name}-{hold_out}"
                config = tiny(folder, dataset=str(images), hold_out=hold_out, epochs=1)
                quick_train(config)
                configs.append(config)
                steps.append(newest_step(config.run_path))
        assert_same_run(configs[0], configs[1])
        first, second = (state_of(config.run_path) for config in configs[2:])
        different = [name for name in first if (first[name] != second[name]).any()]
        assert len(different) > 50
        assert steps == [5, 5, 6, 6]  # 43 of 48 images are five mini-batches of eight

    def test_run_with_images_held_out_probes_on_them_and_continues_to_the_same_bits(
        self, tiny, tmp_path, quick_train, assert_same_run
    ):
        whole, parts = tiny(tmp_path / "a", hold_out=True), tiny(tmp_path / "b", hold_out=True)
        quick_train(whole)
        result = quick_train(dataclasses.replace(parts, epochs=1))
        encoder = restore_run(result.run_folder)[1].encoder
        assert result.history["1"][PROBE] == probe_accuracy(parts, encoder)
        quick_train(parts)
        assert_same_run(parts, whole)
        with pytest.raises(UsageError, match="--hold_out was True and is False"):
            train(dataclasses.replace(parts, hold_out=False))

    @pytest.mark.parametrize(
        ("flag", "expected"),
        [
            ("--batch_size=49", "--batch_size=49 is more than the 48 training images"),
            ("--train_examples=49", "--train_examples=49 is more than the 48 training images"),
            ("--train_examples=4", "--batch_size=8 is more than the 4 training images"),
            ("--batch_size=44 --hold_out", "--batch_size=44 is more than the 43 training images"),
        ],
    )
    def test_sizes_that_do_not_fit_the_data_are_one_line(
        self, flag, expected, tiny, tmp_path, refusal
    ):
        assert expected in refusal(program.main, tiny(tmp_path), *flag.split())
        assert not (tmp_path / "run" / "checkpoints").exists()

    def test_broken_image_is_one_line(self, image_folder, tiny, tmp_path, refusal):
        copy = shutil.copytree(image_folder, tmp_path / "images")
        broken = copy / "train" / "dog" / "07.png"
        broken.write_bytes(broken.read_bytes()[:100])
        config = tiny(tmp_path, dataset=str(copy))
        assert str(broken) in refusal(program.main, config, status=1)


class TestDivergence:
    def test_loss_that_is_not_finite_stops_and_names_phase_step_and_checkpoint(
        self, tiny, eagerly, tmp_path, refusal, monkeypatch, state_of
    ):
        options = {"phases": ("wake", "nrem"), "train_examples": 16, "epochs": 3}
        config = tiny(tmp_path, **options)
        step = tf.Variable(0)

        def poisoned(self, replayed, recovered):
            return tf.where(step.assign_add(1) == 3, np.nan, tf.reduce_mean(recovered**2))

        monkeypatch.setattr(ad_keras.LatentDistance, "__call__", poisoned)
        error = refusal(program.main, config, status=1)
        assert "nrem/recovery_loss became nan at step 3 (epoch 2)" in error
        last = Path(config.run_dir, "checkpoints", "recent", "step-2")
        assert f"last good checkpoint is {last}" in error
        assert "--encoder_learning_rate" in error
        assert all(
            np.isfinite(value).all()
            for value in state_of(config.run_dir).values()
            if value.dtype.kind == "f"
        )
        assert newest_step(config.run_path) == 2

    def test_weight_that_is_not_finite_is_not_saved(self, tiny, tmp_path, quick_train):
        config = tiny(tmp_path, epochs=3)

        def spoil(epoch, logs=None):
            if epoch == 2:
                first = callback.model.generator.trainable_variables[0]
                first.assign(tf.fill(first.shape, np.inf))

        callback = keras.callbacks.LambdaCallback(on_epoch_begin=spoil)
        with pytest.raises(RunError, match=r"step-12"):
            quick_train(config, [callback])
        assert newest_step(config.run_path) == 12

    def test_latents_that_overflow_are_one_line(self, tiny, tmp_path, quick_train, monkeypatch):
        def overflowing(encoder, images):
            return np.full((len(images), 8), np.inf, np.float32)

        monkeypatch.setattr(reports, "encode", overflowing)
        told = r"\Athe latents became infinite or NaN: lower --encoder_learning_rate .*\Z"
        with pytest.raises(RunError, match=told):
            quick_train(tiny(tmp_path))

    def test_a_single_labelled_image_is_too_few_for_a_probe(self):
        image = data.ImageSet(np.zeros((1, 32, 32, 3), np.uint8), np.zeros(1, np.int64), ("a", "b"))
        assert not reports.Probe(image, seed=0).possible


OOM = "{{function_node f}} OOM when allocating tensor [Op:Conv2D] name: "
GRAPH = (
    "Graph execution error:\n\nDetected at node a/b defined at\n"
    '  File "x.py", line 3, in f\n\nwrong shape\n\t [[{{node a/b}}]] [Op:g]'
)


class TestOtherFailures:
    @pytest.mark.parametrize(
        ("failure", "expected"),
        [
            (tf.errors.ResourceExhaustedError(None, None, OOM), "OOM when allocating tensor."),
            (tf.errors.InvalidArgumentError(None, None, GRAPH), "wrong shape."),
            (MemoryError("Unable to allocate 7 TiB"), "Unable to allocate 7 TiB."),
        ],
    )
    def test_cause_is_told_in_one_line(
        self, failure, expected, tiny, tmp_path, quick_main, refusal, monkeypatch
    ):
        def fail(*_, **__):
            raise failure

        monkeypatch.setattr(callbacks.LossLog, "on_train_batch_end", fail)
        error = refusal(quick_main, tiny(tmp_path), status=1)
        assert error.startswith(f"error: the run in {tmp_path / 'run'} failed: {expected} What")
        assert "disk" not in error


class TestCallbacks:
    def test_callbacks_see_one_training_of_a_run_that_stopped_within_an_epoch(
        self, finished, tiny, tmp_path, quick_train, assert_same_run
    ):
        config = tiny(tmp_path, epochs=4, probe_every=1)
        first, second = StopAt(15), StopAt()
        result = quick_train(config, [first])
        assert first.told == ["begin", 0, 1, 2, "end"]
        assert list(result.history) == ["0", "1", "2"]
        assert newest_step(result.run_folder) == 15
        result = quick_train(config, [second])
        assert second.told == ["begin", 2, 3, "end"]
        assert result.history == finished[1].history
        assert_same_run(config, finished[0])

    def test_run_can_be_stopped_early_by_its_probe_and_ends_in_order(
        self, tiny, tmp_path, quick_train
    ):
        stop = keras.callbacks.EarlyStopping(
            "ridge_probe/validation_accuracy", mode="max", baseline=1.5, patience=2
        )
        config = tiny(tmp_path, epochs=9, probe_every=1, dream_every=3, train_examples=8)
        result = quick_train(config, [stop])
        assert list(result.history) == ["0", "1", "2"]
        assert [step for step, _ in events(result.run_folder)["dreams/rem"]] == [0, 2]
        assert sorted(scalars(result.run_folder, "ridge_" + PROBE)) == [0, 1, 2]

    def test_last_probe_of_a_run_that_stops_early_is_made(self, tiny, tmp_path, quick_train):
        result = quick_train(tiny(tmp_path, epochs=9), [StopAt(12)])
        assert [epoch for epoch, entry in result.history.items() if PROBE in entry] == ["0", "2"]

    def test_training_works_in_a_thread(self, tiny, eagerly, tmp_path):
        options = {"phases": ("wake",), "external_weight": 0.0, "train_examples": 8}
        config = tiny(tmp_path, epochs=1, **options)
        with concurrent.futures.ThreadPoolExecutor() as pool:
            result = pool.submit(train, config, export=False).result()
        # Phases and losses that there are not are not logged.
        assert {name for name in result.history["1"] if "probe" not in name} == {
            "wake/reconstruction_loss",
            "wake/kl_loss",
        }


def with_sgd(config):
    model = build_model(config)
    model.compile(keras.optimizers.SGD(0.01), keras.optimizers.SGD(0.01), run_eagerly=True)
    return model


def with_more_filters(config):
    return build_model(dataclasses.replace(config, base_filters=5))


@pytest.fixture(scope="module")
def own(tiny, tmp_path_factory):
    """Configuration of a run of a model that the flags do not describe."""
    config = tiny(tmp_path_factory.mktemp("own"), epochs=1, train_examples=8)
    train(config, build=with_sgd)
    return config


class TestOwnModel:
    def test_model_of_ones_own_is_trained_restored_and_continued(self, own):
        config, model = restore_run(own.run_dir, build=with_sgd)
        assert config == own
        assert isinstance(model.encoder_optimizer, keras.optimizers.SGD)
        _, exported = restore_export(own.saved_model_dir, build=with_sgd)
        for network in ("encoder", "generator"):
            weights = (getattr(whose, network).get_weights() for whose in (model, exported))
            for first, second in zip(*weights, strict=True):
                np.testing.assert_array_equal(first, second)
        longer = dataclasses.replace(own, epochs=2)
        history = train(longer, build=with_sgd, export=False).history
        assert list(history) == ["0", "1", "2"]

    @pytest.mark.parametrize(
        ("build", "told"),
        [
            (build_model, r"encoder_optimizer was SGD\(.*\) and is FusedAdam\("),
            (with_more_filters, r"encoder was kernel \[.*, 4\] and is kernel \[.*, 5\]"),
        ],
    )
    def test_other_model_is_refused(self, build, told, own):
        before = Path(own.run_dir, "model.json").read_bytes()
        with pytest.raises(UsageError, match=told) as error:
            train(dataclasses.replace(own, epochs=2), build=build)
        assert "\n" not in str(error.value)
        assert "was begun with another model" in str(error.value)
        with pytest.raises(UsageError, match=told):
            restore_run(own.run_dir, build=build)
        assert Path(own.run_dir, "model.json").read_bytes() == before

    def test_model_that_takes_several_steps_at_once_is_refused(self, tiny, tmp_path):
        def several(config):
            model = build_model(config)
            model.compile(steps_per_execution=2)
            return model

        with pytest.raises(UsageError, match="compiled with steps_per_execution=2"):
            train(tiny(tmp_path), build=several)

    def test_commands_say_how_to_restore_it(self, own, refusal):
        for main, flag, call in (
            (export.main, f"--run_dir={own.run_dir}", "restore_run"),
            (dream.main, f"--run_dir={own.run_dir}", "restore_run"),
            (dream.main, f"--export={own.saved_model_dir}", "restore_export"),
        ):
            error = refusal(main, flag)
            assert re.fullmatch(
                rf"error: .*parts of its own.*{call}\(folder, build=\.\.\.\).\n", error
            )


class TestDisk:
    @pytest.mark.parametrize(
        ("size", "dream_every"), [(100, 0), (3_000, 0), (20_000, 1), (250_000, 1)]
    )
    def test_disk_that_takes_no_more_is_one_line_that_says_where(
        self, size, dream_every, tiny, tmp_path, quick_main, refusal
    ):
        config = tiny(tmp_path, dream_every=dream_every, checkpoint_every=3)
        with largest_file(size):
            assert str(tmp_path) in refusal(quick_main, config, status=1)

    def test_run_goes_on_from_the_last_checkpoint_once_there_is_room_again(
        self, copied, tiny, tmp_path, quick_train, assert_same_run
    ):
        longer = dataclasses.replace(copied, epochs=5, dream_every=0)
        last = re.escape(str(longer.run_path / "checkpoints" / "recent" / "step-24"))
        told = rf"\A.*cannot save a checkpoint at step 27 .*{last}.*\Z"
        with largest_file(20_000), pytest.raises(RunError, match=told):
            quick_train(longer)
        whole = tiny(tmp_path / "whole", epochs=5, probe_every=1)
        assert quick_train(longer).history == quick_train(whole).history
        assert_same_run(longer, whole)

    def test_export_that_fails_is_one_line_and_leaves_the_earlier_one(
        self, copied, refusal, monkeypatch
    ):
        Path(copied.saved_model_dir).mkdir()
        Path(copied.saved_model_dir, "metadata.json").write_text("{}")
        Path(copied.saved_model_dir, "encoder.keras").write_text("earlier")

        def fail(*_, **__):
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(tf.saved_model, "save", fail)
            assert "No space left on device" in refusal(program.main, copied, status=1)
        assert Path(copied.saved_model_dir, "encoder.keras").read_text() == "earlier"
        assert list(Path(copied.saved_model_dir).parent.glob(".*partial*")) == []

    @pytest.mark.parametrize("flag", ["run_dir", "saved_model_dir"])
    def test_folder_that_cannot_be_made_is_one_line_before_training(
        self, flag, tiny, tmp_path, refusal
    ):
        (tmp_path / "file").write_text("")
        config = tiny(tmp_path, **{flag: str(tmp_path / "file" / "x")})
        error = refusal(program.main, config, status=1)
        assert error.startswith(f"error: cannot read or write {tmp_path}/file")


class TestCommandLine:
    def test_an_export_of_another_training_is_told_before_it_is_replaced(
        self, tiny, tmp_path, quick_train
    ):
        config = tiny(tmp_path, epochs=1)
        (folder := Path(config.saved_model_dir)).mkdir()
        (folder / "metadata.json").write_text("{}")
        (note,) = quick_train(config, export=True).notes
        assert note.startswith(f"{folder} holds an export of another training")
        assert (folder / "encoder.keras").exists()
        assert quick_train(dataclasses.replace(config, epochs=2), export=True).notes == []

    def test_a_flag_without_effect_is_told(self, tiny, tmp_path, quick_main, success):
        config = tiny(tmp_path, epochs=1, agreement="vicreg")
        lines = success(quick_main, config).splitlines()
        assert "--agreement has no effect here: it needs --glimpse." in lines

    def test_pictures_that_were_never_made_are_not_promised(
        self, tiny, tmp_path, quick_train, quick_main, success
    ):
        config = tiny(tmp_path, epochs=1)
        quick_train(config)
        out = success(quick_main, config, "--dream_every=1")
        for path in re.findall(r"^Dreams: (.*)$", out, re.MULTILINE):
            assert Path(path).is_file()

    def test_fewer_epochs_than_were_trained_are_refused(
        self, tiny, tmp_path, quick_train, quick_main, refusal, success
    ):
        config = tiny(tmp_path, epochs=3)
        quick_train(config, [StopAt(12)])
        before = (tmp_path / "run" / "flags.json").read_bytes()
        told = "is in epoch 2 (step 12), beyond --epochs=1: use --epochs=2 or more"
        assert told in refusal(quick_main, config, "--epochs=1")
        assert (tmp_path / "run" / "flags.json").read_bytes() == before
        assert "2 epochs" in success(quick_main, config, "--epochs=2")

    @pytest.mark.parametrize(
        ("number", "status", "step"), [(signal.SIGTERM, 143, 4), (signal.SIGINT, 130, 6)]
    )
    def test_interrupted_step_is_finished_saved_and_continued_from(
        self, number, status, step, tiny, tmp_path, quick_train, finished, assert_same_run
    ):
        config = tiny(tmp_path, epochs=4, overwrite=True, log_every=1)
        interrupt = keras.callbacks.LambdaCallback(
            on_train_batch_begin=lambda batch, logs=None: (
                batch == step - 1 and signal.raise_signal(number)
            )
        )
        handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
        with pytest.raises(Interrupted) as stop:
            quick_train(config, [interrupt])
        assert stop.value.exit_status == status
        assert f"{number.name} at step {step}: the state is saved" in str(stop.value)
        assert "without --overwrite" in str(stop.value)
        assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers
        assert sorted(scalars(config.run_dir, "wake/kl_loss")) == list(range(1, step + 1))
        result = quick_train(dataclasses.replace(config, overwrite=False))
        for epoch, entry in result.history.items():
            assert (epoch == "0") or entry.keys() >= LOSSES
        assert_same_run(config, finished[0])

    def test_second_signal_ends_at_once_even_if_it_is_another(self):
        guard = Guard(None, 1, None)
        handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
        guard.note(signal.SIGINT, None)
        now = [
            signal.signal(*pair)
            for pair in zip((signal.SIGTERM, signal.SIGINT), handlers, strict=True)
        ]
        assert now == [signal.SIG_DFL, signal.SIG_DFL]

    def test_signal_during_the_last_report_is_heeded(self, finished, copied, quick_train):
        interrupt = keras.callbacks.LambdaCallback(
            on_epoch_end=lambda epoch, logs: signal.raise_signal(signal.SIGTERM)
        )
        longer = dataclasses.replace(copied, epochs=5, dream_every=0)
        with pytest.raises(Interrupted, match="SIGTERM at step 30: the state is saved"):
            quick_train(longer, [interrupt], export=True)
        assert not longer.export_path.exists()
        assert list(quick_train(longer).history) == list("012345")


def test_run_in_its_default_place_stays_in_the_working_directory(
    tiny, tmp_path, quick_train, quick_export, monkeypatch, image_folder
):
    monkeypatch.chdir(tmp_path)
    config = tiny(tmp_path, run_dir=None, saved_model_dir=None, epochs=1)
    result = quick_train(config, export=True)
    other = dataclasses.replace(config, run_dir=f"elsewhere/{image_folder.name}")
    with pytest.raises(UsageError, match=r"is the export of another run, .*--saved_model_dir"):
        quick_train(other, export=True)
    assert not Path("elsewhere").exists()
    name = image_folder.name
    assert result.run_folder.resolve() == tmp_path / "runs" / name
    assert result.export_folder.resolve() == tmp_path / "saved_models" / name
    assert sorted(os.listdir(tmp_path)) == ["runs", "saved_models"]


class Rates(keras.callbacks.Callback):
    """Notes both learning rates at each step."""

    def __init__(self):
        super().__init__()
        self.seen = {}

    def on_train_batch_end(self, batch, logs=None):
        optimizers = (self.model.encoder_optimizer, self.model.generator_optimizer)
        self.seen[int(self.model.step.numpy()) - 1] = [float(o.learning_rate) for o in optimizers]


def test_a_scheduled_run_continues_bit_for_bit(tiny, eagerly, tmp_path, state_of, assert_same_run):
    options = {"schedule": "cosine", "warmup_epochs": 0.34, "encoder_learning_rate": 1e-3}
    options |= {"phases": ("wake", "rem"), "epochs": 1, "train_examples": 24}
    options |= {"average_weights": 0.9}
    whole, parts = (tiny(tmp_path / place, **options) for place in ("whole", "parts"))
    seen = [Rates(), Rates(), Rates()]
    train(whole, [seen[0]], export=False)
    for stop in (StopAt(1), StopAt()):
        train(parts, [stop, seen[1]], export=False)
    expected = np.outer([0, 1, 0.5], [1e-3, 2e-4])  # by step: warm-up, then half a cosine
    assert list(seen[0].seen) == [0, 1, 2]
    np.testing.assert_allclose(list(seen[0].seen.values()), expected, rtol=1e-5, atol=1e-12)
    assert seen[1].seen == seen[0].seen
    assert_same_run(parts, whole)
    # What is looked at are the averages.
    model = restore_run(whole.run_path)[1]
    averages = {
        name: value for name, value in state_of(whole.run_path).items() if "/averages/" in name
    }
    for number, (weight, average) in enumerate(model.averaged):
        saved = averages[f"model/averages/{number}/.ATTRIBUTES/VARIABLE_VALUE"]
        assert weight.numpy().tobytes() == average.numpy().tobytes() == saved.tobytes()
    # What an export says of the optimizers does not depend on when it is made.
    described = export_metadata(*restore_run(whole.run_path))["model"]["encoder_optimizer"]
    assert described["config"]["learning_rate"] == pytest.approx(1e-3)
    # For longer, the rates are those of the longer cosine.
    train(dataclasses.replace(parts, epochs=2), [seen[2]], export=False)
    share = (1 + np.cos(np.pi * np.array([2, 3, 4]) / 5)) / 2
    found = np.array(list(seen[2].seen.values()))
    np.testing.assert_allclose(found, np.outer(share, [1e-3, 2e-4]), rtol=1e-5)


def test_a_run_of_an_earlier_version_has_the_defaults_of_later_settings():
    now = describe_model(build_model(Config(base_filters=2, latent_dim=2)))
    later = ("average_weights", "clip_norm", "decorrelation_weight", "gradient_penalty_weight")
    before = {name: value for name, value in now.items() if name not in later}
    assert difference(before, now) == ""
    changed = difference(before, {**now, "average_weights": 0.9})
    assert changed == "average_weights was 0.0 and is 0.9"


def test_a_model_of_another_class_or_of_other_layers_is_another():
    class Mine(PAD):
        pass

    def build(activation, model=PAD):
        latent = keras.Input((2,))
        generator = keras.Sequential(
            [latent, keras.layers.Dense(12, activation), keras.layers.Reshape((2, 2, 3))]
        )
        images = keras.Input((2, 2, 3))
        flat = keras.layers.Flatten()(images)
        outputs = {"latent": keras.layers.Dense(2)(flat), "external_logit": flat[:, 0]}
        model = model(keras.Model(images, outputs), generator, hippocampus=Hippocampus(2))
        model.compile()
        return describe_model(model)

    before = build("tanh")
    assert difference(before, build("tanh")) == ""
    changed = difference(before, build("relu"))
    assert re.fullmatch(r"generator_layers was Dense \['tanh'.* and is Dense \['relu'.*", changed)
    assert difference(before, build("tanh", Mine)) == "class_name was PAD and is Mine"
    older = {name: value for name, value in before.items() if "_layers" not in name}
    assert difference(older, build("relu")) == ""
