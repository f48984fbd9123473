"""k-nearest-neighbour classification of latents, which needs no training."""

import numpy as np
from numpy.typing import ArrayLike
from sklearn.neighbors import NearestNeighbors

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
    the highest summed similarity wins. A zero latent has similarity 0 with every other.

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
    train_latents = _checks.features("train_latents", train_latents)
    test_latents = _checks.features("test_latents", test_latents)
    _checks.same_width("train_latents", train_latents, "test_latents", test_latents)
    train_labels = _checks.class_labels("train_labels", train_labels, len(train_latents))
    test_labels = _checks.class_labels("test_labels", test_labels, len(test_latents))
    _checks.several_classes("train_labels", train_labels)
    _checks.at_least("k", k, 1)
    if k > len(train_latents):
        raise ValueError(f"k is {k} but there are {len(train_latents)} training examples; lower k")

    # Between unit vectors |a - b|^2 = 2 - 2 cos: the Euclidean search, which scikit-learn does in
    # parallel and in bounded memory, finds the same neighbours as the cosine.
    train_units, test_units = _unit_rows(train_latents), _unit_rows(test_latents)
    search = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(train_units)
    distances, neighbours = search.kneighbors(test_units)  # [M, k]

    classes, votes_for = np.unique(train_labels, return_inverse=True)
    rows = np.arange(len(test_units))[:, np.newaxis]
    votes = np.zeros((len(test_units), len(classes)), np.int64)
    closeness = np.zeros(votes.shape)
    np.add.at(votes, (rows, votes_for[neighbours]), 1)
    np.add.at(closeness, (rows, votes_for[neighbours]), 1 - distances**2 / 2)
    leading = votes == votes.max(axis=1, keepdims=True)
    predicted = classes[np.where(leading, closeness, -np.inf).argmax(axis=1)]
    return float(np.mean(predicted == test_labels))


def _unit_rows(latents: np.ndarray) -> np.ndarray:
    # Scaled first, so that squares of very large or small latents stay within float32.
    largest = np.abs(latents).max(axis=1, keepdims=True)
    scaled = np.divide(latents, largest, out=np.zeros_like(latents), where=largest > 0)
    norms = np.linalg.norm(scaled, axis=1, keepdims=True)
    return np.divide(scaled, norms, out=scaled, where=norms > 0)
