"""How close generated images come to real ones, as distributions of their features.

All functions take features, such as those of Inception's pool3; their values can be compared only
between features of the same network and, for the Frechet distance, sets of the same size.
"""

import numpy as np
from numpy.typing import ArrayLike
from sklearn.metrics import pairwise_distances_chunked
from sklearn.neighbors import NearestNeighbors

from ad_keras.measures import _checks

_WORKING_MEMORY_MIB = 256


def fid(x: ArrayLike, y: ArrayLike) -> float:
    """Frechet distance of two feature sets: |m_x - m_y|^2 + Tr(C_x + C_y - 2 (C_x C_y)^(1/2)).

    Each set is taken for a Gaussian of its mean m and unbiased covariance C. The distance is biased
    upwards in small sets: compare only sets of the same size. Source: Heusel et al., "GANs trained
    by a two time-scale update rule converge to a local Nash equilibrium", NeurIPS 2017, equation 6.

    Args:
        x: [N, D], N at least 2.
        y: [M, D], M at least 2.

    Returns:
        The distance, from 0, in squared units of the features.

    Raises:
        ValueError: If the sets are not finite, have fewer than two rows, or different widths.
    """
    x, y = _feature_sets(x=x, y=y)
    (mean_x, root_x), (mean_y, root_y) = _moments("x", x), _moments("y", y)
    # C_x C_y has the eigenvalues of F F^T with F = R_x R_y^T, so the trace of its root is the sum
    # of F's singular values. Fewer than D examples are no trouble, as they are to a matrix root.
    root_trace = np.linalg.norm(root_x @ root_y.T, "nuc")
    spread = np.sum(root_x**2) + np.sum(root_y**2) - 2 * root_trace
    return float(max(np.sum((mean_x - mean_y) ** 2) + spread, 0))


def kid(
    x: ArrayLike, y: ArrayLike, *, subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Kernel distance of two feature sets: unbiased squared MMD, averaged over random subsets.

    The kernel is (a.b / D + 1)^3. Source: Binkowski et al., "Demystifying MMD GANs", ICLR 2018.

    Args:
        x: [N, D].
        y: [M, D].
        subsets: Number of subsets, each drawn from both sets without replacement.
        subset_size: Examples of each set in a subset, from 2 to the smaller of N and M.
        seed: Seed of the draws.

    Returns:
        Mean and (population) standard deviation over the subsets. The mean is about 0, and can be
        negative, for two sets of the same distribution.

    Raises:
        ValueError: If the sets are not finite or have different widths, or if `subsets` or
            `subset_size` is out of range.
    """
    x, y = _feature_sets(x=x, y=y)
    _checks.at_least(1, subsets=subsets)
    _checks.at_least(2, subset_size=subset_size)
    for name, rows in (("x", len(x)), ("y", len(y))):
        if subset_size > rows:
            raise ValueError(
                f"subset_size is {subset_size} but {name} has {rows} rows; "
                f"pass at most {rows} or more examples"
            )
    rng = np.random.default_rng(seed)
    distances = [
        _squared_mmd(
            x[rng.choice(len(x), subset_size, replace=False)],
            y[rng.choice(len(y), subset_size, replace=False)],
        )
        for _ in range(subsets)
    ]
    return float(np.mean(distances)), float(np.std(distances))


def density_coverage(real: ArrayLike, fake: ArrayLike, k: int = 5) -> tuple[float, float]:
    """Fidelity and diversity of generated examples, told apart.

    Around each real example lies a ball that reaches to its k-th nearest real neighbour. Density
    is the mean number of balls that a generated example falls into, divided by k; coverage is the
    share of balls into which at least one falls. Used rather than precision and recall, which a
    few outliers change and which equal distributions do not bring to a known value. Source: Naeem
    et al., "Reliable fidelity and diversity metrics for generative models", ICML 2020.

    Args:
        real: [N, D], N more than `k`.
        fake: [M, D].
        k: Neighbour that sets the radius.

    Returns:
        Density, from 0, with expectation 1 for equal distributions, and coverage, 0 to 1, with
        expectation about 1 - 2^-k for equal distributions and N = M.

    Raises:
        ValueError: If the sets are not finite or have different widths, or `k` is out of range.
    """
    real, fake = _feature_sets(real=real, fake=fake)
    _checks.at_least(1, k=k)
    if k >= len(real):
        raise ValueError(f"k is {k} but real has {len(real)} rows; pass at most {len(real) - 1}")
    # Distances by way of dot products lose digits far from the origin.
    centre = real.mean(axis=0)
    real, fake = real - centre, fake - centre
    search = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(real)
    radii = search.kneighbors()[0][:, -1]  # [N]

    def inside(distances: np.ndarray, start: int) -> np.ndarray:
        return np.sum(distances < radii[start : start + len(distances), np.newaxis], axis=1)

    parts = pairwise_distances_chunked(
        real, fake, reduce_func=inside, working_memory=_WORKING_MEMORY_MIB
    )
    in_ball = np.concatenate(list(parts))  # [N] generated examples in each ball
    return float(in_ball.sum() / (k * len(fake))), float(np.mean(in_ball > 0))


def _feature_sets(**sets: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    x, y = (_checks.features(name, values, dtype=np.float64) for name, values in sets.items())
    name, other_name = sets
    _checks.same_width(name, x, other_name, y)
    return x, y


def _moments(name: str, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean [D], and R [min(N, D), D] such that R^T R is the covariance."""
    if len(features) < 2:
        raise ValueError(f"{name} has 1 row; a covariance needs at least 2")
    mean = features.mean(axis=0)
    return mean, np.linalg.qr(features - mean, mode="r") / np.sqrt(len(features) - 1)


def _squared_mmd(x: np.ndarray, y: np.ndarray) -> float:
    n = len(x)
    within = sum(
        (kernel.sum() - kernel.trace()) / (n * (n - 1)) for kernel in (_kernel(x, x), _kernel(y, y))
    )
    return float(within - 2 * _kernel(x, y).mean())


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    base = x @ y.T / x.shape[1] + 1
    return base * base * base  # several times faster than a power
