"""Tests of the networks whose features dreams are compared in."""

import shutil
import time

import keras
import numpy as np
import pytest

from ad_keras.data import ImageSet
from ad_keras.errors import RunError, UsageError
from ad_keras.evaluation import features
from ad_keras.evaluation.features import FeatureExtractor, classifier_features, inception_features
from ad_keras.measures.distribution import fid

SIZE = 16


def striped(count: int, seed: int) -> ImageSet:
    """Horizontal and vertical stripes of random place, with noise: a class each."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    waves = 127 + 80 * np.sin(np.arange(SIZE)[None] * 1.5 + rng.uniform(0, 6, (count, 1)))
    images = np.broadcast_to(waves[:, :, None, None], (count, SIZE, SIZE, 3)).copy()
    images[labels == 1] = images[labels == 1].swapaxes(1, 2)
    images += rng.normal(0, 20, images.shape)
    return ImageSet(images.clip(0, 255).astype(np.uint8), labels, ("rows", "columns"))


@pytest.fixture(scope="module")
def sets():
    return striped(128, 0), striped(64, 1)


@pytest.fixture(scope="module")
def trained(sets, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache") / "stripes"
    return folder, classifier_features(*sets, folder)


def test_classifier_learns_its_labels_and_reports_its_test_accuracy(trained):
    _, extractor = trained
    assert extractor.accuracy > 0.9
    assert "classifier" in extractor.name


def test_features_are_the_layer_below_the_logits(trained, sets):
    _, extractor = trained
    found = extractor(sets[1].images)
    assert found.shape == (64, 256)
    assert found.dtype == np.float32
    assert found.min() >= 0


def test_noise_is_farther_from_real_images_than_real_images_are(trained, sets):
    _, extractor = trained
    real, others = (extractor(part.images) for part in sets)
    noise = np.random.default_rng(3).integers(0, 256, (64, SIZE, SIZE, 3), np.uint8)
    assert fid(real, extractor(noise)) > 3 * fid(real, others)


def test_classifier_is_trained_only_once_for_the_same_data(trained, sets, monkeypatch):
    folder, extractor = trained
    fitted_on = []

    def note(classifier, images, labels):
        fitted_on.append(images)

    monkeypatch.setattr(features, "_train", note)
    again = classifier_features(*sets, folder)
    assert again.accuracy == extractor.accuracy
    assert again.weights == extractor.weights
    assert not fitted_on
    train, test = sets
    other_labels = ImageSet(test.images, 1 - test.labels, test.class_names)
    assert classifier_features(train, other_labels, folder).accuracy != extractor.accuracy
    assert len(fitted_on) == 1


def test_classifier_is_not_fitted_on_the_reference(sets, tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(features, "_train", lambda _, images, labels: given.append(images))
    train, test = sets
    classifier_features(train, test, tmp_path)
    rows = features.reference_rows(train)
    assert len(set(rows)) == 64
    both = np.concatenate([given[0], train.images[rows]])
    assert sorted(image.tobytes() for image in both) == sorted(i.tobytes() for i in train.images)


def test_the_reference_of_large_data_sets_is_the_papers_10000():
    large = ImageSet(np.zeros((50_000, 1, 1, 3), np.uint8), None, ())
    assert len(set(features.reference_rows(large))) == 10_000


@pytest.mark.filterwarnings("ignore:Exception while loading")
def test_a_damaged_cache_is_trained_anew_with_the_same_result(sets, trained, tmp_path):
    folder, extractor = trained
    shutil.copytree(folder, tmp_path / "stripes")
    for file in tmp_path.rglob("output.pkl"):
        file.write_bytes(file.read_bytes()[:1000])
    again = classifier_features(*sets, tmp_path / "stripes")
    assert again.accuracy == extractor.accuracy
    np.testing.assert_allclose(again(sets[1].images), extractor(sets[1].images), atol=1e-4)


def test_features_of_real_images_are_computed_once(trained, sets, monkeypatch):
    _, extractor = trained
    first = extractor.of_reference(sets[0].images)
    np.testing.assert_array_equal(first, extractor(sets[0].images))
    monkeypatch.setattr(FeatureExtractor, "__call__", None)  # calling it would be an error
    np.testing.assert_array_equal(extractor.of_reference(sets[0].images), first)
    with pytest.raises(TypeError):
        extractor.of_reference(sets[1].images)


def test_classifier_without_labels_is_refused(sets, tmp_path):
    train, test = sets
    bare = ImageSet(train.images, None, ())
    with pytest.raises(UsageError, match="--features=inception"):
        classifier_features(bare, test, tmp_path)


def test_inception_without_network_and_file_names_the_ways_out(monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr(features, "_INCEPTION_ADDRESS", "https://nowhere.invalid/weights.h5")
    started = time.monotonic()
    with pytest.raises(UsageError, match=r"--inception_weights=PATH.*--features=classifier"):
        inception_features(tmp_path)
    assert time.monotonic() - started < 10


def test_failed_download_of_inception_is_one_line(monkeypatch, tmp_path):
    def fail(**_):
        raise Exception("URL fetch failure on https://nowhere.invalid: 404 -- Not Found")

    monkeypatch.setattr(features, "reachable", lambda address: True)
    monkeypatch.setattr(keras.applications, "InceptionV3", fail)
    with pytest.raises(RunError, match=r"cannot be downloaded .*404"):
        inception_features(tmp_path)


@pytest.mark.parametrize("content", [None, b"no weights"])
def test_wrong_inception_weights_are_refused(content, monkeypatch, tmp_path):
    file = tmp_path / "inception.h5"
    if content:
        file.write_bytes(content)
        # Building the whole network takes seconds, and reading the file is all that matters.
        monkeypatch.setattr(
            keras.applications, "InceptionV3", lambda weights, **_: keras.saving.load_model(weights)
        )
    with pytest.raises(UsageError, match="--inception_weights="):
        inception_features(tmp_path, str(file))


def test_inception_sees_signed_images_of_its_own_size(monkeypatch, tmp_path):
    file = tmp_path / "inception.h5"
    file.write_bytes(b"stands for weights")
    seen = {}

    def inception(*, include_top, pooling, weights, input_shape):
        seen.update(include_top=include_top, pooling=pooling, weights=weights)
        images = keras.Input(input_shape)
        return keras.Model(images, keras.layers.Flatten()(images))

    monkeypatch.setattr(keras.applications, "InceptionV3", inception)
    extractor = inception_features(tmp_path, str(file))
    images = np.stack([np.full((32, 32, 3), value, np.uint8) for value in (0, 255)])
    given = extractor(images)
    assert seen == {"include_top": False, "pooling": "avg", "weights": str(file)}
    assert given.shape == (2, 299 * 299 * 3)
    np.testing.assert_allclose(given[0], -1, atol=1e-6)
    np.testing.assert_allclose(given[1], 1, atol=1e-6)
    assert "Inception" in extractor.name
