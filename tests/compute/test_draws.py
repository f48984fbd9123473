"""Tests of the random numbers: their distributions, and where they must be equal."""

import itertools

import numpy as np
import pytest
import scipy.stats
import tensorflow as tf

from ad_keras.compute import draws

COUNT = 20_000
KINDS = {
    "uniform": draws.uniform,
    "normal": draws.normal,
    "integers": lambda shape, key: draws.integers(shape, key, 1, 8),
}


def test_distributions():
    assert scipy.stats.kstest(draws.uniform([COUNT], [1, 2]), "uniform").pvalue > 0.001
    assert scipy.stats.kstest(draws.normal([COUNT], [1, 2]), "norm").pvalue > 0.001
    counts = np.bincount(draws.integers([COUNT], [1, 2], 3, 5), minlength=7)
    assert counts[:3].sum() == counts[6:].sum() == 0
    assert scipy.stats.chisquare(counts[3:6]).pvalue > 0.001


def test_the_ends_of_the_range_are_finite(monkeypatch):
    for bits in (0, 2**23 - 1):
        monkeypatch.setattr(draws, "integers", lambda shape, *_, bits=bits: tf.fill(shape, bits))
        assert 0 <= draws.uniform([1], [0, 0]) < 1
        assert 5 < abs(draws.normal([1], [0, 0])[0]) < 5.5


@pytest.mark.parametrize("kind", KINDS)
def test_xla_draws_the_same(kind):
    plain = KINDS[kind]([100], [3, 4])
    compiled = tf.function(lambda: KINDS[kind]([100], [3, 4]), jit_compile=True)()
    np.testing.assert_allclose(plain, compiled, rtol=1e-5, atol=1e-6)


def test_keys_are_the_same_under_xla():
    def keys():
        return [draws.fold_in([1, 2], 3), *draws.split([1, 2], 3)]

    compiled = tf.function(keys, jit_compile=True)()
    for key, same in zip(keys(), compiled, strict=True):
        np.testing.assert_array_equal(key, same)


def test_no_two_keys_share_their_numbers():
    keys = [[seed, phase] for seed in range(3) for phase in range(2)]
    keys += [draws.fold_in([0, 0], step) for step in range(5)] + draws.split([0, 0], 3)
    samples = [draws.normal([COUNT], key).numpy() for key in keys]
    for one, two in itertools.combinations(samples, 2):
        assert abs(np.corrcoef(one, two)[0, 1]) < 5 / np.sqrt(COUNT)
        assert len(np.intersect1d(one[:1000], two[:1000])) < 5  # chance: 1000^2 / 2^23
