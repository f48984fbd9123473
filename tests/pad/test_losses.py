"""Tests of the losses against plain NumPy in double precision."""

import numpy as np
import pytest
import tensorflow as tf

from ad_keras.pad import losses


def random_images(seed, count=6):
    return np.random.default_rng(seed).uniform(-1, 1, (count, 8, 8, 3))


def float32(array):
    return tf.constant(array, tf.float32)


def gaussian_divergence(mean, variance):
    """KL(N(mean, variance) || N(0, 1)) by integrating its definition."""
    deviation = np.sqrt(variance)
    x = np.linspace(mean - 12 * deviation, mean + 12 * deviation, 20_001)
    log_density = -0.5 * ((x - mean) ** 2 / variance + np.log(2 * np.pi * variance))
    log_prior = -0.5 * (x**2 + np.log(2 * np.pi))
    return np.trapezoid(np.exp(log_density) * (log_density - log_prior), x)


@pytest.mark.parametrize("seed", range(3))
def test_reconstruction_loss_is_the_mean_squared_difference_of_all_elements(seed):
    images, rebuilt = random_images(seed), random_images(seed + 100)
    expected = ((images - rebuilt) ** 2).sum() / images.size
    actual = losses.reconstruction_loss(float32(images), float32(rebuilt))
    assert actual.shape == ()
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_kl_loss_is_the_mean_divergence_of_the_latents_gaussians_from_the_prior(seed):
    rng = np.random.default_rng(seed)
    latents = rng.normal(rng.normal(size=5), rng.uniform(0.3, 2, 5), (9, 5))
    divergences = [gaussian_divergence(column.mean(), column.var(ddof=1)) for column in latents.T]
    np.testing.assert_allclose(losses.kl_loss(float32(latents)), np.mean(divergences), rtol=1e-5)


def test_kl_loss_of_a_dimension_without_variance_is_large_and_has_finite_gradients():
    latents = tf.constant([[0.5, 1.0], [0.5, -1.0], [0.5, 0.0]])
    with tf.GradientTape() as tape:
        tape.watch(latents)
        loss = losses.kl_loss(latents)
    gradient = tape.gradient(loss, latents).numpy()
    assert 6 < loss < 7  # half of (0.25 - ln(1e-12) - 1) / 2
    assert np.isfinite(gradient).all()
    np.testing.assert_allclose(gradient[:, 0], 0.5 * 0.5 / 3, rtol=1e-5)  # towards the prior's mean


@pytest.mark.parametrize("seed", range(3))
def test_decorrelation_loss_is_the_sum_of_squared_covariances_of_each_dimension_with_others(seed):
    latents = np.random.default_rng(seed).normal(size=(9, 5)) @ np.diag(range(1, 6)) + 3.0
    expected = 0.0
    for i in range(5):
        for j in range(5):
            if i != j:
                products = (latents[:, i] - latents[:, i].mean()) * latents[:, j]
                expected += (products.sum() / 8) ** 2 / 5
    np.testing.assert_allclose(losses.decorrelation_loss(float32(latents)), expected, rtol=1e-5)
