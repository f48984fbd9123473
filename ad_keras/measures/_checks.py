"""Checks of what callers hand to the evaluators, made once, at each public function's entrance."""

import numpy as np
from numpy.typing import ArrayLike, DTypeLike


def features(name: str, values: ArrayLike, *, dtype: DTypeLike = np.float32) -> np.ndarray:
    """Returns feature vectors as a finite, non-empty matrix.

    Args:
        name: What the caller calls `values`, for the message.
        values: [N, D], one row for each example.
        dtype: Floating-point type of the result.

    Returns:
        [N, D] array of `dtype`; not a copy if `values` already is one.

    Raises:
        ValueError: If `values` is not two-dimensional, is empty, or holds infinity or NaN.
    """
    with np.errstate(over="ignore"):  # a value too large for `dtype` is reported below
        matrix = np.asarray(values, dtype=dtype)
    if matrix.ndim != 2:
        raise ValueError(f"{name} has shape {matrix.shape}; pass [N, D], one row for each example")
    if matrix.size == 0:
        raise ValueError(f"{name} is empty (shape {matrix.shape}); pass at least one example")
    finite = np.isfinite(matrix)
    if not finite.all():
        bad = np.flatnonzero(~finite.all(axis=1))
        raise ValueError(
            f"{name} holds infinity or NaN in {len(bad)} of {len(matrix)} rows, first in row "
            f"{bad[0]}; check the network that made it"
        )
    return matrix


def same_width(name: str, matrix: np.ndarray, other_name: str, other: np.ndarray) -> None:
    """Raises ValueError if two feature matrices differ in their number of columns."""
    if matrix.shape[1] != other.shape[1]:
        raise ValueError(
            f"{name} has {matrix.shape[1]} columns but {other_name} has {other.shape[1]}; "
            "take both from the same network"
        )


def class_labels(name: str, values: ArrayLike, count: int) -> np.ndarray:
    """Returns class labels as a vector of integers from 0.

    Args:
        name: What the caller calls `values`, for the message.
        values: [N] integers.
        count: Number of examples the labels belong to.

    Returns:
        [N] array of int64.

    Raises:
        ValueError: If `values` are not `count` integers, or one is negative.
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
    return labels.astype(np.int64)


def several_classes(name: str, labels: np.ndarray) -> None:
    """Raises ValueError if all labels are of one class."""
    if (labels == labels[0]).all():
        raise ValueError(
            f"{name} holds only class {labels[0]} in {len(labels)} examples; "
            "pass at least two classes"
        )


def at_least(name: str, value: int, smallest: int) -> None:
    """Raises ValueError if a count is below what makes sense."""
    if value < smallest:
        raise ValueError(f"{name} is {value}; pass at least {smallest}")
