import dataclasses
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import ad_keras
from ad_keras import export
from ad_keras.data import load
from ad_keras.errors import UsageError
from ad_keras.runs.restore import restore_run
from ad_keras.runs.training import train


def read(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its content."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


class TestFinishedRun:
    def test_export_of_a_run_is_what_training_exported(self, finished, tmp_path, outcome):
        config, result = finished
        target = tmp_path / "again"
        status, out, error = outcome(
            export.main, f"--run_dir={config.run_dir}", f"--saved_model_dir={target}"
        )
        assert (status, error) == (0, "")
        assert out == f"Encoder and generator after 24 steps: {target}\n"
        images = load(config.dataset, "test").images
        first, second = (
            ad_keras.load_encoder(folder).predict(images, verbose=0)
            for folder in (result.export_folder, target)
        )
        np.testing.assert_array_equal(first["latent"], second["latent"])
        said = [
            json.loads((folder / "metadata.json").read_text())
            for folder in (result.export_folder, target)
        ]
        assert said[0] == said[1]

    def test_exported_networks_are_those_of_the_run(self, finished):
        config, result = finished
        images = load(config.dataset, "test").images
        _, model = restore_run(result.run_folder)
        expected = model(images)
        served = tf.saved_model.load(str(result.export_folder / "encoder"))
        outputs = served.signatures["serving_default"](images=tf.constant(images))
        np.testing.assert_allclose(outputs["latent"], expected["latent"], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(
            outputs["external_probability"], expected["external_probability"], rtol=1e-4
        )
        generator = tf.saved_model.load(str(result.export_folder / "generator"))
        rebuilt = generator.signatures["serving_default"](latent=expected["latent"])["images"]
        pixels = (expected["reconstruction"].numpy() + 1) * 127.5
        assert np.abs(rebuilt.numpy() - pixels).max() <= 0.51

    def test_export_says_where_it_comes_from(self, finished):
        config, result = finished
        said = json.loads((result.export_folder / "metadata.json").read_text())
        assert said["dataset"] == config.dataset
        assert said["condition"] == "full"
        assert (said["step"], said["seed"], said["latent_dim"]) == (24, 0, 8)
        assert said["image_shape"] == [32, 32, 3]
        assert said["flags"]["base_filters"] == 4

    def test_export_goes_where_the_run_was_told_unless_told_otherwise(self, copied, outcome):
        config = dataclasses.replace(copied, saved_model_dir=copied.run_dir + "-told")
        Path(config.run_dir, "flags.json").write_text(config.to_json())
        status, out, _ = outcome(export.main, f"--run_dir={config.run_dir}")
        assert status == 0
        assert out.strip().endswith(config.saved_model_dir)
        assert Path(config.saved_model_dir, "encoder.keras").is_file()

    def test_export_of_a_copy_leaves_that_of_the_original(
        self, copied, tmp_path, monkeypatch, outcome
    ):
        monkeypatch.chdir(tmp_path)
        config = dataclasses.replace(copied, saved_model_dir="told")
        Path(config.run_dir, "flags.json").write_text(config.to_json())
        assert outcome(export.main, f"--run_dir={config.run_dir}")[0] == 0
        before = read(tmp_path / "told")
        for folder in ("copy", "elsewhere/copy"):
            shutil.copytree(config.run_dir, folder)
        status, out, _ = outcome(export.main, "--run_dir=copy")
        assert (status, out) == (0, "Encoder and generator after 24 steps: saved_models/copy\n")
        status, _, error = outcome(export.main, "--run_dir=elsewhere/copy")
        assert status == 2
        assert re.fullmatch(r"error: .*--saved_model_dir\.\n", error)
        assert read(tmp_path / "told") == before
        said = json.loads(Path("saved_models", "copy", "metadata.json").read_text())
        assert said["run"] == "copy"

    def test_export_changes_nothing_in_the_run(self, copied, tmp_path, outcome):
        before = read(Path(copied.run_dir))
        outcome(export.main, f"--run_dir={copied.run_dir}", f"--saved_model_dir={tmp_path / 'x'}")
        assert read(Path(copied.run_dir)) == before

    def test_damaged_newest_checkpoint_is_passed_over_and_named(self, copied, tmp_path, outcome):
        damaged = Path(copied.run_dir, "checkpoints", "recent", "step-24.index")
        os.truncate(damaged, 10)
        status, out, error = outcome(
            export.main, f"--run_dir={copied.run_dir}", f"--saved_model_dir={tmp_path / 'x'}"
        )
        assert status == 0
        assert "after 21 steps" in out
        assert re.search(r"step-24 is damaged", out + error)


class TestUnfinishedRun:
    def test_newest_checkpoint_is_exported(self, finished, copied, tmp_path, outcome):
        for file in Path(copied.run_dir, "checkpoints", "recent").glob("step-2[14].*"):
            file.unlink()
        target = tmp_path / "early"
        status, out, error = outcome(
            export.main, f"--run_dir={copied.run_dir}", f"--saved_model_dir={target}"
        )
        assert (status, error) == (0, "")
        assert "after 18 steps" in out
        assert json.loads((target / "metadata.json").read_text())["step"] == 18
        early, late = (
            ad_keras.load_encoder(folder).get_weights()
            for folder in (target, finished[1].export_folder)
        )
        assert any((a != b).any() for a, b in zip(early, late, strict=True))

    def test_run_without_a_checkpoint_is_one_line(self, copied, outcome):
        shutil.rmtree(Path(copied.run_dir, "checkpoints"))
        status, out, error = outcome(export.main, f"--run_dir={copied.run_dir}")
        assert (status, out) == (2, "")
        assert re.fullmatch(r"error: .*\n", error)
        assert f"{copied.run_dir} has no checkpoint yet" in error
        assert not Path(copied.saved_model_dir).exists()


class TestNoRun:
    @pytest.mark.parametrize("name", ["empty", "none"])
    def test_folder_that_is_no_run_is_one_line(self, name, tmp_path, outcome):
        (tmp_path / "empty").mkdir()
        status, out, error = outcome(export.main, f"--run_dir={tmp_path / name}")
        assert (status, out) == (2, "")
        assert re.fullmatch(r"error: .*is not the folder of a run.*\n", error)
        assert str(tmp_path / name) in error
        assert not (tmp_path / "none").exists()

    def test_missing_flag_is_one_line(self, outcome):
        status, out, error = outcome(export.main)
        assert (status, out) == (2, "")
        assert re.fullmatch(r"error: --run_dir is missing.*\n", error)

    def test_flag_of_training_is_refused(self, outcome):
        status, _, error = outcome(export.main, "--run_dirs=x")
        assert status == 2
        assert "Did you mean --run_dir?" in error

    def test_folder_below_a_file_is_one_line(self, finished, tmp_path, outcome):
        (tmp_path / "file").write_text("")
        for arguments in (
            [f"--run_dir={tmp_path / 'file' / 'run'}"],
            [
                f"--run_dir={finished[0].run_dir}",
                f"--saved_model_dir={tmp_path / 'file' / 'export'}",
            ],
        ):
            status, out, error = outcome(export.main, *arguments)
            assert status in (1, 2)
            assert out == ""
            assert re.fullmatch(r"error: .*\n", error)
            assert str(tmp_path / "file") in error


class TestNothingIsLost:
    def test_folder_that_is_no_export_is_not_replaced(self, finished, tmp_path, outcome):
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "thesis.txt").write_text("long")
        status, _, error = outcome(
            export.main,
            f"--run_dir={finished[0].run_dir}",
            f"--saved_model_dir={tmp_path / 'mine'}",
        )
        assert read(tmp_path) == {"mine/thesis.txt": b"long"}
        assert status == 2
        assert re.fullmatch(r"error: .*\n", error)
        assert str(tmp_path / "mine") in error

    def test_run_is_not_replaced_by_its_export(self, copied):
        with pytest.raises(UsageError, match="saved_model_dir"):
            train(dataclasses.replace(copied, saved_model_dir=copied.run_dir))
        assert Path(copied.run_dir, "checkpoints", "recent", "step-24.index").is_file()

    @pytest.mark.parametrize("target", ["run", "run/../", ".", "run/checkpoints"])
    def test_export_that_would_replace_its_run_is_refused_before_training(
        self, target, tiny, tmp_path
    ):
        with pytest.raises(UsageError, match="saved_model_dir"):
            train(tiny(tmp_path, saved_model_dir=str(tmp_path / target)))
        assert not list(tmp_path.rglob("*.index"))

    def test_working_directory_as_target_is_one_line(
        self, finished, tmp_path, outcome, monkeypatch
    ):
        monkeypatch.chdir(tmp_path)
        for target in (".", "..", "x/.."):
            status, _, error = outcome(
                export.main, f"--run_dir={finished[0].run_dir}", f"--saved_model_dir={target}"
            )
            assert status == 2
            assert re.fullmatch(rf"error: --saved_model_dir={target} .*\n", error)
        assert not list(tmp_path.iterdir())

    def test_empty_folder_and_earlier_export_are_replaced(self, finished, tmp_path, outcome):
        target = tmp_path / "export"
        target.mkdir()
        for _ in range(2):
            status, _, error = outcome(
                export.main, f"--run_dir={finished[0].run_dir}", f"--saved_model_dir={target}"
            )
            assert (status, error) == (0, "")
            assert [path.name for path in tmp_path.iterdir()] == ["export"]
            assert (target / "encoder.keras").is_file()
