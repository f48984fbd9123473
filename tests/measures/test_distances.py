import itertools

import numpy as np
import pytest

from ad_keras.measures.distances import distance_ratios


def data(sizes=(20, 30, 25), width=4, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(len(sizes)) * 3, sizes))
    latents = labels[:, np.newaxis] / 2 + rng.normal(size=(len(labels), width))
    return latents, labels, latents + rng.normal(size=latents.shape) / 3


def test_drawing_all_pairs_equals_a_double_loop():
    latents, labels, occluded = data(sizes=(20, 20, 20))
    same, different = [], []
    for i, j in itertools.combinations(range(60), 2):
        (same if labels[i] == labels[j] else different).append(
            np.linalg.norm(latents[i] - latents[j])
        )
    moved = [np.linalg.norm(a - b) for a, b in zip(latents, occluded, strict=True)]
    result = distance_ratios(
        latents, labels, occluded, same_class_pairs=190, different_class_pairs=1200
    )
    assert result.intra_class == pytest.approx(np.mean(same))
    assert result.inter_class == pytest.approx(np.mean(different))
    assert result.clean_occluded == pytest.approx(np.mean(moved))
    assert result.intra_inter_ratio == pytest.approx(np.mean(same) / np.mean(different))
    assert result.occluded_inter_ratio == pytest.approx(np.mean(moved) / np.mean(different))
    assert result.intra_class_pairs == len(same) == 570
    assert result.inter_class_pairs == len(different) == 1200
    assert result.clean_occluded_pairs == 60


def test_all_pairs_of_classes_of_different_sizes_are_reached():
    latents, labels, occluded = data(sizes=(3, 10, 25))
    different = [
        np.linalg.norm(latents[i] - latents[j])
        for i, j in itertools.combinations(range(38), 2)
        if labels[i] != labels[j]
    ]
    result = distance_ratios(
        latents, labels, occluded, same_class_pairs=3, different_class_pairs=len(different)
    )
    assert result.inter_class == pytest.approx(np.mean(different))


def test_drawn_pairs_estimate_the_mean_over_all():
    latents, labels, occluded = data(sizes=(400, 400), width=2)
    few = distance_ratios(
        latents, labels, occluded, same_class_pairs=2000, different_class_pairs=4000
    )
    every = distance_ratios(
        latents, labels, occluded, same_class_pairs=400 * 399 // 2, different_class_pairs=160_000
    )
    assert few.intra_class == pytest.approx(every.intra_class, rel=0.05)
    assert few.inter_class == pytest.approx(every.inter_class, rel=0.05)


def test_each_class_weighs_alike_in_the_intra_class_distance():
    labels = np.repeat([0, 1], [10, 200])
    # Class 0 is a single point; class 1 lies on two points that are 6 apart.
    latents = np.stack([np.where(labels == 1, 6.0 * (np.arange(210) % 2), 0.0)], axis=1)
    result = distance_ratios(
        latents, labels, latents, same_class_pairs=45, different_class_pairs=100
    )
    expected = 6 * (100 * 100) / (200 * 199 / 2) / 2
    assert result.intra_class == pytest.approx(expected, rel=0.3)


def test_the_seed_decides_which_pairs_are_drawn():
    arguments = data()
    counts = {"same_class_pairs": 100, "different_class_pairs": 300, "occluded_pairs": 30}
    first = distance_ratios(*arguments, seed=1, **counts)
    assert first == distance_ratios(*arguments, seed=1, **counts)
    other = distance_ratios(*arguments, seed=2, **counts)
    assert first.intra_class != other.intra_class
    assert first.inter_class != other.inter_class
    assert first.clean_occluded != other.clean_occluded
    assert first.clean_occluded_pairs == 30


def test_a_class_with_too_few_images_is_named_with_its_counts():
    latents, labels, occluded = data(sizes=(60, 45, 60))
    message = "class 3 has 45 images, which make 990 pairs; same_class_pairs=1000 needs 46 images"
    with pytest.raises(ValueError, match=message):
        distance_ratios(latents, labels, occluded)
    distance_ratios(*data(sizes=(60, 46, 60)), different_class_pairs=1000)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"occluded_latents": np.ones((59, 4))}, r"but occluded_latents \(59, 4\)"),
        ({"labels": np.arange(59)}, r"labels has shape \(59,\) for 60 examples"),
        ({"labels": np.zeros(60, int)}, "labels holds only class 0"),
        ({"latents": np.full((60, 4), np.nan)}, "latents: Input contains (NaN|infinity)"),
        ({"latents": np.ones((0, 4))}, "latents: Found array with 0 sample"),
        ({"latents": np.ones((60, 4))}, "the encoder has collapsed"),
        ({"different_class_pairs": 901}, "60 images in 2 classes make 900 pairs of different"),
        ({"same_class_pairs": 0}, "same_class_pairs is 0; pass at least 1"),
        ({"different_class_pairs": 0}, "different_class_pairs is 0; pass at least 1"),
        ({"occluded_pairs": 0}, "occluded_pairs is 0; pass at least 1"),
    ],
)
def test_bad_input_is_named(changed, message):
    rng = np.random.default_rng(0)
    arguments = {
        "latents": rng.normal(size=(60, 4)),
        "labels": np.arange(60) % 2,
        "occluded_latents": rng.normal(size=(60, 4)),
        "same_class_pairs": 10,
        "different_class_pairs": 10,
    }
    with pytest.raises(ValueError, match=message):
        distance_ratios(**arguments | changed)
