import numpy as np
import pytest

from ad_keras.measures.maps import filled_dimensions, pca_map, tsne_map


@pytest.mark.parametrize(("count", "width"), [(200, 6), (5, 20)])
def test_pca_equals_the_singular_value_decomposition_up_to_sign(count, width):
    latents = np.random.default_rng(0).normal(size=(count, width)) * np.linspace(3, 1, width) + 10
    coordinates, explained = pca_map(latents)
    left, values, _ = np.linalg.svd(latents - latents.mean(axis=0), full_matrices=False)
    np.testing.assert_allclose(np.abs(coordinates), np.abs(left * values)[:, :2], atol=1e-4)
    np.testing.assert_allclose(explained, values[:2] ** 2 / np.sum(values**2), atol=1e-6)


def test_filled_dimensions_are_one_on_a_line_and_all_where_latents_vary_alike():
    rng = np.random.default_rng(0)
    line = np.outer(rng.normal(size=50), rng.normal(size=6)) + 3
    assert filled_dimensions(line) == pytest.approx(1)
    assert filled_dimensions(np.concatenate([np.eye(6), -np.eye(6)])) == pytest.approx(6)
    latents = rng.normal(size=(200, 6)) * np.linspace(3, 1, 6) + 10
    variances = np.linalg.svd(latents - latents.mean(axis=0))[1] ** 2
    expected = variances.sum() ** 2 / (variances**2).sum()
    assert filled_dimensions(latents) == pytest.approx(expected)
    assert filled_dimensions(0.01 * latents) == pytest.approx(expected)


def test_tsne_keeps_classes_together_and_repeats_with_its_seed():
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    latents = 10 * np.eye(3, 8)[labels] + rng.normal(size=(60, 8))
    coordinates = tsne_map(latents, perplexity=9, seed=1)
    assert coordinates.shape == (60, 2)
    distances = np.linalg.norm(coordinates[:, np.newaxis] - coordinates, axis=-1)
    np.fill_diagonal(distances, np.inf)
    np.testing.assert_array_equal(labels[distances.argmin(axis=1)], labels)
    np.testing.assert_array_equal(coordinates, tsne_map(latents, perplexity=9, seed=1))


@pytest.mark.parametrize("latent_map", [pca_map, filled_dimensions, tsne_map])
@pytest.mark.parametrize(
    ("latents", "message"),
    [
        (np.ones((40, 4)), "latents are equal in all 40 rows"),
        (np.ones((40, 1)), r"latents has shape \(40, 1\)"),
        (np.ones((1, 4)), r"latents has shape \(1, 4\)"),
        (np.ones((0, 4)), "latents: Found array with 0 sample"),
        (np.full((40, 4), np.inf), "latents: Input contains (NaN|infinity)"),
    ],
)
def test_bad_latents_are_named(latent_map, latents, message):
    with pytest.raises(ValueError, match=message):
        latent_map(latents)


@pytest.mark.parametrize("perplexity", [0, 40])
def test_tsne_rejects_a_perplexity_out_of_range(perplexity):
    latents = np.random.default_rng(0).normal(size=(40, 4))
    with pytest.raises(ValueError, match=f"perplexity is {perplexity} for 40 latents"):
        tsne_map(latents, perplexity=perplexity)
