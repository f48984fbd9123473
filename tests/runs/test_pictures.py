"""Tests of the dream command and its pictures, on a small run and its export."""

import functools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ad_keras import Mixing, VariancePreservingMixing
from ad_keras.dream import main
from ad_keras.runs import pictures
from ad_keras.runs.restore import restore_run

ROWS = (2, 8, 3, 4)  # of the sheet's sections: wake, NREM, REM, walks
PIXELS, GAP, MARGIN, HEADING = 64, 4, 118, 40


def sheet_of(folder) -> np.ndarray:
    return np.asarray(Image.open(folder / "sheet.png"))


def rows_of(sheet: np.ndarray) -> list[np.ndarray]:
    """The pictures of a sheet's rows, without names and headings."""
    rows, top = [], 0
    for count in ROWS:
        top += HEADING + GAP
        for _ in range(count):
            rows.append(sheet[top : top + PIXELS, MARGIN:])
            top += PIXELS + GAP
    assert top == len(sheet)
    return rows


def frames_of(path) -> tuple[np.ndarray, list[int]]:
    """Frames of a GIF [N, H, W, 3] and for how many milliseconds each is shown."""
    frames, durations = [], []
    with Image.open(path) as loop:
        for number in range(loop.n_frames):
            loop.seek(number)
            frames.append(np.asarray(loop.convert("RGB"), np.float32))
            durations.append(loop.info["duration"])
    return np.stack(frames), durations


