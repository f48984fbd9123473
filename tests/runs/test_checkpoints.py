import dataclasses
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from ad_keras import PAD, build_encoder, build_generator
from ad_keras.errors import RunError, UsageError
from ad_keras.runs.checkpoints import Checkpoints, newest_step
from ad_keras.runs.folder import load_config, open_run, write_atomically
from ad_keras.runs.reports import Reports
from ad_keras.runs.restore import restore_run
from ad_keras.runs.training import train

SECONDS = 600  # after which a process counts as hanging


class Killed(BaseException):
    """Ends a run in this process without giving it a chance to tidy up."""


def file_of(config, step: int, suffix: str) -> Path:
    return Path(config.run_dir, "checkpoints", "recent", f"step-{step}.{suffix}")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 64] = bytes(byte ^ 0xFF for byte in content[middle : middle + 64])
    path.write_bytes(content)


DAMAGES = {
    "data cut off": lambda config, step: cut(file_of(config, step, "data-00000-of-00001")),
    "data lost": lambda config, step: file_of(config, step, "data-00000-of-00001").unlink(),
    "bytes flipped": lambda config, step: flip(file_of(config, step, "data-00000-of-00001")),
    "index cut off": lambda config, step: cut(file_of(config, step, "index")),
}


class TestFinishedRun:
    def test_starting_again_trains_nothing(self, finished, copied, quick_train, assert_same_run):
        config, first = finished
        again = quick_train(copied)
        assert again.notes == []
        assert again.history == first.history
        assert_same_run(copied, config)

    def test_more_epochs_continue_to_the_same_weights_as_one_long_run(
        self, copied, tiny, tmp_path, quick_train, assert_same_run
    ):
        longer = quick_train(dataclasses.replace(copied, epochs=6, dream_every=0))
        whole = tiny(tmp_path / "whole", epochs=6, probe_every=1)
        assert longer.history == quick_train(whole).history
        assert list(longer.history) == [str(epoch) for epoch in range(7)]
        assert_same_run(copied, whole)

    def test_checkpoints_hold_the_newest_three_and_the_round_epochs(self, finished):
        folder = finished[1].run_folder / "checkpoints"
        recent = sorted(path.stem for path in (folder / "recent").glob("*.index"))
        assert recent == ["step-18", "step-21", "step-24"]
        epochs = sorted(path.stem for path in (folder / "epochs").glob("*.index"))
        assert epochs == ["epoch-1", "epoch-2"]
        reader = tf.train.load_checkpoint(str(folder / "epochs" / "epoch-2"))
        assert reader.get_tensor("model/step/.ATTRIBUTES/VARIABLE_VALUE") == 12

    def test_restored_model_has_the_saved_weights_memory_and_optimizers(self, finished, state_of):
        config, model = restore_run(finished[1].run_folder)
        assert config == finished[0]
        saved = {(v.shape, v.tobytes()) for v in state_of(finished[1].run_folder).values()}
        optimizers = (model.encoder_optimizer, model.generator_optimizer)
        variables = [*model.weights, *(each for one in optimizers for each in one.variables)]
        assert len(variables) >= 60
        for variable in variables:
            value = np.asarray(variable.value)
            assert (value.shape, value.tobytes()) in saved, variable.path
        assert int(model.step.numpy()) == 24
        assert np.ptp(model.hippocampus.latents.numpy()) > 0

    def test_random_numbers_of_layers_go_on_where_they_were(self, tmp_path):
        plain = build_encoder(latent_dim=4, base_filters=2)
        outputs = {**plain.output, "latent": keras.layers.Dropout(0.5)(plain.output["latent"])}
        encoder = keras.Model(plain.input, outputs)
        model = PAD(encoder, build_generator(latent_dim=4, base_filters=2))
        model.compile()
        checkpoints, images = Checkpoints(model, tmp_path), np.zeros((2, 32, 32, 3), np.float32)
        encoder(images, training=True)
        checkpoints.save()
        first, _ = (encoder(images + 1, training=True)["latent"] for _ in range(2))
        checkpoints.restore()
        np.testing.assert_array_equal(encoder(images + 1, training=True)["latent"], first)


