"""Checks of what callers hand to the evaluators, made once, at each public function's entrance."""

import numpy as np
from numpy.typing import ArrayLike, DTypeLike
from sklearn.utils import check_array

from ad_keras.errors import first_line


def features(name: str, values: ArrayLike, *, dtype: DTypeLike = np.float32) -> np.ndarray:
    """Returns what the caller calls `name`, feature vectors [N, D], as a finite, non-empty matrix.

    Raises:
        ValueError: if `values` are not two-dimensional, are empty, or hold infinity or NaN.
    """
    try:
        with np.errstate(over="ignore"):  # a value too large for `dtype` is refused as infinite
            return check_array(values, dtype=dtype)
    except ValueError as error:
        raise ValueError(f"{name}: {first_line(error).rstrip(':')}") from error


def same_width(name: str, matrix: np.ndarray, other_name: str, other: np.ndarray) -> None:
    """Raises ValueError if two feature matrices differ in their number of columns."""
    if matrix.shape[1] != other.shape[1]:
        raise ValueError(
            f"{name} has {matrix.shape[1]} columns but {other_name} has {other.shape[1]}; "
            "take both from the same network"
        )


# scikit-learn's checks of labels admit texts and fractions, which count as classes there.
def class_labels(name: str, values: ArrayLike, count: int, *, several: bool = False) -> np.ndarray:
    """Returns what the caller calls `name`, class labels [count], as integers from 0.

    Raises:
        ValueError: if `values` are not `count` integers, one is negative, or all are the same
            although there must be several.
    """
    labels = np.asarray(values)
    if labels.shape != (count,):
        raise ValueError(
            f"{name} has shape {labels.shape} for {count} examples; pass one label for each"
        )
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"{name} is of type {labels.dtype}; pass integer class numbers from 0")
    if labels.min() < 0:
        raise ValueError(f"{name} holds {labels.min()}; pass class numbers from 0")
    if several and (labels == labels[0]).all():
        raise ValueError(
            f"{name} holds only class {labels[0]} in {count} examples; pass at least two classes"
        )
    return labels.astype(np.int64)


def train_and_test(
    train_latents: ArrayLike,
    train_labels: ArrayLike,
    test_latents: ArrayLike,
    test_labels: ArrayLike,
    num_classes: int | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int]:
    """Returns what a classifier is fitted and tested on, and the number of its classes.

    Raises:
        ValueError: if the arrays do not fit each other, all are trained on one class, or there are
            more than `num_classes`.
    """
    train_latents = features("train_latents", train_latents)
    test_latents = features("test_latents", test_latents)
    same_width("train_latents", train_latents, "test_latents", test_latents)
    train_labels = class_labels("train_labels", train_labels, len(train_latents), several=True)
    test_labels = class_labels("test_labels", test_labels, len(test_latents))
    needed = int(max(train_labels.max(), test_labels.max())) + 1
    if num_classes is not None and needed > num_classes:
        raise ValueError(
            f"num_classes is {num_classes} but the labels go up to {needed - 1}; "
            f"pass at least {needed}"
        )
    return train_latents, train_labels, test_latents, test_labels, num_classes or needed


def at_least(smallest: int, **counts: int) -> None:
    """Raises ValueError if a count, by its name, is below what makes sense."""
    for name, value in counts.items():
        if value < smallest:
            raise ValueError(f"{name} is {value}; pass at least {smallest}")
