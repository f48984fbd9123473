"""The README's code and the example, run as they stand."""

import re
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from ad_keras import PAD
from ad_keras.runs.training import train

ROOT = Path(__file__).parents[1]
SNIPPETS = re.findall(
    r"<!-- readme-test -->\n```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S
)


@pytest.fixture(scope="module")
def workplace(tiny, tmp_path_factory):
    """A folder in which the README's first command left its export."""
    folder = tmp_path_factory.mktemp("readme")
    train(tiny(folder, saved_model_dir=str(folder / "saved_models" / "synth_digits")))
    return folder


def test_the_readme_has_code():
    assert len(SNIPPETS) == 3


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_code_of_the_readme_runs(snippet, workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    images = np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3), np.uint8)
    names = {
        "images": tf.constant(images),
        "dataset": tf.data.Dataset.from_tensor_slices(images),
    }
    exec(snippet, names)
    if "pictures" in names:
        assert names["pictures"].dtype == tf.uint8
        assert names["pictures"].shape == images.shape
    if "model" in names:
        assert isinstance(names["model"], PAD)
        assert int(names["model"].step.numpy()) == 2
    if isinstance(names.get("encoder"), keras.Model):
        assert names["outputs"]["latent"].shape == (64, 8)


def test_example_prints_both_accuracies(workplace, image_folder):
    example = subprocess.run(
        [
            sys.executable,
            str(ROOT / "examples" / "classify.py"),
            f"--encoder={workplace / 'saved_models' / 'synth_digits'}",
            f"--dataset={image_folder}",
            "--epochs=1",
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert example.stderr == ""
    frozen, tuned = re.findall(r": +([\d.]+)%", example.stdout)
    assert 0 <= float(frozen) <= 100
    assert 0 <= float(tuned) <= 100


def test_example_without_an_export_says_so(tmp_path):
    example = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "classify.py"), "--encoder=nowhere"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert example.returncode == 2
    assert example.stderr == "error: nowhere is not an export: it has no encoder.keras.\n"