class TestDamage:
    @pytest.mark.parametrize("damage", DAMAGES)
    def test_run_continues_from_the_checkpoint_before_a_damaged_one_and_says_so(
        self, damage, finished, copied, quick_train, assert_same_run, capsys
    ):
        DAMAGES[damage](copied, 24)
        result = quick_train(copied)
        (note,) = result.notes
        assert str(file_of(copied, 24, "x").with_suffix("")) in note
        assert "damaged" in note
        assert "the one before" in note
        assert note in capsys.readouterr().out.splitlines()
        assert result.history == finished[1].history
        assert_same_run(copied, finished[0])

    def test_two_damaged_checkpoints_are_passed_over_and_replaced(
        self, finished, copied, quick_train, assert_same_run
    ):
        DAMAGES["bytes flipped"](copied, 24)
        DAMAGES["index cut off"](copied, 21)
        assert len(quick_train(copied).notes) == 2
        assert_same_run(copied, finished[0])
        # Nor does it matter if the list of checkpoints is lost.
        Path(copied.run_dir, "checkpoints", "recent", "checkpoint").unlink()
        assert quick_train(copied).notes == []
        assert_same_run(copied, finished[0])

    def test_only_damaged_checkpoints_end_with_one_line(self, copied, quick_main, refusal):
        for step in (18, 21, 24):
            DAMAGES["bytes flipped"](copied, step)
        before = set(Path(copied.run_dir).rglob("*"))
        error = refusal(quick_main, copied, status=1)
        assert re.match(r"error: none of the 3 checkpoints in .* can be read.*--overwrite", error)
        assert set(Path(copied.run_dir).rglob("*")) >= before

    @pytest.mark.parametrize("damage", [cut, Path.unlink])
    def test_lost_history_does_not_hinder_the_end(self, damage, copied, quick_main, success):
        damage(Path(copied.run_dir, "history.json"))
        out = success(quick_main, copied)
        assert re.search(r", after 4 epochs\n  linear probe .*\)  *\d+\.\d%\n", out)

    def test_damaged_flags_are_one_line(self, copied, quick_main, refusal):
        cut(Path(copied.run_dir, "flags.json"))
        assert re.search(r"flags\.json cannot be read .*--overwrite", refusal(quick_main, copied))


class TestOtherFlags:
    def test_differences_are_listed_and_nothing_is_changed(self, copied, quick_main, refusal):
        before = Path(copied.run_dir, "flags.json").read_text()
        other = dataclasses.replace(copied, seed=1, latent_dim=16, epochs=9)
        error = refusal(quick_main, other)
        assert "--seed was 0 and is 1" in error
        assert "--latent_dim was 8 and is 16" in error
        assert "--epochs" not in error
        assert "--overwrite" in error
        assert Path(copied.run_dir, "flags.json").read_text() == before
        assert newest_step(Path(copied.run_dir)) == 24

    def test_flags_are_compared_before_lengths(self, copied):
        with pytest.raises(UsageError, match="--batch_size was 8 and is 24"):
            train(dataclasses.replace(copied, batch_size=24))

    def test_other_images_are_refused(self, tiny, image_folder, tmp_path, quick_train):
        images = shutil.copytree(image_folder, tmp_path / "images")
        config = tiny(tmp_path, dataset=str(images), epochs=1)
        quick_train(config)
        owls = images / "train" / "owl"
        for file, told in (("16.png", "but now there are 49"), ("00.png", "they are not the same")):
            shutil.copy(owls / "01.png", owls / file)
            told = rf"\A.*was begun with 48 images of .*{told}.*\Z"
            with pytest.raises(UsageError, match=told):
                train(dataclasses.replace(config, epochs=2))
            (owls / "16.png").unlink(missing_ok=True)
        again = quick_train(dataclasses.replace(config, overwrite=True))
        assert list(again.history) == ["0", "1"]

    @pytest.mark.parametrize("lost", ["model.json", "data.json"])
    def test_run_of_an_earlier_version_is_refused(self, lost, copied):
        Path(copied.run_dir, lost).unlink()
        with pytest.raises(UsageError, match="earlier version"):
            train(copied)

    @pytest.mark.parametrize("overwrite", [False, True])
    def test_folder_of_runs_is_no_runs_folder(self, copied, quick_main, refusal, overwrite):
        folder = Path(copied.run_dir)
        above = dataclasses.replace(
            copied, run_dir=str(folder.parent), saved_model_dir="elsewhere", overwrite=overwrite
        )
        before = sorted(folder.parent.iterdir())
        error = refusal(quick_main, above)
        assert f"{folder.parent} is a folder of run folders" in error
        assert f"--run_dir={folder.parent / 'new'}" in error
        assert sorted(folder.parent.iterdir()) == before

    def test_run_within_a_runs_folder_does_not_lock_it(self, copied):
        inner = Path(copied.run_dir, "inner")
        with open_run(dataclasses.replace(copied, run_dir=str(inner))):
            pass
        with open_run(copied) as folder:
            assert folder == Path(copied.run_dir)

    def test_overwrite_starts_anew_and_deletes_only_what_a_run_makes(
        self, copied, tiny, tmp_path, quick_train, assert_same_run
    ):
        folder = Path(copied.run_dir)
        (folder / "notes.txt").write_text("mine")
        (folder / "thoughts").mkdir()
        other = dataclasses.replace(
            copied, train_examples=24, epochs=1, dream_every=0, overwrite=True
        )
        result = quick_train(other)
        assert list(result.history) == ["0", "1"]
        assert (folder / "notes.txt").read_text() == "mine"
        assert (folder / "thoughts").is_dir()
        assert newest_step(folder) == 3
        assert not (folder / "figures").exists()
        assert len(list((folder / "logs").glob("events.*"))) == 1
        fresh = tiny(tmp_path / "fresh", train_examples=24, epochs=1)
        quick_train(fresh)
        assert_same_run(copied, fresh)

    def test_run_whose_overwriting_was_interrupted_is_not_continued_as_the_new_one(
        self, copied, quick_train, monkeypatch
    ):
        def interrupted(path, **_):
            if path.name == "checkpoints":
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(shutil, "rmtree", interrupted)
            with pytest.raises(KeyboardInterrupt):
                quick_train(dataclasses.replace(copied, seed=1, overwrite=True))
        with pytest.raises(UsageError, match="--seed was 0 and is 1"):
            quick_train(dataclasses.replace(copied, seed=1))

    def test_overwrite_with_data_that_cannot_be_read_deletes_nothing(self, copied, tmp_path):
        (tmp_path / "empty" / "train").mkdir(parents=True)
        with pytest.raises(UsageError, match="no images"):
            train(dataclasses.replace(copied, dataset=str(tmp_path / "empty"), overwrite=True))
        assert newest_step(Path(copied.run_dir)) == 24

    def test_start_that_failed_does_not_stand_in_the_way_of_the_next(
        self, tiny, tmp_path, quick_train
    ):
        for mistake in ({"batch_size": 4096}, {"train_examples": 4096}, {"dataset": "/"}):
            with pytest.raises(UsageError):
                train(tiny(tmp_path, **mistake))
        assert list(quick_train(tiny(tmp_path, epochs=1)).history) == ["0", "1"]

    @pytest.mark.parametrize("overwrite", [False, True])
    def test_folder_that_holds_something_else_is_left_alone(self, overwrite, tiny, tmp_path):
        (tmp_path / "run" / "logs").mkdir(parents=True)
        (tmp_path / "run" / "logs" / "diary.txt").write_text("mine")
        with pytest.raises(UsageError, match=re.escape(str(tmp_path / "run"))):
            train(tiny(tmp_path, overwrite=overwrite))
        assert (tmp_path / "run" / "logs" / "diary.txt").read_text() == "mine"


