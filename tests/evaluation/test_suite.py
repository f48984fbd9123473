"""Tests of the metrics of a model, against the functions they are made of."""

import keras
import numpy as np
import pytest

from ad_keras import PAD, Hippocampus, ManyMemoriesMixing, build_encoder, build_generator
from ad_keras.data import ImageSet
from ad_keras.data.pixels import to_pixels
from ad_keras.errors import UsageError
from ad_keras.evaluation import suite
from ad_keras.evaluation.config import METRICS
from ad_keras.evaluation.features import FeatureExtractor, reference_rows
from ad_keras.evaluation.suite import Suite, check, dreams
from ad_keras.measures.distances import distance_ratios
from ad_keras.measures.distribution import density_coverage, fid
from ad_keras.measures.latents import encode, encode_occluded
from ad_keras.measures.maps import filled_dimensions, pca_map
from ad_keras.measures.neighbours import knn_accuracy
from ad_keras.measures.probe import linear_probe, logistic_probe, ridge_probe

SIZE, LATENT = 16, 12


def coloured(count: int, seed: int) -> ImageSet:
    """Images of one bright channel each, with noise: three classes that any probe can tell."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    images = rng.integers(0, 100, (count, SIZE, SIZE, 3))
    images[np.arange(count), :, :, labels] += 150
    return ImageSet(images.astype(np.uint8), labels, ("red", "green", "blue"))


def a_model(seed: int) -> PAD:
    shape = {"image_size": SIZE, "latent_dim": LATENT, "base_filters": 4, "seed": seed}
    model = PAD(build_encoder(**shape), build_generator(**shape), hippocampus=Hippocampus(8))
    rng = np.random.default_rng(seed)
    for network in (model.encoder, model.generator):
        network.set_weights([rng.normal(0, 0.15, w.shape) for w in network.get_weights()])
    return model


def mean_colours(folder) -> FeatureExtractor:
    images = keras.Input((SIZE, SIZE, 3), dtype="uint8")
    scaled = keras.layers.Rescaling(1 / 255)(images)
    pooled = keras.layers.Flatten()(keras.layers.AveragePooling2D(8)(scaled))
    return FeatureExtractor("mean colours", keras.Model(images, pooled), folder)


@pytest.fixture(scope="module")
def subject():
    return a_model(0), a_model(1), coloured(180, 0), coloured(150, 1)


@pytest.fixture(scope="module")
def measured(subject, tmp_path_factory):
    model, early, train, test = subject
    folder = tmp_path_factory.mktemp("cache")
    options = {"num_dreams": 90, "probe_seeds": 3, "seed": 5, "features": mean_colours(folder)}
    models = {"untrained": early.encoder, "earlier": {3: early}}
    measured = Suite(model, train, test, folder, **models, **options)
    return measured.measure(list(METRICS)), measured.maps


@pytest.fixture(scope="module")
def latents(subject):
    model, _, train, test = subject
    return encode(model.encoder, train.images), encode(model.encoder, test.images)


def probed(probe, latents, subject, **options):
    _, _, train, test = subject
    return probe(latents[0], train.labels, latents[1], test.labels, num_classes=3, **options)


def test_probe_is_the_papers_at_several_seeds(measured, latents, subject):
    found = measured[0]["probe"]["values"]["trained"]
    expected = [probed(linear_probe, latents, subject, seed=seed) for seed in (5, 6, 7)]
    accuracies = [result.accuracy for result in expected]
    assert found["accuracy"] == accuracies[0]
    assert found["confusion"] == expected[0].confusion.tolist()
    assert found["per_class_accuracy"] == expected[0].per_class_accuracy.tolist()
    assert found["mean_of_seeds"] == pytest.approx(np.mean(accuracies))
    assert found["deviation_of_seeds"] == pytest.approx(np.std(accuracies, ddof=1))


@pytest.mark.parametrize("probe", [logistic_probe, ridge_probe])
def test_exact_probes_compare_trained_and_untrained(measured, latents, subject, probe):
    found = measured[0][probe.__name__]
    options = {"seed": 5} if probe is ridge_probe else {}
    expected = probed(probe, latents, subject, **options)
    assert found["values"]["trained"]["accuracy"] == expected.accuracy
    assert found["values"]["trained"].get("alpha") == expected.alpha
    if probe is ridge_probe:
        assert found["values"].pop("pixels")["accuracy"] == 1.0  # one channel tells the class
    else:
        assert "C 1, gradient below 0.0001" in found["protocol"]["text"]
    assert set(found["values"]) == {"trained", "untrained"}


def test_neighbours_and_principal_components_are_of_the_latents(measured, latents, subject):
    _, _, train, test = subject
    results, maps = measured
    expected = knn_accuracy(latents[0], train.labels, latents[1], test.labels, 20)
    assert results["knn"]["values"]["trained"] == expected
    coordinates, explained = pca_map(latents[1])
    np.testing.assert_allclose(maps["pca"], coordinates)
    assert results["pca"]["values"]["trained"]["explained_variance"] == explained.tolist()
    assert results["dimensions"]["values"]["trained"] == filled_dimensions(latents[1])
    assert maps["tsne"].shape == (150, 2)


def test_occlusion_curves_go_from_the_clean_accuracy_to_chance(measured, latents, subject):
    results, _ = measured
    clean = results["probe"]["values"]["trained"]["mean_of_seeds"]
    curves = results["occlusion"]["values"]
    assert set(curves) == {"tile_1", "tile_2", "tile_4", "tile_8"}
    for curve in curves.values():
        assert len(curve) == 11
        assert curve[0] == pytest.approx(clean)
        assert curve[10] == pytest.approx(1 / 3)  # one answer to all of three equal classes
    model, _, _, test = subject
    occluded = encode_occluded(model.encoder, test.images, 0.3, 4, 5)
    readouts = [probed(linear_probe, latents, subject, seed=seed) for seed in (5, 6, 7)]
    scores = [readout.score(occluded, test.labels) for readout in readouts]
    assert curves["tile_4"][3] == pytest.approx(np.mean(scores))


def test_latents_of_images_that_are_not_occluded_are_those_of_the_images(latents, subject):
    model, _, _, test = subject
    np.testing.assert_array_equal(
        encode_occluded(model.encoder, test.images, 0.0, 4, 5), latents[1]
    )


def test_distances_are_those_of_figure_6(measured, latents, subject):
    model, _, _, test = subject
    occluded = encode_occluded(model.encoder, test.images, 0.3, 4, 5)
    expected = distance_ratios(
        latents[1], test.labels, occluded, different_class_pairs=7500, seed=5
    )  # 3 * 50 * 50 pairs are all there are
    found = measured[0]["distances"]
    assert found["values"]["trained"]["intra_inter_ratio"] == expected.intra_inter_ratio
    assert found["values"]["trained"]["occluded_inter_ratio"] == expected.occluded_inter_ratio
    assert found["protocol"]["inter_class_pairs"] == 7500


def test_dreams_are_compared_with_as_many_real_images(measured, subject, tmp_path):
    model, _, train, test = subject
    results, _ = measured
    rng = np.random.default_rng(5)
    reference = reference_rows(train)
    memories = rng.permutation(np.setdiff1d(np.arange(180), reference))
    perceived = rng.permutation(150)[:90]
    features = mean_colours(tmp_path)
    real = features(train.images[reference])
    pictures = dreams(
        model,
        encode(model.encoder, train.images[memories]),
        encode(model.encoder, test.images[perceived]),
        5,
    )
    assert set(pictures) == set(results["fid"]["values"]["late"])
    for name, images in pictures.items():
        found = results["fid"]["values"]["late"][name]
        assert found == pytest.approx(fid(real, features(images)), rel=1e-3)
    density, coverage = density_coverage(real, features(pictures["rem"]), 5)
    both = results["density_coverage"]["values"]["late"]["rem"]
    assert (both["density"], both["coverage"]) == pytest.approx((density, coverage), abs=0.01)
    floor = fid(real, features(test.images[perceived]))
    assert results["fid"]["values"]["test_images"] == pytest.approx(floor, rel=1e-3)
    assert results["fid"]["protocol"]["images"] == 90
    assert results["fid"]["protocol"]["features"] == "mean colours"
    assert results["fid"]["protocol"]["features_weights"] == features.weights


def test_no_dream_mixes_a_memory_with_itself(subject):
    model = a_model(3)
    model.mixing = ManyMemoriesMixing(0.5, 1.0, older=3)
    latents = np.random.default_rng(1).normal(size=(9, LATENT)).astype(np.float32)
    others = [np.roll(latents, number, axis=0) for number in (1, 2, 3)]
    expected = to_pixels(model.generator(0.5 * latents + 0.5 * np.mean(others, axis=0)))
    found = dreams(model, latents, latents, 5)["rem"]
    np.testing.assert_allclose(found.astype(int), expected, atol=1)


def test_real_images_are_closer_to_real_ones_than_the_dreams_of_random_networks(measured):
    for metric in ("fid", "kid"):
        values = measured[0][metric]["values"]
        for dream in (*values["early"].values(), *values["late"].values()):
            figures = dream, values["test_images"]
            if metric == "kid":
                figures = [figure["distance"] for figure in figures]
            assert figures[0] > figures[1]


def test_earlier_epochs_are_probed_like_the_last(measured, subject):
    _, early, train, test = subject
    latents = [encode(early.encoder, part.images) for part in (train, test)]
    probes = [probed(linear_probe, latents, subject, seed=seed) for seed in (5, 6, 7)]
    ridge = probed(ridge_probe, latents, subject, seed=5)
    assert measured[0]["epochs"]["values"] == {
        "3": {
            "probe": {"mean_of_seeds": pytest.approx(np.mean([r.accuracy for r in probes]))},
            "ridge_probe": {"accuracy": ridge.accuracy},
        }
    }


def test_every_layer_is_probed(measured, subject):
    found = measured[0]["layers"]
    assert list(found["values"]) == ["trunk_0", "trunk_1", "latent"]
    assert found["protocol"]["features"]["trunk_0"] == 8 * 8 * 4
    assert found["values"]["trunk_0"]["ridge_probe"] > 0.9
    latent = found["values"]["latent"]["probe"]
    assert latent == measured[0]["probe"]["values"]["trained"]["accuracy"]


def test_wide_layers_are_pooled(subject, tmp_path, monkeypatch):
    model, _, train, test = subject
    monkeypatch.setattr(suite, "_LAYER_FEATURES", 100)
    found = Suite(model, train, test, tmp_path).measure(["layers"])["layers"]
    widths = {"trunk_0": 4 * 4 * 4, "trunk_1": 2 * 2 * 8, "latent": LATENT}
    assert found["protocol"]["features"] == widths  # of 8 * 8 * 4 and 4 * 4 * 8


def test_pixels_of_large_images_are_pooled_for_their_probe(subject, tmp_path, monkeypatch):
    model, _, train, test = subject
    monkeypatch.setattr(suite, "_LAYER_FEATURES", 200)
    found = Suite(model, train, test, tmp_path).measure(["ridge_probe"])["ridge_probe"]
    pool = keras.layers.AveragePooling2D(2)  # 16 * 16 * 3 become 8 * 8 * 3
    pixels = [np.asarray(pool(part.images.astype(np.float32))) for part in (train, test)]
    pixels = [part.reshape(len(part), -1) / 127.5 - 1 for part in pixels]
    expected = probed(ridge_probe, pixels, subject, seed=0)
    assert found["values"]["pixels"]["accuracy"] == expected.accuracy
    assert found["values"]["pixels"]["alpha"] == expected.alpha


def test_memory_that_does_not_suffice_is_a_gap(subject, tmp_path, monkeypatch):
    def exhausted(*_):
        raise MemoryError("Unable to allocate 9 TiB")

    model, _, train, test = subject
    monkeypatch.setattr(suite, "knn_accuracy", exhausted)
    found = Suite(model, train, test, tmp_path).measure(["knn", "pca"])
    assert "Unable to allocate 9 TiB" in found["knn"]["protocol"]["gaps"]["knn"]
    assert found["pca"]["values"]


def test_dreams_are_pixels_and_nrem_occludes_the_replayed(subject):
    model, _, train, _ = subject
    latents = encode(model.encoder, train.images)
    found = dreams(model, latents, latents, 0)
    for images in found.values():
        assert images.shape == (180, SIZE, SIZE, 3)
        assert images.dtype == np.uint8
    np.testing.assert_array_equal(found["reconstructions"], found["nrem_replayed"])
    grey = (found["nrem"] == 128).all(axis=-1)
    np.testing.assert_array_equal(found["nrem"][~grey], found["nrem_replayed"][~grey])
    assert 0.3 < grey.mean() < 0.7


def test_pixels_are_probed_once_for_the_same_data_and_settings(subject, tmp_path, monkeypatch):
    model, _, train, test = subject

    def pixels(test=test, **options):
        found = Suite(model, train, test, tmp_path, **options).measure(["ridge_probe"])
        return found["ridge_probe"]["values"]["pixels"]

    first = pixels()
    probed = []
    monkeypatch.setattr(suite, "_probed", lambda *given: (probed.append(given), "no probe"))
    monkeypatch.setattr(Suite, "_probe", lambda *_, **__: None)
    assert pixels() == first
    assert not probed
    other = ImageSet(test.images, np.roll(test.labels, 1), test.class_names)
    assert np.isnan(pixels(other)["accuracy"])  # what stands for the probe gives nothing
    assert len(probed) == 1
    pixels(seed=1)
    assert len(probed) == 2


def test_a_probe_that_overflows_is_a_gap_and_the_others_go_on(subject, tmp_path):
    model, _, train, test = a_model(0), None, *subject[2:]
    head = model.encoder.get_layer("latent_head")
    head.set_weights([1e30 * weight for weight in head.get_weights()])
    metrics = ["probe", "ridge_probe", "knn", "occlusion"]
    found = Suite(model, train, test, tmp_path, probe_seeds=2).measure(metrics)
    assert list(found) == metrics
    assert np.isnan(found["probe"]["values"]["trained"]["accuracy"])
    assert np.isnan(found["probe"]["values"]["trained"]["mean_of_seeds"])
    assert found["probe"]["values"]["pixels"]["accuracy"] > 0.9
    gaps = found["probe"]["protocol"]["gaps"]
    assert list(gaps) == [f"linear_probe of trained, seed {seed}" for seed in (0, 1)]
    assert all("overflowed in epoch 1" in reason for reason in gaps.values())
    assert found["occlusion"]["values"] == {}
    assert "overflowed" in found["occlusion"]["protocol"]["gaps"]["occlusion"]
    assert found["ridge_probe"]["values"]["trained"]["accuracy"] > 0.9
    assert "gaps" not in found["knn"]["protocol"]


def test_metrics_are_announced_and_only_latents_are_needed_without_a_comparison(subject, tmp_path):
    model, _, train, test = subject
    lines = []
    found = Suite(model, train, test, tmp_path).measure(["pca", "knn"], lines.append)
    assert lines == ["[1/2] knn: nearest neighbours", f"[2/2] pca: {METRICS['pca']}"]
    assert list(found) == ["knn", "pca"]
    assert set(found["knn"]["values"]) == {"trained"}


def test_images_of_another_size_are_refused(subject, tmp_path):
    model, _, train, test = subject
    halves = ImageSet(train.images[:, ::2, ::2], train.labels, train.class_names)
    with pytest.raises(UsageError, match=r"16 x 16 pixels.*8 x 8"):
        Suite(model, halves, test, tmp_path)


@pytest.mark.parametrize("left", [20, 1])
def test_a_small_class_has_fewer_pairs_of_distances(subject, tmp_path, left):
    model, _, train, test = subject
    kept = np.flatnonzero((test.labels != 1) | (np.arange(len(test)) < 3 * left))
    few = ImageSet(test.images[kept], test.labels[kept], test.class_names)
    found = Suite(model, train, few, tmp_path).measure(["distances", "knn"])["distances"]
    if left == 1:
        assert "class 1 has 1 images" in found["protocol"]["gaps"]["distances"]
    else:
        assert found["protocol"]["intra_class_pairs"] == 3 * 20 * 19 // 2
        assert 0 < found["values"]["trained"]["intra_inter_ratio"] < 1


def test_different_classes_and_too_few_images_for_dreams_are_refused(subject):
    _, _, train, test = subject
    other = ImageSet(test.images, test.labels, ("red", "green"))
    with pytest.raises(UsageError, match="must be the same"):
        check(["probe"], train, other, 100)
    with pytest.raises(UsageError, match="fid would compare 5 dreams"):
        check(["fid"], train, test, 5)
