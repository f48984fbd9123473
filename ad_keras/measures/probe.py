"""Linear probes: how much of the class a linear readout finds in the latents.

Three probes, whose accuracies cannot be compared with each other:
`linear_probe` is the protocol of Deperrois et al. (eLife 2022;11:e76384); `logistic_probe` and
`ridge_probe` read standardised latents, by multinomial logistic regression run to convergence and
in closed form, and depend neither on the latents' scale nor on the length of a training.
"""

import dataclasses
import warnings

import numpy as np
import scipy.linalg
from numpy.typing import ArrayLike
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import confusion_matrix
from sklearn.preprocessing import StandardScaler
from sklearn.utils import gen_batches
from threadpoolctl import threadpool_limits

from ad_keras.measures import _checks

RIDGE_ALPHAS = tuple(np.logspace(-2, 6, 17).tolist())
LOGISTIC_C, LOGISTIC_TOLERANCE = 1.0, 1e-4

_ROWS_AT_ONCE = 4096  # so that float64 copies of them stay small


@dataclasses.dataclass(frozen=True, eq=False)
class ProbeResult:
    """A trained linear readout, scores = z @ weights + bias, and its result on the test set.

    Attributes:
        accuracy: Share of test examples classified correctly, 0 to 1.
        per_class_accuracy: [C] the same for each true class; NaN if the test set has none of it.
        confusion: [C, C] counts of test examples; rows are true classes, columns predicted ones.
        weights: [D, C], for latents as they come from the encoder.
        bias: [C].
        alpha: Regularisation that the ridge probe chose on the validation split; None for others.
    """

    accuracy: float
    per_class_accuracy: np.ndarray
    confusion: np.ndarray
    weights: np.ndarray
    bias: np.ndarray
    alpha: float | None = None

    def predict(self, latents: ArrayLike) -> np.ndarray:
        """The class numbers [N] of latents [N, D] from the encoder the probe was trained on.

        Raises:
            ValueError: If `latents` are not finite or not of the probe's width.
        """
        latents = _checks.features("latents", latents)
        _checks.same_width("latents", latents, "the probe's training set", self.weights.T)
        return _predict(latents, self.weights, self.bias)

    def score(self, latents: ArrayLike, labels: ArrayLike) -> float:
        """The share, 0 to 1, of other examples classified correctly, such as occluded images.

        Args:
            latents: [N, D], as for `predict`.
            labels: [N] class numbers.

        Raises:
            ValueError: If the arrays do not fit each other or the probe.
        """
        predicted = self.predict(latents)
        return float(np.mean(predicted == _checks.class_labels("labels", labels, len(predicted))))