class TestLock:
    @pytest.mark.parametrize("overwrite", [False, True])
    def test_folder_in_use_is_refused_with_one_line(self, overwrite, copied, quick_main, refusal):
        with open(copied.run_path / ".lock", "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            error = refusal(quick_main, dataclasses.replace(copied, overwrite=overwrite))
        assert f"{copied.run_dir} is in use by another process" in error
        assert newest_step(copied.run_path) == 24

    def test_folder_is_free_again_afterwards(self, tiny, tmp_path):
        config = tiny(tmp_path)
        with pytest.raises(ZeroDivisionError), open_run(config):
            raise ZeroDivisionError
        with open_run(config) as folder:
            assert load_config(folder) == config


@pytest.fixture(scope="module")
def uninterrupted(tiny, quick_train, tmp_path_factory):
    config = tiny(tmp_path_factory.mktemp("uninterrupted"), checkpoint_every=3)
    return config, quick_train(config)


class TestCrash:
    def test_crash_after_any_save_leaves_a_run_that_continues_to_the_same_end(
        self, uninterrupted, tiny, tmp_path, quick_train, monkeypatch, assert_same_run
    ):
        same_run = tiny(tmp_path, checkpoint_every=3)
        save, crashed = tf.train.CheckpointManager.save, []

        def save_and_die(manager, **options):
            path = save(manager, **options)
            if path not in crashed:
                crashed.append(path)
                raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(tf.train.CheckpointManager, "save", save_and_die)
            for _ in range(6):
                with pytest.raises(Killed):
                    quick_train(same_run)
        names = [Path(path).name for path in crashed]
        assert names == ["step-3", "epoch-1", "step-6", "step-9", "epoch-2", "step-12"]
        assert quick_train(same_run).history == uninterrupted[1].history
        assert_same_run(same_run, uninterrupted[0])
        for name in ("recent", "epochs"):
            kept, expected = (
                sorted(path.name for path in Path(run, "checkpoints", name).glob("*.index"))
                for run in (same_run.run_dir, uninterrupted[0].run_dir)
            )
            assert kept == expected

    @pytest.mark.parametrize("epoch", [0, 1, 2])
    def test_report_that_a_crash_prevented_is_made_up_for(
        self, epoch, finished, uninterrupted, tiny, tmp_path, quick_train, monkeypatch
    ):
        same_run = tiny(tmp_path, checkpoint_every=3, dream_every=1)
        report = Reports.report

        def die_instead(reports, *arguments):
            if reports.model.step.numpy() == 6 * epoch:
                raise Killed
            report(reports, *arguments)

        with monkeypatch.context() as patch:
            patch.setattr(Reports, "report", die_instead)
            with pytest.raises(Killed):
                quick_train(same_run)
        result = quick_train(same_run)
        assert result.history == uninterrupted[1].history
        assert json.loads(Path(same_run.run_dir, "history.json").read_text()) == result.history
        assert {path.name for path in Path(same_run.run_dir, "figures").iterdir()} == {
            path.name for path in Path(finished[0].run_dir, "figures").iterdir()
        }

    def test_file_is_old_or_new_but_never_half(self, tmp_path, monkeypatch):
        file = tmp_path / "file.json"
        write_atomically(file, "old")

        def die(*_):
            raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", die)
            with pytest.raises(Killed):
                write_atomically(file, "new")
        assert file.read_text() == "old"
        write_atomically(file, "new")
        assert file.read_text() == "new"
        assert [path.name for path in tmp_path.iterdir()] == ["file.json"]


def test_a_process_that_is_killed_is_continued_quietly_to_the_same_end(
    finished, tiny, tmp_path, flags_of, assert_same_run
):
    # --deterministic is without effect on a CPU.
    config = tiny(tmp_path, epochs=4, checkpoint_every=1, dream_every=2, deterministic=True)
    command = [sys.executable, "-m", "ad_keras.train", *flags_of(config)]
    folder, pipes = config.run_path, {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, text=True, **pipes)
    deadline = time.monotonic() + SECONDS
    try:
        # In the middle of writing a checkpoint, as far as can be told from outside.
        while newest_step(folder) < 12 and not (
            newest_step(folder) >= 7 and any(folder.glob("checkpoints/*/*_temp"))
        ):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.001 if newest_step(folder) >= 6 else 0.1)
    finally:
        process.kill()
        _, error = process.communicate()
    assert (process.returncode, error) == (-signal.SIGKILL, "")
    killed = newest_step(folder)
    assert 7 <= killed < 24

    done = subprocess.run(command, text=True, timeout=SECONDS, **pipes)
    assert (done.returncode, done.stderr) == (0, "")
    progress, summary = done.stdout.rstrip().split("\n\n")
    lines = progress.splitlines()
    if "is damaged" in lines[0]:  # killed while it wrote this one, it continues from the one before
        lines, killed = lines[1:], killed - 1
    assert lines[0::2] == [f"Epoch {epoch}/4" for epoch in range(killed // 6 + 1, 5)]
    for line in lines[1::2]:
        assert re.search(r"images/s: \d+.* wake: .* kl: .* nrem: .* rem: ", line), line
    assert "linear probe" in summary
    before, after = (finished[1].history[epoch]["probe/validation_accuracy"] for epoch in "04")
    scores = re.findall(r"(\d+\.\d)%", summary)
    assert scores[:2] == [f"{100 * before:.1f}", f"{100 * after:.1f}"]
    assert "4 epochs" in summary
    named = dict(
        re.fullmatch(r"([\w ]+): (?:tensorboard --logdir=)?(.*)", line).groups()
        for line in summary.splitlines()
        if str(tmp_path) in line
    )
    assert Path(named["Encoder and generator"], "encoder.keras").is_file()
    assert Path(named["Dreams"]).is_file()
    assert list(Path(named["Watch"]).glob("events.*"))
    # Other processes, other reports on the way: still the same bits.
    assert_same_run(config, finished[0])


class TestLookingBack:
    def test_kept_epochs_can_be_restored(self, finished):
        config, _ = finished
        folder = Path(config.run_dir)
        _, newest = restore_run(folder)
        assert Checkpoints(newest, folder).kept_epochs() == [1, 2]
        _, early = restore_run(folder, epoch=1)
        assert [int(model.step.numpy()) for model in (early, newest)] == [6, 24]
        pairs = zip(early.encoder.get_weights(), newest.encoder.get_weights(), strict=True)
        assert not any(np.array_equal(first, last) for first, last in pairs)

    def test_a_damaged_epoch_is_named(self, copied):
        folder = Path(copied.run_dir)
        for file in (folder / "checkpoints" / "epochs").glob("epoch-1.data*"):
            file.write_bytes(file.read_bytes()[:100])
        with pytest.raises(RunError, match="epoch-1 is damaged"):
            restore_run(folder, epoch=1)
