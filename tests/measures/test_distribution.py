import numpy as np
import pytest
import scipy.linalg

from ad_keras.measures import distribution
from ad_keras.measures.distribution import density_coverage, fid, kid


def correlated(count, width, seed, *, shift=0.0):
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(width, width)) / np.sqrt(width)
    return rng.gamma(2.0, size=(count, width)) @ mixing + shift


def test_fid_equals_scipys_matrix_root():
    x, y = correlated(200, 12, 0), correlated(300, 12, 1, shift=0.3)
    covariance_x, covariance_y = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = scipy.linalg.sqrtm(covariance_x @ covariance_y)
    expected = np.sum((x.mean(axis=0) - y.mean(axis=0)) ** 2) + np.trace(
        covariance_x + covariance_y - 2 * root.real
    )
    assert fid(x, y) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("count", [5, 30, 200])
def test_fid_of_identical_sets_is_zero_even_with_fewer_examples_than_features(count):
    x = 100 * correlated(count, 60, 0)
    assert 0 <= fid(x, x) < 1e-9 * np.trace(np.cov(x, rowvar=False))


def test_fid_of_few_examples_equals_the_nuclear_norm_of_their_product():
    x, y = correlated(8, 40, 0), correlated(11, 40, 1)
    centred_x, centred_y = x - x.mean(axis=0), y - y.mean(axis=0)
    root_trace = np.linalg.norm(centred_x @ centred_y.T, "nuc") / np.sqrt(7 * 10)
    expected = (
        np.sum((x.mean(axis=0) - y.mean(axis=0)) ** 2)
        + np.sum(centred_x**2) / 7
        + np.sum(centred_y**2) / 10
        - 2 * root_trace
    )
    assert fid(x, y) == pytest.approx(expected, rel=1e-6)


def test_fid_of_constant_features_is_the_squared_distance_of_their_means():
    assert fid(np.zeros((5, 3)), np.full((4, 3), 2.0)) == pytest.approx(12.0)


def naive_squared_mmd(x, y):
    def kernel(a, b):
        return (sum(p * q for p, q in zip(a, b, strict=True)) / len(a) + 1) ** 3

    n = len(x)
    total = 0.0
    for i in range(n):
        for j in range(n):
            if i != j:
                total += (kernel(x[i], x[j]) + kernel(y[i], y[j])) / (n * (n - 1))
            total -= 2 * kernel(x[i], y[j]) / n**2
    return total


def test_kid_of_the_whole_sets_equals_a_double_loop():
    x, y = correlated(15, 4, 0), correlated(15, 4, 1)
    mean, deviation = kid(x, y, subsets=3, subset_size=15)
    assert mean == pytest.approx(naive_squared_mmd(x, y), rel=1e-9)
    assert deviation == pytest.approx(0, abs=1e-12)


def test_kid_is_mean_and_deviation_over_subsets_drawn_from_both_sets():
    x, y = correlated(40, 4, 0), correlated(30, 4, 1)
    rng = np.random.default_rng(7)
    distances = []
    for _ in range(5):
        rows_x = rng.choice(40, 10, replace=False)
        distances.append(naive_squared_mmd(x[rows_x], y[rng.choice(30, 10, replace=False)]))
    mean, deviation = kid(x, y, subsets=5, subset_size=10, seed=7)
    assert mean == pytest.approx(np.mean(distances))
    assert deviation == pytest.approx(np.std(distances))
    assert (mean, deviation) != kid(x, y, subsets=5, subset_size=10, seed=8)


def naive_density_coverage(real, fake, k):
    density, covered = 0, 0
    for i, centre in enumerate(real):
        others = np.delete(real, i, axis=0)
        radius = np.sort([np.linalg.norm(centre - other) for other in others])[k - 1]
        inside = sum(np.linalg.norm(centre - point) < radius for point in fake)
        density += inside
        covered += inside > 0
    return density / (k * len(fake)), covered / len(real)


@pytest.mark.parametrize("k", [1, 5])
def test_density_and_coverage_equal_a_double_loop(k, monkeypatch):
    monkeypatch.setattr(distribution, "_WORKING_MEMORY_MIB", 0.01)  # three parts
    sample = correlated(105, 3, 0)
    real, fake = sample[:60], sample[60:] + 0.5
    expected = naive_density_coverage(real, fake, k)
    assert 0 < expected[1] < 1
    assert density_coverage(real, fake, k) == pytest.approx(expected)


def test_density_and_coverage_do_not_change_far_from_the_origin():
    rng = np.random.default_rng(0)
    real, fake = rng.normal(size=(2, 200, 3))
    assert density_coverage(real + 1e7, fake + 1e7) == pytest.approx(density_coverage(real, fake))


@pytest.mark.parametrize("metric", [fid, kid, density_coverage])
@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (np.ones((9, 3)), np.ones((9, 4)), "has 3 columns but .* has 4"),
        (np.ones((9, 3)), np.full((9, 3), np.nan), ": Input contains NaN"),
        (np.ones((9, 3)), np.ones((0, 3)), "Found array with 0 sample"),
        (np.ones(9), np.ones((9, 3)), ": Expected 2D array"),
    ],
)
def test_bad_feature_sets_are_named(metric, first, second, message):
    with pytest.raises(ValueError, match=message):
        metric(first, second)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: fid(x, x[:1]), "y has 1 row; a covariance needs at least 2"),
        (lambda x: kid(x, x), "subset_size is 1000 but x has 20 rows"),
        (lambda x: kid(x, x[:5], subset_size=10), "subset_size is 10 but y has 5 rows"),
        (lambda x: kid(x, x, subset_size=1), "subset_size is 1; pass at least 2"),
        (lambda x: kid(x, x, subsets=0), "subsets is 0; pass at least 1"),
        (lambda x: density_coverage(x, x, k=20), "k is 20 but real has 20 rows"),
        (lambda x: density_coverage(x, x, k=0), "k is 0; pass at least 1"),
    ],
)
def test_bad_settings_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(np.random.default_rng(0).normal(size=(20, 3)))
