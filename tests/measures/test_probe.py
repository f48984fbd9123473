import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.metrics import confusion_matrix
from sklearn.preprocessing import StandardScaler

import ad_keras.measures.probe as probe_module
from ad_keras.measures.probe import linear_probe, logistic_probe, ridge_probe

PROBES = pytest.mark.parametrize("probe", [linear_probe, logistic_probe, ridge_probe])


def clusters(count, *, classes=4, width=6, spread=1.0, seed=0):
    """Gaussian clusters around centres that do not depend on `seed`."""
    centres = np.random.default_rng(99).normal(size=(classes, width))
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=count)
    latents = centres[labels] + spread * rng.normal(size=(count, width))
    return latents.astype(np.float32), labels


def naive_sgd(latents, labels, classes, learning_rate, batch_size, epochs, seed):
    """The protocol example by example in float64, from the gradient of -log softmax."""
    rng = np.random.default_rng(seed)
    weights, bias = np.zeros((classes, latents.shape[1])), np.zeros(classes)
    for _ in range(epochs):
        order = rng.permutation(len(latents))
        for batch in order[: len(order) // batch_size * batch_size].reshape(-1, batch_size):
            weight_gradient, bias_gradient = np.zeros_like(weights), np.zeros_like(bias)
            for i in batch:
                z = latents[i].astype(np.float64)
                odds = np.exp(weights @ z + bias)
                for c in range(classes):
                    residual = odds[c] / odds.sum() - (labels[i] == c)
                    weight_gradient[c] += residual * z / len(batch)
                    bias_gradient[c] += residual / len(batch)
            weights -= learning_rate * weight_gradient
            bias -= learning_rate * bias_gradient
    return weights.T, bias


def test_linear_probe_equals_sgd_example_by_example_and_drops_an_incomplete_batch():
    latents, labels = clusters(150)
    result = linear_probe(
        latents, labels, latents, labels, learning_rate=0.3, batch_size=64, epochs=3, seed=5
    )
    weights, bias = naive_sgd(latents, labels, 4, 0.3, 64, 3, 5)
    np.testing.assert_allclose(result.weights, weights, atol=1e-5)
    np.testing.assert_allclose(result.bias, bias, atol=1e-5)
    assert result.alpha is None


def test_linear_probe_is_the_papers_unless_told_otherwise():
    latents, labels = clusters(150)
    result = linear_probe(latents, labels, latents, labels)
    weights, bias = naive_sgd(latents, labels, 4, 0.2, 64, 20, 0)
    np.testing.assert_allclose(result.weights, weights, atol=1e-4)
    np.testing.assert_allclose(result.bias, bias, atol=1e-4)


@pytest.mark.parametrize("classes", [2, 4])
def test_logistic_probe_is_where_the_gradient_of_its_loss_is_zero(classes):
    latents, labels = clusters(300, classes=classes)
    latents = latents * 7 + 30
    result = logistic_probe(latents, labels, latents, labels, c=0.1, tolerance=1e-7)
    deviations = latents.std(axis=0, dtype=np.float64)
    standardised = (latents - latents.mean(axis=0, dtype=np.float64)) / deviations
    odds = np.exp(latents @ result.weights + result.bias)
    error = odds / odds.sum(axis=1, keepdims=True) - np.eye(classes)[labels]
    # Of two classes scikit-learn regularises the difference, which has twice the square.
    share = 2 if classes == 2 else 1
    weights = result.weights * deviations[:, np.newaxis]
    np.testing.assert_allclose(standardised.T @ error + share * weights / 0.1, 0, atol=1e-3)
    np.testing.assert_allclose(error.sum(axis=0), 0, atol=1e-3)


@pytest.mark.parametrize(("probe", "tolerance"), [(logistic_probe, 0.004), (ridge_probe, 0)])
def test_exact_probes_do_not_depend_on_scale_and_offset_of_the_latents(probe, tolerance):
    train, test = clusters(300), clusters(300, seed=1)
    scale, offset = np.geomspace(0.01, 1000, 6), np.linspace(-5, 5, 6)
    moved = probe(train[0] * scale + offset, train[1], test[0] * scale + offset, test[1])
    assert moved.accuracy == pytest.approx(probe(*train, *test).accuracy, abs=tolerance)


def test_logistic_probe_names_a_failure_to_converge():
    with pytest.raises(ValueError, match="did not converge to a gradient of 1e-09 within 2 iter"):
        logistic_probe(*clusters(300), *clusters(100), tolerance=1e-9, max_iterations=2)


def test_ridge_probe_equals_scikit_learn_on_standardised_latents(monkeypatch):
    monkeypatch.setattr(probe_module, "_ROWS_AT_ONCE", 64)  # several parts, the last incomplete
    (latents, labels), test = clusters(300), clusters(100, seed=1)
    latents, test = latents * 7 + 30, (test[0] * 7 + 30, test[1])
    result = ridge_probe(latents, labels, *test, alphas=(20.0,))
    latents, test = latents.astype(np.float64), (test[0].astype(np.float64), test[1])
    scaler = StandardScaler().fit(latents)
    ridge = Ridge(alpha=20.0).fit(scaler.transform(latents), 2 * np.eye(4)[labels] - 1)
    np.testing.assert_allclose(
        test[0] @ result.weights + result.bias, ridge.predict(scaler.transform(test[0])), atol=1e-8
    )
    assert result.alpha == 20.0


@pytest.mark.parametrize("seed", range(40))
def test_ridge_probe_chooses_the_alpha_that_is_best_on_the_held_out_part(seed):
    # Few examples with heavy tails, and latents that are 0 but for one example: the parts differ,
    # and what varies in the held-out part only must get no weight.
    rng = np.random.default_rng(seed + 100)
    labels = rng.permutation(np.arange(40) % 3)
    latents = np.eye(3, 6)[labels] + rng.standard_t(2, size=(40, 6))
    latents = np.hstack([latents, np.diag(rng.normal(size=40))])
    latents = latents.astype(np.float32).astype(np.float64)
    alphas = (0.01, 1.0, 10.0, 100.0, 1e4)

    order = np.random.default_rng(seed).permutation(40)
    held_out, fitted = order[:20], order[20:]
    scaler = StandardScaler().fit(latents[fitted])
    accuracies = {}
    for alpha in alphas:
        ridge = Ridge(alpha=alpha)
        ridge.fit(scaler.transform(latents[fitted]), 2 * np.eye(3)[labels[fitted]] - 1)
        scores = ridge.predict(scaler.transform(latents[held_out]))
        accuracies[alpha] = np.mean(scores.argmax(axis=1) == labels[held_out])
    best = max(alphas, key=lambda alpha: (accuracies[alpha], alpha))
    result = ridge_probe(
        latents, labels, latents, labels, alphas=alphas, validation_share=0.5, seed=seed
    )
    assert result.alpha == best


def test_ridge_probe_gives_a_constant_latent_no_weight():
    (latents, labels), test = clusters(300), clusters(100, seed=1)
    with_constant = np.insert(latents, 2, 1234.567, axis=1)
    result = ridge_probe(with_constant, labels, np.insert(test[0], 2, 1234.567, axis=1), test[1])
    np.testing.assert_array_equal(result.weights[2], 0)
    assert result.accuracy == ridge_probe(latents, labels, *test).accuracy


@PROBES
def test_constant_latents_score_the_most_frequent_class(probe):
    train_labels, test_labels = np.repeat([0, 1, 2], [50, 200, 60]), np.repeat([0, 1], [30, 70])
    result = probe(np.zeros((310, 4)), train_labels, np.zeros((100, 4)), test_labels)
    assert result.accuracy == 0.7


@PROBES
def test_confusion_and_per_class_accuracy_equal_scikit_learn(probe):
    train, test = clusters(500), clusters(200, seed=1)
    result = probe(*train, *test)
    expected = confusion_matrix(test[1], result.predict(test[0]), labels=range(4))
    assert 0 < np.trace(expected) < expected.sum()
    assert (expected != expected.T).any()
    np.testing.assert_array_equal(result.confusion, expected)
    shares = expected.diagonal() / expected.sum(axis=1)
    np.testing.assert_allclose(result.per_class_accuracy, shares)
    assert result.accuracy == pytest.approx(expected.diagonal().sum() / 200)


@PROBES
def test_a_class_missing_in_the_test_set_has_no_accuracy(probe):
    train, (latents, labels) = clusters(500), clusters(200, seed=1)
    kept = labels != 2
    result = probe(*train, latents[kept], labels[kept], num_classes=6)
    np.testing.assert_array_equal(np.isnan(result.per_class_accuracy), [0, 0, 1, 0, 1, 1])
    assert result.confusion.shape == (6, 6)


@PROBES
def test_score_is_the_accuracy_on_the_given_latents(probe):
    train, test = clusters(500), clusters(200, seed=1)
    result = probe(*train, *test)
    assert result.score(*test) == result.accuracy
    occluded = test[0] * (np.arange(6) < 2)
    by_hand = np.argmax(occluded @ result.weights + result.bias, axis=1)
    assert result.score(occluded, test[1]) == np.mean(by_hand == test[1]) < result.accuracy


@PROBES
def test_the_inputs_are_left_as_they_are(probe):
    train, test = clusters(300), clusters(100, seed=1)
    before = train[0].copy(), test[0].copy()
    probe(*train, *test)
    np.testing.assert_array_equal(train[0], before[0])
    np.testing.assert_array_equal(test[0], before[1])


def test_prediction_holds_where_float32_products_would_overflow():
    (latents, labels), test = clusters(500), clusters(200, seed=1)
    result = linear_probe(latents * 1e17, labels, test[0] * 1e17, test[1])
    assert result.accuracy > 0.5
    far = test[0] * np.float32(1e30)
    assert float(np.abs(far).max()) * float(np.abs(result.weights).max()) > 1e39
    np.testing.assert_array_equal(result.predict(far), result.predict(test[0] * 1e17))


def test_linear_probe_names_overflowing_weights():
    (latents, labels), test = clusters(500), clusters(200, seed=1)
    with pytest.raises(ValueError, match=r"overflowed in epoch 1 with learning_rate 0\.2"):
        linear_probe(latents * np.float32(1e30), labels, *test)


def test_predict_rejects_latents_of_another_width():
    result = linear_probe(*clusters(50), *clusters(20))
    with pytest.raises(
        ValueError, match="latents has 3 columns but the probe's training set has 6"
    ):
        result.predict(np.zeros((4, 3)))


@PROBES
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"train_latents": np.zeros((0, 6))}, "train_latents: Found array with 0 sample"),
        ({"train_latents": np.zeros(50)}, "train_latents: Expected 2D array"),
        ({"test_latents": np.zeros((20, 5))}, "train_latents has 6 columns but test_latents has 5"),
        ({"test_latents": np.full((20, 6), np.nan)}, "test_latents: Input contains (NaN|infinity)"),
        ({"test_latents": np.full((20, 6), 1e300)}, "test_latents: Input contains (NaN|infinity)"),
        ({"train_labels": np.arange(49)}, r"train_labels has shape \(49,\) for 50 examples"),
        ({"train_labels": np.ones(50)}, "train_labels is of type float64"),
        ({"train_labels": np.arange(50) - 1}, "train_labels holds -1"),
        ({"train_labels": np.full(50, 3)}, "train_labels holds only class 3 in 50 examples"),
        ({"num_classes": 3}, "num_classes is 3 but the labels go up to 4"),
    ],
)
def test_bad_input_is_named_in_one_line(probe, changed, message):
    arguments = {
        "train_latents": np.ones((50, 6)),
        "train_labels": np.arange(50) % 5,
        "test_latents": np.ones((20, 6)),
        "test_labels": np.arange(20) % 5,
    }
    with pytest.raises(ValueError, match=message) as error:
        probe(**arguments | changed)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("probe", "setting", "message"),
    [
        (linear_probe, {"learning_rate": 0.0}, "learning_rate is 0.0"),
        (linear_probe, {"batch_size": 0}, "batch_size is 0; pass at least 1"),
        (linear_probe, {"epochs": 0}, "epochs is 0; pass at least 1"),
        (ridge_probe, {"alphas": ()}, "alphas is"),
        (ridge_probe, {"alphas": (1.0, 0.0)}, "alphas is"),
        (ridge_probe, {"validation_share": 1.0}, "validation_share is 1.0"),
    ],
)
def test_settings_out_of_range_are_rejected(probe, setting, message):
    with pytest.raises(ValueError, match=message):
        probe(*clusters(50), *clusters(20), **setting)