def save_pictures(folder, count: int, size: int = 32) -> None:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(1)
    for number in range(count):
        pixels = rng.integers(0, 256, (size, size, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")


@pytest.fixture(scope="module")
def model(finished):
    """The trained model with a generator whose images differ more than by a grey level."""
    _, model = restore_run(finished[1].run_folder)
    model.generator.set_weights([10 * weight for weight in model.generator.get_weights()])
    return model


@pytest.fixture(scope="module")
def memories() -> np.ndarray:
    return np.random.default_rng(2).integers(0, 256, (6, 32, 32, 3), np.uint8)


@pytest.fixture
def refusal(refusal):
    """Runs the command in vain: its error."""
    return functools.partial(refusal, main)


def test_a_run_is_drawn_into_its_folder_and_the_paths_are_printed(copied, success):
    out = success(main, f"--run_dir={copied.run_dir}")
    figures_folder = copied.run_path / "figures"
    assert str(figures_folder / "sheet.png") in out
    assert str(figures_folder / "walk.gif") in out
    sheet = sheet_of(figures_folder)
    assert sheet.shape[1] == MARGIN + 12 * (PIXELS + GAP)
    assert len(rows_of(sheet)) == sum(ROWS)
    # Frames that look the same are merged in the file.
    assert sum(frames_of(figures_folder / "walk.gif")[1]) == 6 * (600 + 15 * 60)


def test_run_and_export_of_the_same_weights_give_the_same_pictures_unless_the_seed_differs(
    finished, tmp_path, monkeypatch, success
):
    _, result = finished
    monkeypatch.chdir(tmp_path)
    for arguments in (
        [f"--export={result.export_folder}"],  # into the present folder
        [f"--run_dir={result.run_folder}", "--output_dir=run"],
        [f"--run_dir={result.run_folder}", "--output_dir=other", "--seed=1"],
    ):
        success(main, *arguments, "--num_images=4")
    for name in ("sheet.png", "walk.gif"):
        assert Path("dreams", name).read_bytes() == Path("run", name).read_bytes()
    assert (rows_of(sheet_of(Path("run")))[0] != rows_of(sheet_of(Path("other")))[0]).any()


@pytest.fixture
def shown(finished, rebuilt, tmp_path, success, monkeypatch):
    """Images that the command shows of a data set; it draws nothing."""

    def run(*arguments: str) -> np.ndarray:
        chosen = []

        def overview(model, images, seed):
            chosen.append(images)
            return images[0]

        monkeypatch.setattr(pictures, "overview", overview)
        monkeypatch.setattr(pictures, "loop", lambda model, images, steps: images)
        monkeypatch.setattr(
            "ad_keras.runs.restore.restore_run", functools.partial(restore_run, build=rebuilt)
        )
        source = f"--run_dir={finished[1].run_folder}"
        success(main, source, *arguments, f"--output_dir={tmp_path}")
        return chosen[0]

    return run


@pytest.mark.parametrize("place", ["", "train", "train/owl", "owl"])
def test_folders_without_a_test_split_show_what_they_have(place, shown, tmp_path):
    save_pictures(tmp_path / "album" / place, 4, size=48)
    images = shown("--num_images=4", f"--dataset={tmp_path / 'album'}")
    files = (tmp_path / "album" / place).iterdir()
    resized = [np.asarray(Image.open(file).resize((32, 32), Image.BILINEAR)) for file in files]
    assert sorted(image.tobytes() for image in images) == sorted(
        image.tobytes() for image in resized
    )


def test_pictures_beside_folders_of_classes_are_shown(shown, image_folder, tmp_path):
    folder = shutil.copytree(image_folder, tmp_path / "images")
    save_pictures(folder / "samples", 4)
    assert len(shown("--num_images=4", f"--dataset={folder / 'samples'}")) == 4


def test_test_images_are_preferred_and_chosen_by_the_seed(shown, image_folder):
    files = (image_folder / "test").glob("*/*.png")
    test_images = {np.asarray(Image.open(file)).tobytes() for file in files}
    first, same, other = (shown("--num_images=6", f"--seed={seed}") for seed in (3, 3, 4))
    assert {image.tobytes() for image in first} <= test_images
    np.testing.assert_array_equal(first, same)
    assert (first != other).any()


def test_rows_of_a_sheet_differ_unless_they_show_the_same(model, memories):
    rows = rows_of(pictures.overview(model, memories, seed=0))
    same = {
        (first, second)
        for second in range(len(rows))
        for first in range(second)
        if (rows[first] == rows[second]).all()
    }
    # A replay that is not occluded is the reconstruction; memories are shown in wake and REM.
    assert same == {(1, 2), (0, 10)}


@pytest.mark.parametrize(
    ("mixing", "told"),
    [
        (Mixing(0.25, 0.8), "REM: dreams of memories: 0.2 newer + 0.6 older + 0.2 noise"),
        (VariancePreservingMixing(), "REM: dreams of memories, by VariancePreservingMixing"),
        (
            lambda latents, recalled, key: key.dtype.is_integer and recalled,
            "REM: dreams of memories, by <lambda>",
        ),
    ],
)
def test_a_sheet_tells_how_its_dreams_were_mixed(mixing, told, model, memories, monkeypatch):
    headings, draw = [], pictures.sheet

    def record(rows, heading):
        headings.append(heading)
        return draw(rows, heading)

    monkeypatch.setattr(pictures, "sheet", record)
    monkeypatch.setattr(model, "mixing", mixing)
    pictures.overview(model, memories, seed=0)
    assert told in headings


def test_occlusions_grow_and_hide_their_share(model, memories):
    memories = memories.repeat(4, axis=0)
    levels = (0.0, 0.3, 0.6, 1.0)
    rows = dict(pictures.occlusion_rows(model, memories, levels, tile=4, seed=0))
    assert set(rows) == {"recovered", *(f"{level:.0%} occluded" for level in levels)}
    hidden = [(rows[f"{level:.0%} occluded"] == 128).all(axis=-1) for level in levels]
    for level, before, after in zip(levels[1:], hidden, hidden[1:], strict=False):
        assert abs(after.mean() - level) < 0.05
        assert (after >= before).all()
    tiles = hidden[1].reshape(-1, 8, 4, 8, 4)
    assert (tiles.all(axis=(2, 4)).mean() - hidden[1].mean()) < 0.01


def test_a_walk_keeps_norm_and_pace():
    rng = np.random.default_rng(0)
    first, last = rng.normal(size=(2, 256))
    last *= 2
    steps = pictures.walk(first, last, 9)
    norms = np.linalg.norm(steps, axis=1)
    np.testing.assert_allclose(steps[[0, -1]], [first, last], rtol=1e-5, atol=1e-6)
    ends = np.linalg.norm([first, last], axis=1)
    np.testing.assert_allclose(norms, np.linspace(*ends, 9), rtol=1e-5)
    directions = steps / norms[:, None]
    pace = np.arccos((directions[1:] * directions[:-1]).sum(axis=1))
    np.testing.assert_allclose(pace, pace.mean(), rtol=1e-3)


@pytest.mark.parametrize("last", [1.0, 3.0])
def test_a_walk_between_latents_of_one_direction_is_straight(last):
    first = np.ones(4)
    expected = np.linspace(1.0, last, 5)[:, None] * first
    np.testing.assert_allclose(pictures.walk(first, last * first, 5), expected, rtol=1e-6)


def test_a_loop_meets_all_memories_and_ends_a_step_before_its_start(model, memories):
    loop = pictures.loop(model, memories, 10).astype(np.float32)
    assert loop.shape == (60, 32, 32, 3)
    rebuilt = pictures.wake_rows(model, memories)[1][1]
    assert np.abs(loop[::10] - rebuilt).max() <= 1
    changes = np.abs(loop - np.roll(loop, 1, axis=0)).mean(axis=(1, 2, 3))
    assert 0 < changes[0] <= 1.5 * changes[1:].max()
    assert changes.max() < 0.5 * np.abs(rebuilt[1:] - rebuilt[:-1]).mean()


def test_a_gif_has_every_frame_repeats_and_pauses(tmp_path):
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (60, 16, 3), np.uint8)
    images = np.stack([palette[rng.integers(0, 16, (32, 32))] for palette in colours])
    pictures.save_loop(tmp_path / "walk.gif", images, pause_every=10)
    frames, durations = frames_of(tmp_path / "walk.gif")
    assert frames.shape == (60, 192, 192, 3)
    np.testing.assert_array_equal(frames[:, 3::6, 3::6], images)
    assert durations == 6 * [600, *9 * [60]]
    with Image.open(tmp_path / "walk.gif") as file:
        assert file.info["loop"] == 0


@pytest.mark.parametrize("side", [32, 128])
def test_a_gif_of_larger_images_stays_small(side, tmp_path):
    small = np.random.default_rng(0).integers(0, 256, (96, 16, 16, 3), np.uint8)
    images = [Image.fromarray(image).resize((side, side), Image.BICUBIC) for image in small]
    pictures.save_loop(tmp_path / "walk.gif", np.stack([np.asarray(i) for i in images]), 16)
    assert (tmp_path / "walk.gif").stat().st_size < 2_000_000


def test_other_folders_are_refused(finished, tmp_path, refusal):
    _, result = finished
    assert "not the folder of a run" in refusal(f"--run_dir={result.export_folder}")
    assert "not an export" in refusal(f"--export={result.run_folder}")
    assert "not an export" in refusal(f"--export={tmp_path / 'none'}")


@pytest.mark.parametrize("lost", ["metadata.json", "flags", "generator", "generator/variables"])
def test_an_export_that_lacks_a_part_is_refused(lost, finished, tmp_path, refusal):
    folder = tmp_path / "export"
    shutil.copytree(finished[1].export_folder, folder)
    if lost == "metadata.json":
        (folder / lost).unlink()
    elif lost == "flags":
        (folder / "metadata.json").write_text(json.dumps({"step": 3}))
    else:
        shutil.rmtree(folder / lost)
    error = refusal(f"--export={folder}")
    assert str(folder) in error
    assert "export it again" in error


def test_wrong_pictures_are_refused(finished, tmp_path, refusal):
    run = f"--run_dir={finished[1].run_folder}"
    (tmp_path / "empty").mkdir()
    assert "no images" in refusal(run, f"--dataset={tmp_path / 'empty'}")
    save_pictures(tmp_path / "few", 5)
    error = refusal(run, f"--dataset={tmp_path / 'few'}", "--num_images=6")
    assert "--num_images=6" in error
    assert "5 images" in error
    (tmp_path / "few" / "broken.png").write_bytes(b"not a picture")
    error = refusal(run, f"--dataset={tmp_path / 'few'}", "--num_images=4", status=1)
    assert "broken.png" in error
