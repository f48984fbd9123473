import dataclasses
import json
import os
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import ad_keras
from ad_keras import export
from ad_keras.data import load
from ad_keras.errors import UsageError
from ad_keras.runs.config import Config
from ad_keras.runs.training import train


def read(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its content."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


class TestFinishedRun:
    def test_export_of_a_run_is_what_training_exported_and_changes_nothing_in_the_run(
        self, finished, tmp_path, success, quick_export
    ):
        config, result = finished
        before = read(Path(config.run_dir))
        target = tmp_path / "again"
        target.mkdir()
        flags = f"--run_dir={config.run_dir}", f"--saved_model_dir={target}"
        assert success(export.main, *flags) == f"Encoder and generator after 24 steps: {target}\n"
        assert [path.name for path in tmp_path.iterdir()] == ["again"]
        images = load(config.dataset, "test").images
        first, second = (
            ad_keras.load_encoder(folder).predict(images, verbose=0)
            for folder in (result.export_folder, target)
        )
        np.testing.assert_array_equal(first["latent"], second["latent"])
        first, second = (
            json.loads((folder / "metadata.json").read_text())
            for folder in (result.export_folder, target)
        )
        assert first == second
        assert read(Path(config.run_dir)) == before

    def test_export_says_where_it_comes_from(self, finished):
        config, result = finished
        said = json.loads((result.export_folder / "metadata.json").read_text())
        assert said["dataset"] == config.dataset
        assert said["condition"] == "full"
        assert (said["step"], said["seed"], said["latent_dim"]) == (24, 0, 8)
        assert said["image_shape"] == [32, 32, 3]
        assert said["flags"]["base_filters"] == 4

    def test_export_goes_where_the_run_was_told_and_that_of_a_copy_elsewhere(
        self, copied, tmp_path, monkeypatch, success, refusal, quick_export
    ):
        monkeypatch.chdir(tmp_path)
        config = dataclasses.replace(copied, saved_model_dir="told")
        Path(config.run_dir, "flags.json").write_text(config.to_json())
        told = "Encoder and generator after 24 steps: "
        assert success(export.main, f"--run_dir={config.run_dir}") == f"{told}told\n"
        before = read(tmp_path / "told")
        for folder in ("copy", "elsewhere/copy"):
            shutil.copytree(config.run_dir, folder)
        assert success(export.main, "--run_dir=copy") == f"{told}saved_models/copy\n"
        assert refusal(export.main, "--run_dir=elsewhere/copy").endswith("--saved_model_dir.\n")
        assert read(tmp_path / "told") == before
        said = json.loads(Path("saved_models", "copy", "metadata.json").read_text())
        assert said["run"] == "copy"

    def test_export_to_a_full_disk_is_one_line(self, copied, monkeypatch, refusal):
        def fail(*_, **__):
            raise tf.errors.ResourceExhaustedError(None, None, "No space left on device")

        monkeypatch.setattr(tf.saved_model, "save", fail)
        error = refusal(export.main, f"--run_dir={copied.run_dir}", status=1)
        assert "No space left on device. Is the disk full" in error

    def test_export_of_a_run_that_was_trained_meanwhile_is_not_replaced(
        self, copied, tmp_path, monkeypatch, quick_export
    ):
        monkeypatch.chdir(tmp_path)
        longer = dataclasses.replace(copied, epochs=5, saved_model_dir=None)
        other = tmp_path / "saved_models" / "run" / "metadata.json"

        def export_other(logs):
            other.parent.mkdir(parents=True)
            (tmp_path / "other").mkdir()
            other.write_text(json.dumps({"flags": dataclasses.asdict(Config(run_dir="other"))}))

        meanwhile = keras.callbacks.LambdaCallback(on_train_end=export_other)
        with pytest.raises(UsageError, match="is the export of another run, other"):
            train(longer, [meanwhile])
        assert [path.name for path in other.parent.iterdir()] == ["metadata.json"]

    @pytest.mark.parametrize(
        ("changes", "told"),
        [
            ({}, {"probe": 0.25, "logistic_probe": 0.5}),
            ({"step": 23}, {}),
            ({"dataset": "another"}, {}),
            ({"metrics": None}, {}),
        ],
    )
    def test_export_tells_the_accuracy_that_was_measured_of_this_state_on_the_runs_data(
        self, changes, told, copied, tmp_path, success, quick_export
    ):
        figures = {"probe": {"mean_of_seeds": 0.25, "seeds": [0.2, 0.3]}, "knn": 0.3}
        figures["logistic_probe"] = {"accuracy": 0.5}
        metrics = {name: {"values": {"trained": value}} for name, value in figures.items()}
        results = {"step": 24, "dataset": "here", "trained_on": "here", "metrics": metrics}
        Path(copied.run_dir, "results.json").write_text(json.dumps(results | changes))
        flags = f"--run_dir={copied.run_dir}", f"--saved_model_dir={tmp_path / 'measured'}"
        success(export.main, *flags)
        said = json.loads((tmp_path / "measured" / "metadata.json").read_text())
        assert said["test_accuracy"] == told


class TestUnfinishedRun:
    def test_newest_checkpoint_that_is_not_damaged_is_exported(
        self, finished, copied, tmp_path, success, quick_export
    ):
        recent = Path(copied.run_dir, "checkpoints", "recent")
        for file in recent.glob("step-24.*"):
            file.unlink()
        os.truncate(recent / "step-21.index", 10)
        target = tmp_path / "early"
        out = success(export.main, f"--run_dir={copied.run_dir}", f"--saved_model_dir={target}")
        assert "step-21 is damaged" in out
        assert "after 18 steps" in out
        assert json.loads((target / "metadata.json").read_text())["step"] == 18
        early, late = (
            ad_keras.load_encoder(folder).get_weights()
            for folder in (target, finished[1].export_folder)
        )
        assert any((a != b).any() for a, b in zip(early, late, strict=True))

    def test_run_without_a_checkpoint_is_one_line(self, copied, refusal):
        shutil.rmtree(Path(copied.run_dir, "checkpoints"))
        error = refusal(export.main, f"--run_dir={copied.run_dir}")
        assert f"{copied.run_dir} has no checkpoint yet" in error
        assert not Path(copied.saved_model_dir).exists()


class TestRefusals:
    @pytest.mark.parametrize(
        ("arguments", "expected", "told"),
        [
            ("--run_dir={here}/empty", 2, "{here}/empty is not the folder of a run"),
            ("--run_dir={here}/file/run", 1, "cannot read or write {here}/file/run"),
            ("--run_dir={run} --saved_model_dir={here}/file/x", 1, "cannot read or write {here}/f"),
            ("--run_dir={run} --saved_model_dir={here}/mine", 2, "{here}/mine holds something"),
            ("--run_dir={run} --saved_model_dir={here}/file", 2, "{here}/file holds something"),
            ("--run_dir={run} --saved_model_dir=.", 2, "exporting to . would replace"),
            ("--run_dir={run} --saved_model_dir=..", 2, "exporting to .. would replace"),
            ("--run_dir={run} --saved_model_dir=x/..", 2, "exporting to x/.. would replace"),
        ],
    )
    def test_mistakes_are_one_line_and_lose_nothing(
        self, arguments, expected, told, finished, tmp_path, monkeypatch, refusal
    ):
        (tmp_path / "empty").mkdir()
        (tmp_path / "file").write_text("")
        (tmp_path / "mine").mkdir()
        for name in ("thesis.txt", "metadata.json"):
            (tmp_path / "mine" / name).write_text("long")
        monkeypatch.chdir(tmp_path / "empty")
        places = {"here": tmp_path, "run": finished[0].run_dir}
        before = sorted(tmp_path.rglob("*"))
        error = refusal(export.main, *arguments.format(**places).split(), status=expected)
        assert error.startswith(f"error: {told.format(**places)}")
        assert sorted(tmp_path.rglob("*")) == before

    @pytest.mark.parametrize("target", ["run", "run/../", ".", "run/checkpoints"])
    def test_export_that_would_replace_its_run_is_refused_before_training(
        self, target, tiny, tmp_path
    ):
        with pytest.raises(UsageError, match="saved_model_dir"):
            train(tiny(tmp_path, saved_model_dir=str(tmp_path / target)))
        assert not list(tmp_path.rglob("*.index"))
