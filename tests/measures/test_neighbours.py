import numpy as np
import pytest
from scipy.spatial.distance import cdist

from ad_keras.measures.neighbours import knn_accuracy


def data(count, seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(5, size=count)
    return np.eye(5, 7)[labels] + rng.normal(size=(count, 7)), labels


def naive_accuracy(train_latents, train_labels, test_latents, test_labels, k):
    similarity = 1 - cdist(test_latents, train_latents, "cosine")
    correct = 0
    for row, label in zip(similarity, test_labels, strict=True):
        votes = {}
        for i in sorted(range(len(row)), key=lambda i: -row[i])[:k]:
            count, total = votes.get(train_labels[i], (0, 0.0))
            votes[train_labels[i]] = (count + 1, total + row[i])
        correct += max(votes, key=votes.get) == label
    return correct / len(test_labels)


@pytest.mark.parametrize("k", [1, 2, 5, 20])
def test_equals_sorting_all_cosine_similarities(k):
    train, test = data(300, 0), data(200, 1)
    assert knn_accuracy(*train, *test, k=k) == naive_accuracy(*train, *test, k)


def test_does_not_depend_on_the_length_of_latents():
    (train, train_labels), (test, test_labels) = data(300, 0), data(200, 1)
    rng = np.random.default_rng(2)
    lengths = 10 ** rng.uniform(-30, 30, size=(300, 1))
    assert knn_accuracy(train * lengths, train_labels, test * 1e-30, test_labels) == knn_accuracy(
        train, train_labels, test, test_labels
    )


def test_equal_votes_go_to_the_higher_summed_similarity():
    angles = np.radians([[20, 30, 10, 50]]).T
    train = np.hstack([np.cos(angles), np.sin(angles)])
    nearer_in_sum = [0, 0, 1, 1]  # 20 and 30 degrees are closer in sum than 10 and 50
    assert knn_accuracy(train, nearer_in_sum, [[1.0, 0.0]], [0], k=4) == 1.0
    assert knn_accuracy(train, nearer_in_sum, [[1.0, 0.0]], [1], k=4) == 0.0


def test_a_zero_latent_is_no_error():
    train = np.vstack([np.zeros((2, 2)), np.eye(2)])
    assert knn_accuracy(train, [0, 0, 1, 1], np.array([[1.0, 1.0]]), [1], k=2) == 1.0


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"k": 31}, "k is 31 but there are 30 training examples"),
        ({"k": 0}, "k is 0; pass at least 1"),
        ({"test_latents": np.ones((10, 3))}, "train_latents has 4 columns but test_latents has 3"),
    ],
)
def test_bad_input_is_named(changed, message):
    arguments = {
        "train_latents": np.ones((30, 4)),
        "train_labels": np.arange(30) % 3,
        "test_latents": np.ones((10, 4)),
        "test_labels": np.arange(10) % 3,
    }
    with pytest.raises(ValueError, match=message):
        knn_accuracy(**arguments | changed)
