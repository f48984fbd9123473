"""Tests of the generated SVHN stand-in."""

import collections
import io

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core.utils import gcs_utils

from ad_keras.data import synth_digits

TINY = synth_digits.SynthDigitsConfig(name="tiny", train_examples=40, test_examples=20, seed=7)


def builder(data_dir, config=TINY):
    return synth_digits.SynthDigits(config=config, data_dir=data_dir)


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
    faces = synth_digits.glyphs()
    assert len(faces) == len(synth_digits.face_names()) == len(set(synth_digits.face_names()))
    for name, face in zip(synth_digits.face_names(), faces, strict=True):
        shapes = []
        for glyph in face:
            left, top, right, bottom = glyph.outline.getbbox()
            width, height = glyph.outline.size
            assert min(left, top, width - right, height - bottom) > 0, f"{name} is cut"
            inked = glyph.fill.crop(glyph.fill.getbbox()).resize((24, 32))
            shapes.append(np.asarray(inked, float) / 255)
        for i in range(10):
            for j in range(i):
                assert np.abs(shapes[i] - shapes[j]).mean() > 0.05, (name, j, i)


def test_faces_differ():
    drawn = {b"".join(glyph.fill.tobytes() for glyph in face) for face in synth_digits.glyphs()}
    assert len(drawn) == len(synth_digits.face_names())


def test_missing_face_is_named(monkeypatch):
    monkeypatch.setattr(synth_digits, "_FACES", (("font-absent", "files/{}.ttf", ("Absent",)),))
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


def test_default_config(tmp_path):
    assert tfds.builder("synth_digits", data_dir=tmp_path).builder_config.name == "10k"


def test_stored_images_equal_direct_rendering(tmp_path):
    tiny = builder(tmp_path)
    tiny.download_and_prepare()
    for split, count in (("train", 40), ("test", 20)):
        assert tiny.info.splits[split].num_examples == count
        stored = list(tfds.as_numpy(tiny.as_dataset(split=split, as_supervised=True)))
        assert len(stored) == count
        for index, (image, label) in enumerate(stored):
            expected_image, expected_label = synth_digits.example_at(7, split, index)
            assert image.dtype == np.uint8
            np.testing.assert_array_equal(image, expected_image)
            assert label == expected_label


def test_load_by_name(tmp_path):
    dataset, info = tfds.load("synth_digits/1k", data_dir=tmp_path, with_info=True)
    assert {name: split.num_examples for name, split in info.splits.items()} == {
        "train": 1000,
        "test": 500,
    }
    assert info.features["label"].num_classes == 10
    assert dataset["train"].element_spec["image"].shape == (32, 32, 3)
    labels = [int(example["label"]) for example in tfds.as_numpy(dataset["test"])]
    assert collections.Counter(labels) == dict.fromkeys(range(10), 50)


def test_second_load_reads_what_the_first_has_written(tmp_path, monkeypatch):
    builder(tmp_path).download_and_prepare()

    def refuse(*args):
        raise AssertionError("generated again")

    monkeypatch.setattr(synth_digits, "example_at", refuse)
    again = builder(tmp_path)
    again.download_and_prepare()
    assert len(list(again.as_dataset(split="train"))) == 40


def test_small_config_is_a_prefix_of_a_larger_one(tmp_path):
    larger = synth_digits.SynthDigitsConfig(
        name="larger", train_examples=70, test_examples=30, seed=7
    )
    stored = []
    for config in (TINY, larger):
        prepared = builder(tmp_path, config)
        prepared.download_and_prepare()
        stored.append(list(tfds.as_numpy(prepared.as_dataset(split="train[:40]"))))
    for small, large in zip(*stored, strict=True):
        np.testing.assert_array_equal(small["image"], large["image"])
        assert small["label"] == large["label"]


def test_png_is_lossless():
    image, _ = synth_digits.example_at(0, "train", 1)
    encoded = synth_digits._encode_png(image)
    assert isinstance(encoded, io.BytesIO)
    np.testing.assert_array_equal(np.asarray(Image.open(encoded)), image)
