"""Tests of the mixtures beside the paper's, against plain NumPy."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from ad_keras import ComponentMixing, ManyMemoriesMixing, Mixing, VariancePreservingMixing

KEY = [5, 2]


def normal(seed, count=4000, size=8):
    return tf.constant(np.random.default_rng(seed).normal(size=(count, size)), tf.float32)


@pytest.mark.parametrize(
    ("recent", "memories"), [(0.5, 0.5), (0.3, 0.8), (1.0, 0.25), (0.0, 0.0), (0.5, 1.0)]
)
def test_the_convex_mixture_is_the_papers_formula_with_standard_normal_noise(recent, memories):
    newer, older = normal(0), normal(1)
    mixed = Mixing(recent, memories)(newer, older, KEY)
    assert mixed.dtype == tf.float32
    rest = (mixed - memories * (recent * newer + (1 - recent) * older)).numpy()
    assert abs(rest.mean()) <= 4 * (1 - memories) / np.sqrt(rest.size)
    assert abs(rest.std() - (1 - memories)) <= 4 * (1 - memories) / np.sqrt(2 * rest.size) + 1e-6
    if memories < 1:
        assert (np.abs(np.corrcoef(rest.T) - np.eye(8)) < 5 / np.sqrt(4000)).all()


def test_only_the_convex_mixture_leaves_the_priors_variance():
    newer, older = normal(0), normal(1)
    deviations = {
        kind: np.std(kind(0.5, 0.5)(newer, older, KEY))
        for kind in (Mixing, VariancePreservingMixing, ComponentMixing)
    }
    assert abs(deviations.pop(Mixing) - np.sqrt(2 * 0.25**2 + 0.5**2)) < 0.01
    assert all(abs(deviation - 1) < 0.02 for deviation in deviations.values())


def test_variance_preserving_mixing_is_the_convex_one_scaled():
    newer, older, noise = normal(0, 3), normal(1, 3), normal(2, 3)
    mixed = VariancePreservingMixing(0.7, 0.6).mix(newer, older, noise)
    shares = np.array([0.42, 0.18, 0.4])
    expected = (0.42 * newer + 0.18 * older + 0.4 * noise) / np.linalg.norm(shares)
    np.testing.assert_allclose(mixed, expected, rtol=1e-5)


def test_components_come_whole_from_one_source_with_the_shares_as_probabilities():
    newer, older = normal(0), normal(1)
    mixed = ComponentMixing(0.7, 0.6)(newer, older, KEY)
    from_newer, from_older = (mixed == newer).numpy(), (mixed == older).numpy()
    tolerance = 5 * 0.5 / np.sqrt(mixed.numpy().size)
    assert abs(from_newer.mean() - 0.42) < tolerance
    assert abs(from_older.mean() - 0.18) < tolerance
    noise = mixed.numpy()[~(from_newer | from_older)]
    assert abs(noise.mean()) < 0.05
    assert abs(noise.std() - 1) < 0.05


def test_many_memories_are_the_mean_of_those_of_the_neighbours_before():
    newer, older = normal(0, 5), normal(1, 5)
    mixed = ManyMemoriesMixing(0.25, 1.0, older=2)(newer, older, KEY)
    expected = 0.25 * newer + 0.75 * (older + np.roll(older, 1, axis=0)) / 2
    np.testing.assert_allclose(mixed, expected, rtol=1e-5, atol=1e-6)
    single = ManyMemoriesMixing(0.25, 0.5, older=1)(newer, older, KEY)
    np.testing.assert_allclose(single, Mixing(0.25, 0.5)(newer, older, KEY), rtol=1e-6)


@pytest.mark.parametrize(
    "mixing",
    [
        *(ComponentMixing(0.2, 0.3), ManyMemoriesMixing(older=4), VariancePreservingMixing()),
        Mixing(0.5, 0.25),
    ],
)
def test_saved_and_loaded_parts_are_the_same_with_and_without_xla(mixing):
    saved = keras.saving.serialize_keras_object(mixing)
    loaded = keras.saving.deserialize_keras_object(saved)
    newer, older = normal(0, 4), normal(1, 4)
    compiled = tf.function(loaded, jit_compile=True)(newer, older, tf.constant(KEY, tf.int64))
    np.testing.assert_allclose(mixing(newer, older, KEY), compiled, rtol=1e-5, atol=1e-6)