def linear_probe(
    train_latents: ArrayLike,
    train_labels: ArrayLike,
    test_latents: ArrayLike,
    test_labels: ArrayLike,
    *,
    num_classes: int | None = None,
    learning_rate: float = 0.2,
    batch_size: int = 64,
    epochs: int = 20,
    seed: int = 0,
) -> ProbeResult:
    """Trains the paper's linear probe and tests it.

    Softmax cross-entropy, averaged over the mini-batch, descended by plain SGD from zero weights;
    examples are reshuffled for every epoch and an incomplete last mini-batch is dropped. Source:
    Deperrois et al. (eLife 2022;11:e76384), Methods.

    With 256 latents of unit variance, this learning rate makes SGD fluctuate, and the result with
    it, by a few percent between seeds. A last step on a handful of examples would add to that as
    much again and more, and the result would depend on what the size of the set leaves over.

    Args:
        train_latents: [N, D].
        train_labels: [N] class numbers.
        test_latents: [M, D].
        test_labels: [M] class numbers.
        num_classes: C; by default one more than the highest label.
        learning_rate: Step size of SGD.
        batch_size: Examples in a mini-batch; all at once if there are fewer.
        epochs: Passes over the training set.
        seed: Seed of the shuffling.

    Returns:
        The readout with its accuracy on the test set.

    Raises:
        ValueError: If the arrays do not fit each other, the training set has only one class, or
            the weights overflow.
    """
    train_latents, train_labels, test_latents, test_labels, num_classes = _checks.train_and_test(
        train_latents, train_labels, test_latents, test_labels, num_classes
    )
    _checks.at_least(1, batch_size=batch_size, epochs=epochs)
    if not learning_rate > 0:
        raise ValueError(f"learning_rate is {learning_rate}; pass a positive number")

    rng = np.random.default_rng(seed)
    batch_size = min(batch_size, len(train_latents))
    targets = np.eye(num_classes, dtype=np.float32)[train_labels]  # [N, C]
    weights = np.zeros((train_latents.shape[1], num_classes), np.float32)
    bias = np.zeros(num_classes, np.float32)
    # One step is too little work to share: on a busy machine, waiting for the other threads makes
    # wide features several times slower. Overflow is reported after the epoch.
    with threadpool_limits(1, user_api="blas"), np.errstate(over="ignore", invalid="ignore"):
        for epoch in range(epochs):
            order = rng.permutation(len(train_latents))
            for rows in order[: len(order) // batch_size * batch_size].reshape(-1, batch_size):
                batch = train_latents[rows]  # [B, D]
                error = batch @ weights  # [B, C], turned in place from logits to the gradient
                error += bias
                error -= error.max(axis=1, keepdims=True)
                np.exp(error, out=error)
                error /= error.sum(axis=1, keepdims=True)
                error -= targets[rows]
                error *= np.float32(learning_rate / len(rows))
                weights -= batch.T @ error
                bias -= error.sum(axis=0)
            if not (np.isfinite(weights).all() and np.isfinite(bias).all()):
                raise ValueError(
                    f"the linear probe's weights overflowed in epoch {epoch + 1} with "
                    f"learning_rate {learning_rate} and latents up to "
                    f"{np.abs(train_latents).max():.3g}; scale the latents down or lower the rate"
                )
    return _tested(test_latents, test_labels, weights, bias)


def logistic_probe(
    train_latents: ArrayLike,
    train_labels: ArrayLike,
    test_latents: ArrayLike,
    test_labels: ArrayLike,
    *,
    num_classes: int | None = None,
    c: float = LOGISTIC_C,
    tolerance: float = LOGISTIC_TOLERANCE,
    max_iterations: int = 2000,
) -> ProbeResult:
    """Fits a multinomial logistic regression to standardised latents, to convergence, and tests it.

    What the field calls a linear probe. Minimises the sum of the softmax cross-entropies plus
    |W|^2 / (2 c), of two classes |W|^2 / c, where latents have mean 0 and variance 1, by L-BFGS.
    Nothing in it is random.

    Args:
        train_latents: [N, D].
        train_labels: [N] class numbers.
        test_latents: [M, D].
        test_labels: [M] class numbers.
        num_classes: C; by default one more than the highest label. A class without training
            examples is never predicted.
        c: inverse of the regularisation, positive.
        tolerance: largest entry of the mean loss's gradient at which it has converged.
        max_iterations: of L-BFGS.

    Returns:
        The readout, in terms of latents that are not standardised, with its accuracy on the test
        set.

    Raises:
        ValueError: If the arrays do not fit each other, the training set has only one class, or
            the regression does not converge.
    """
    train_latents, train_labels, test_latents, test_labels, num_classes = _checks.train_and_test(
        train_latents, train_labels, test_latents, test_labels, num_classes
    )
    scaler = StandardScaler().fit(train_latents.astype(np.float64))
    # In float32 the line search can end before the tolerance is reached.
    standardised = (train_latents - scaler.mean_) / scaler.scale_
    regression = LogisticRegression(C=c, tol=tolerance, max_iter=max_iterations)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        try:
            regression.fit(standardised, train_labels)
        except ConvergenceWarning as error:
            raise ValueError(
                f"the logistic regression did not converge to a gradient of {tolerance:g} within "
                f"{max_iterations} iterations; raise max_iterations or tolerance, or lower c"
            ) from error
    found, coefficients, intercept = regression.classes_, regression.coef_, regression.intercept_
    if len(found) == 2:  # scikit-learn keeps only the second class's
        coefficients = np.vstack([-coefficients, coefficients]) / 2
        intercept = np.concatenate([-intercept, intercept]) / 2
    weights = np.zeros((train_latents.shape[1], num_classes))
    bias = np.full(num_classes, -np.inf)
    weights[:, found] = coefficients.T / scaler.scale_[:, np.newaxis]
    bias[found] = intercept - scaler.mean_ @ weights[:, found]
    return _tested(test_latents, test_labels, weights, bias)


def ridge_probe(
    train_latents: ArrayLike,
    train_labels: ArrayLike,
    test_latents: ArrayLike,
    test_labels: ArrayLike,
    *,
    num_classes: int | None = None,
    alphas: tuple[float, ...] = RIDGE_ALPHAS,
    validation_share: float = 0.1,
    seed: int = 0,
) -> ProbeResult:
    """Fits a ridge classifier to standardised latents and tests it.

    Minimises |XW + b - T|^2 + alpha |W|^2 in closed form, where X are the latents divided by their
    standard deviation after subtracting their mean, and T is +1 for an example's class and -1 for
    the others. The `alpha` with the highest accuracy on a random validation part of the training
    set is chosen, the larger one of equals, and the classifier fitted again to the whole training
    set. The test set has no part in any of this. A constant latent gets no weight.

    Args:
        train_latents: [N, D].
        train_labels: [N] class numbers.
        test_latents: [M, D].
        test_labels: [M] class numbers.
        num_classes: C; by default one more than the highest label.
        alphas: Regularisations to choose from, each positive.
        validation_share: Share of the training set to choose on, between 0 and 1.
        seed: Seed of the validation split.

    Returns:
        The readout, in terms of latents that are not standardised, with its accuracy on the test
        set and the chosen `alpha`.

    Raises:
        ValueError: If the arrays do not fit each other, or the training set has only one class.
    """
    train_latents, train_labels, test_latents, test_labels, num_classes = _checks.train_and_test(
        train_latents, train_labels, test_latents, test_labels, num_classes
    )
    if not alphas or min(alphas) <= 0:
        raise ValueError(f"alphas is {alphas}; pass one or more positive numbers")
    if not 0 < validation_share < 1:
        raise ValueError(f"validation_share is {validation_share}; pass a number between 0 and 1")

    order = np.random.default_rng(seed).permutation(len(train_latents))
    held_out = min(max(1, round(validation_share * len(order))), len(order) - 1)
    validation, fitted = order[:held_out], order[held_out:]
    targets = 2 * np.eye(num_classes)[train_labels] - 1  # [N, C]
    # About a common point near the mean, sums of the parts add up without losing digits.
    origin = train_latents.mean(axis=0, dtype=np.float64)
    fitted_sums, validation_sums = (
        _ridge_sums(train_latents[rows], targets[rows], origin) for rows in (fitted, validation)
    )

    gram, cross, mean, scale, target_mean = _normal_equations(fitted_sums, num_classes)
    eigenvalues, basis = np.linalg.eigh(gram)
    rotated = basis.T @ cross  # [D, C]
    standardised = (train_latents[validation] - origin - mean) / scale
    projected = standardised @ basis  # [V, D]

    def accuracy(alpha: float) -> float:
        scores = projected @ (rotated / (eigenvalues + alpha)[:, np.newaxis]) + target_mean
        return np.mean(scores.argmax(axis=1) == train_labels[validation])

    best = max(sorted(alphas, reverse=True), key=accuracy)
    sums = fitted_sums + validation_sums
    gram, cross, mean, scale, target_mean = _normal_equations(sums, num_classes)
    weights = scipy.linalg.solve(gram + best * np.eye(len(gram)), cross, assume_a="pos")
    weights /= scale[:, np.newaxis]
    bias = target_mean - (origin + mean) @ weights
    return _tested(test_latents, test_labels, weights, bias, alpha=best)


def _ridge_sums(latents: np.ndarray, targets: np.ndarray, origin: np.ndarray) -> np.ndarray:
    """Sums over examples of the products of all pairs of latents, targets and 1.

    They fix a ridge regression; those of two parts add up to the whole's.
    """
    sums, targets = 0.0, np.column_stack([targets, np.ones(len(targets))])
    for part in gen_batches(len(latents), _ROWS_AT_ONCE):
        rows = np.column_stack([latents[part] - origin, targets[part]])  # float64
        sums += rows.T @ rows
    return sums


def _normal_equations(sums: np.ndarray, classes: int) -> tuple[np.ndarray, ...]:
    """Of standardised latents, (gram + alpha) weights = cross: gram, cross, and what they are of.

    That is the latents' mean and scale, and the mean of the targets.
    """
    width, count = len(sums) - classes - 1, sums[-1, -1]
    mean, target_mean = np.split(sums[-1, :-1] / count, [width])
    squares = sums[:width, :width]
    gram = squares - count * np.outer(mean, mean)
    cross = sums[:width, width:-1] - count * np.outer(mean, target_mean)
    # What rounding leaves of a constant feature's variance would otherwise be blown up to 1.
    constant = gram.diagonal() <= 1e-12 * squares.diagonal()
    scale = np.sqrt(np.where(constant, np.inf, gram.diagonal() / count))
    return gram / np.outer(scale, scale), cross / scale[:, np.newaxis], mean, scale, target_mean


def _tested(
    latents: np.ndarray, labels: np.ndarray, weights: np.ndarray, bias: np.ndarray, alpha=None
) -> ProbeResult:
    classes = len(bias)
    predicted = _predict(latents, weights, bias)
    confusion = confusion_matrix(labels, predicted, labels=range(classes))
    correct, examples = confusion.diagonal(), confusion.sum(axis=1)
    per_class = correct / np.where(examples > 0, examples, np.nan)
    accuracy = float(correct.sum() / len(labels))
    return ProbeResult(accuracy, per_class, confusion, weights, bias, alpha)


def _predict(latents: np.ndarray, weights: np.ndarray, bias: np.ndarray) -> np.ndarray:
    # Finite float32 weights and latents can have products that only float64 holds.
    weights = weights.astype(np.float64)
    parts = gen_batches(len(latents), _ROWS_AT_ONCE)
    return np.concatenate([(latents[part] @ weights + bias).argmax(axis=1) for part in parts])
