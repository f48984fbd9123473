"""Tests of the losses between latents against plain loops in double precision."""

import numpy as np
import pytest
import tensorflow as tf

from ad_keras import CodingRate, Contrast, LatentDistance, VICReg


def float32(array):
    return tf.constant(array, tf.float32)


def latents(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


@pytest.mark.parametrize("seed", range(3))
def test_latent_distance_is_the_mean_squared_difference_of_all_elements(seed):
    replayed, recovered = latents(seed, 2, 7, 5)
    expected = ((replayed - recovered) ** 2).sum() / 35
    recovery = LatentDistance()
    one_view = float32(recovered[None])
    np.testing.assert_allclose(recovery(float32(replayed), one_view), expected, rtol=1e-5)
    assert recovery(float32(replayed), float32(replayed[None])) == 0
    two_views = float32(np.stack([recovered, replayed]))
    np.testing.assert_allclose(recovery(float32(replayed), two_views), expected / 2, rtol=1e-5)


@pytest.mark.parametrize("views", [2, 3])
@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_contrast_is_the_mean_cross_entropy_of_finding_the_same_memory(views, temperature):
    recovered = latents(views, views, 6, 5)
    flat = recovered.reshape(-1, 5)
    flat = flat / np.linalg.norm(flat, axis=1, keepdims=True)
    terms = []
    for i, anchor in enumerate(flat):
        others = [j for j in range(len(flat)) if j != i]
        total = sum(np.exp(anchor @ flat[j] / temperature) for j in others)
        for j in others:
            if j % 6 == i % 6:
                terms.append(-np.log(np.exp(anchor @ flat[j] / temperature) / total))
    loss = Contrast(temperature, views)(float32(latents(0, 6, 5)), float32(recovered))
    np.testing.assert_allclose(loss, np.mean(terms), rtol=1e-5)


@pytest.mark.parametrize("views", [2, 3])
def test_vicreg_is_the_weighted_sum_of_its_three_terms(views):
    recovered = 0.7 * latents(views, views, 9, 4)
    distances = [
        np.mean((recovered[a] - recovered[b]) ** 2) for a in range(views) for b in range(a)
    ]
    spreads, overlaps = [], []
    for view in recovered:
        covariance = np.cov(view.T)
        spreads.append(np.maximum(0, 1 - np.sqrt(np.diag(covariance) + 1e-4)).mean())
        overlaps.append((covariance**2).sum() - (np.diag(covariance) ** 2).sum())
    expected = 2 * np.mean(distances) + 3 * np.mean(spreads) + 5 * np.mean(overlaps) / 4
    actual = VICReg(2, 3, 5, views)(float32(recovered[0]), float32(recovered))
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


@pytest.mark.parametrize("arguments", [(), (3.0, 0.5, 4)])
def test_coding_rate_is_the_rate_of_each_view_and_its_cosine_to_the_mean(arguments):
    similarity, distortion, views = arguments or (200.0, 0.2, 2)
    recovered = latents(views, views, 9, 4)
    unit = recovered / np.linalg.norm(recovered, axis=-1, keepdims=True)
    centre, terms = unit.mean(axis=0), []
    for view in unit:
        deviations = np.linalg.svd(view, compute_uv=False)
        rate = np.log(1 + 4 / (9 * distortion) * deviations**2).sum() / 2
        cosines = [a @ b / np.linalg.norm(b) for a, b in zip(view, centre, strict=True)]
        terms.append(-rate - similarity * np.mean(cosines))
    actual = CodingRate(*arguments)(float32(recovered[0]), float32(recovered))
    np.testing.assert_allclose(actual, np.mean(terms), rtol=1e-5)


@pytest.mark.parametrize("loss", [CodingRate(), Contrast(), VICReg()])
def test_collapsed_latents_have_finite_gradients(loss):
    recovered = tf.zeros([2, 4, 3])
    with tf.GradientTape() as tape:
        tape.watch(recovered)
        value = loss(recovered[0], recovered)
    assert np.isfinite(value)
    assert np.isfinite(tape.gradient(value, recovered)).all()
