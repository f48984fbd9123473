"""Tests of the generated SVHN stand-in."""

import collections

import numpy as np
import pytest
from tensorflow_datasets.core.utils import gcs_utils

from ad_keras import data
from ad_keras.data import synth_digits


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Fails the test if TFDS looks for the dataset in its cloud bucket."""

    def refuse(path):
        raise AssertionError(f"looked up {path}")

    monkeypatch.setattr(gcs_utils, "exists", refuse)


def test_example_is_a_small_colour_image_with_contrast():
    image, label = synth_digits.example_at(0, "train", 0)
    assert image.shape == (32, 32, 3)
    assert image.dtype == np.uint8
    assert label == synth_digits.label_at(0, "train", 0)
    spreads = [synth_digits.example_at(0, "train", i)[0].std() for i in range(50)]
    assert np.median(spreads) > 15


def test_example_depends_on_nothing_but_seed_split_and_index():
    first = [synth_digits.example_at(3, "test", index) for index in range(5)]
    again = [synth_digits.example_at(3, "test", index) for index in reversed(range(5))][::-1]
    for (image, label), (other_image, other_label) in zip(first, again, strict=True):
        np.testing.assert_array_equal(image, other_image)
        assert label == other_label


@pytest.mark.parametrize("other", [(4, "train", 5), (3, "test", 5), (3, "train", 6)])
def test_generators_differ_by_seed_split_and_index(other):
    # The same digit, so that only the generator can make the difference.
    image = synth_digits.render(synth_digits.make_rng(3, "train", 5), 2)
    assert np.any(image != synth_digits.render(synth_digits.make_rng(*other), 2))


def test_splits_share_no_image():
    images = [
        synth_digits.example_at(0, split, index)[0].tobytes()
        for split in ("train", "test")
        for index in range(200)
    ]
    assert len(set(images)) == 400


def test_labels_are_balanced_and_in_random_order():
    labels = [synth_digits.label_at(0, "train", index) for index in range(1000)]
    assert collections.Counter(labels) == dict.fromkeys(range(10), 100)
    blocks = {tuple(labels[start : start + 10]) for start in range(0, 1000, 10)}
    assert len(blocks) > 90
    assert labels != [synth_digits.label_at(0, "test", index) for index in range(1000)]


def test_label_decides_the_centre_of_the_image():
    centre, border = [], []
    for index in range(10):
        images = [
            synth_digits.render(synth_digits.make_rng(0, "train", index), digit).astype(int)
            for digit in range(10)
        ]
        for i in range(10):
            for j in range(i):
                change = np.abs(images[i] - images[j]).mean(axis=2)
                centre.append(change[8:24, 8:24].mean())
                border.append(change[[0, 31]].mean())
    assert min(centre) > 1
    assert np.mean(centre) > 3 * np.mean(border)


def test_every_face_draws_ten_different_digits():
    for number, face in enumerate(synth_digits.glyphs()):
        shapes = []
        for glyph in face:
            left, top, right, bottom = glyph.outline.getbbox()
            width, height = glyph.outline.size
            assert min(left, top, width - right, height - bottom) > 0, f"{number} is cut"
            inked = glyph.fill.crop(glyph.fill.getbbox()).resize((24, 32))
            shapes.append(np.asarray(inked, float) / 255)
        for i in range(10):
            for j in range(i):
                assert np.abs(shapes[i] - shapes[j]).mean() > 0.05, (number, j, i)


def test_faces_differ():
    drawn = [b"".join(glyph.fill.tobytes() for glyph in face) for face in synth_digits.glyphs()]
    assert len(set(drawn)) == len(drawn) == 55


def test_missing_face_is_named(monkeypatch):
    monkeypatch.setattr(synth_digits, "_FACES", (("font-absent", "{}.ttf", ("Absent",)),))
    with pytest.raises(FileNotFoundError, match=r"Absent\.ttf.*pip install font-absent"):
        synth_digits.glyphs.__wrapped__()


def test_named_configs():
    sizes = {
        config.name: (config.train_examples, config.test_examples)
        for config in synth_digits.SynthDigits.BUILDER_CONFIGS
    }
    assert sizes == {
        "1k": (1_000, 500),
        "10k": (10_000, 2_000),
        "50k": (50_000, 10_000),
        "500k": (500_000, 10_000),
    }
    assert len({config.seed for config in synth_digits.SynthDigits.BUILDER_CONFIGS}) == 1
    assert synth_digits.SynthDigits.DEFAULT_BUILDER_CONFIG_NAME == "10k"


def test_images_are_generated_once_and_loaded_by_name_as_they_are_rendered(tmp_path, monkeypatch):
    (config,) = (each for each in synth_digits.SynthDigits.BUILDER_CONFIGS if each.name == "1k")
    examples = {
        split: [synth_digits.example_at(config.seed, split, index) for index in range(count)]
        for split, count in (("train", 40), ("test", 20))
    }
    for split in examples:
        monkeypatch.setattr(config, f"{split}_examples", len(examples[split]))
    data.load("synth_digits/1k", "train", data_dir=str(tmp_path))

    def refuse(*args):
        raise AssertionError("generated again")

    monkeypatch.setattr(synth_digits, "example_at", refuse)
    for split, expected in examples.items():
        loaded = data.load("synth_digits/1k", split, data_dir=str(tmp_path))
        np.testing.assert_array_equal(loaded.images, [image for image, _ in expected])
        assert loaded.labels.tolist() == [label for _, label in expected]
        assert loaded.class_names == tuple("0123456789")
