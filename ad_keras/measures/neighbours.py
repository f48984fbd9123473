"""k-nearest-neighbour classification of latents, which needs no training."""

import numpy as np
from numpy.typing import ArrayLike
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import normalize

from ad_keras.measures import _checks


def knn_accuracy(
    train_latents: ArrayLike,
    train_labels: ArrayLike,
    test_latents: ArrayLike,
    test_labels: ArrayLike,
    k: int = 20,
) -> float:
    """Classifies test examples by the majority of their nearest training examples.

    Nearest are those of highest cosine similarity. Of classes with equally many votes the one with
    the highest summed similarity wins. A zero latent is as far from every other one.

    Args:
        train_latents: [N, D].
        train_labels: [N] class numbers.
        test_latents: [M, D].
        test_labels: [M] class numbers.
        k: Neighbours that vote, at most N.

    Returns:
        Share of test examples classified correctly, 0 to 1.

    Raises:
        ValueError: If the arrays do not fit each other, the training set has only one class, or
            `k` is out of range.
    """
    data = _checks.train_and_test(train_latents, train_labels, test_latents, test_labels)
    train_latents, train_labels, test_latents, test_labels, _ = data
    _checks.at_least(1, k=k)
    if k > len(train_latents):
        raise ValueError(f"k is {k} but there are {len(train_latents)} training examples; lower k")
    # Between unit vectors |a - b|^2 = 2 - 2 cos: the Euclidean search, which scikit-learn does in
    # parallel and in bounded memory, finds the same neighbours as its cosine.
    classifier = KNeighborsClassifier(
        # Similarities decide between equal votes, since together they weigh less than one.
        k,
        weights=lambda distances: 1 + (1 - distances**2 / 2) / (4 * k),
        algorithm="brute",
    )
    classifier.fit(_unit_rows(train_latents), train_labels)
    return float(classifier.score(_unit_rows(test_latents), test_labels))


def _unit_rows(latents: np.ndarray) -> np.ndarray:
    # Scaled first: squares of large latents overflow, and scikit-learn takes small ones for 0.
    largest = np.abs(latents).max(axis=1, keepdims=True)
    return normalize(latents / np.where(largest > 0, largest, 1))
