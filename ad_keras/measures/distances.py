"""Figure 6 of Deperrois et al. (eLife 2022;11:e76384): distances between and within classes."""

import dataclasses
import math

import numpy as np
from numpy.typing import ArrayLike

from ad_keras.measures import _checks


@dataclasses.dataclass(frozen=True)
class DistanceRatios:
    """Mean Euclidean distances of latents, and their ratios.

    Attributes:
        intra_class: Mean distance of two images of the same class, each class counting alike.
        inter_class: Mean distance of two images of different classes.
        clean_occluded: Mean distance of an image and the same image occluded.
        intra_inter_ratio: intra_class / inter_class; below 1 where classes cluster.
        occluded_inter_ratio: clean_occluded / inter_class; 0 for a latent blind to occlusion.
        intra_class_pairs: Pairs that intra_class is a mean of, over all classes.
        inter_class_pairs: Pairs that inter_class is a mean of.
        clean_occluded_pairs: Pairs that clean_occluded is a mean of.
    """

    intra_class: float
    inter_class: float
    clean_occluded: float
    intra_inter_ratio: float
    occluded_inter_ratio: float
    intra_class_pairs: int
    inter_class_pairs: int
    clean_occluded_pairs: int


def distance_ratios(
    latents: ArrayLike,
    labels: ArrayLike,
    occluded_latents: ArrayLike,
    *,
    same_class_pairs: int = 1000,
    different_class_pairs: int = 10_000,
    occluded_pairs: int = 10_000,
    seed: int = 0,
) -> DistanceRatios:
    """Relates distances within classes and under occlusion to those between classes.

    Pairs are drawn uniformly, of two different images, and none twice. Source: Deperrois et al.
    (eLife 2022;11:e76384), Figure 6.

    Args:
        latents: [N, D], of clean images.
        labels: [N] class numbers.
        occluded_latents: [N, D], of the same images in the same order, occluded.
        same_class_pairs: Pairs drawn from each class.
        different_class_pairs: Pairs drawn from different classes.
        occluded_pairs: Images compared with themselves occluded; all N if they are fewer.
        seed: Seed of the draws.

    Returns:
        The mean distances, in units of the latents, their ratios and the numbers of pairs.

    Raises:
        ValueError: If the arrays do not fit each other, there is only one class, a class has too
            few images for its pairs, or images of different classes do not differ in their latents.
    """
    latents = _checks.features("latents", latents, dtype=np.float64)
    occluded_latents = _checks.features("occluded_latents", occluded_latents, dtype=np.float64)
    labels = _checks.class_labels("labels", labels, len(latents), several=True)
    if latents.shape != occluded_latents.shape:
        raise ValueError(
            f"latents has shape {latents.shape} but occluded_latents {occluded_latents.shape}; "
            "encode the same images clean and occluded"
        )
    pairs = {"same_class_pairs": same_class_pairs, "different_class_pairs": different_class_pairs}
    _checks.at_least(1, **pairs, occluded_pairs=occluded_pairs)

    rng = np.random.default_rng(seed)
    members = {int(c): np.flatnonzero(labels == c) for c in np.unique(labels)}
    same = [_pairs_within(c, images, same_class_pairs, rng) for c, images in members.items()]
    same = np.concatenate(same, axis=1)
    different = _pairs_between(list(members.values()), different_class_pairs, rng)
    images = rng.choice(len(latents), min(occluded_pairs, len(latents)), replace=False)

    intra = _mean_distance(*latents[same])
    inter = _mean_distance(*latents[different])
    occluded = _mean_distance(latents[images], occluded_latents[images])
    if inter == 0:
        raise ValueError(
            f"latents of different classes are equal in all {different.shape[1]} pairs; "
            "the encoder has collapsed, check its training"
        )
    counts = same.shape[1], different.shape[1], len(images)
    return DistanceRatios(intra, inter, occluded, intra / inter, occluded / inter, *counts)


def _pairs_within(
    label: int, images: np.ndarray, count: int, rng: np.random.Generator
) -> np.ndarray:
    """Draws `count` unordered pairs, [2, count], of different images of one class."""
    available = math.comb(len(images), 2)
    if available < count:
        needed = math.ceil((1 + math.sqrt(1 + 8 * count)) / 2)
        raise ValueError(
            f"class {label} has {len(images)} images, which make {available} pairs; "
            f"same_class_pairs={count} needs {needed} images in each class: "
            "give more images or lower same_class_pairs"
        )
    drawn = rng.choice(available, count, replace=False)
    # Pair number (j choose 2) + i stands for images i < j.
    first_of = np.arange(len(images)) * (np.arange(len(images)) - 1) // 2
    later = np.searchsorted(first_of, drawn, side="right") - 1
    return images[[drawn - first_of[later], later]]


def _pairs_between(members: list[np.ndarray], count: int, rng: np.random.Generator) -> np.ndarray:
    """Draws `count` unordered pairs, [2, count], of images of different classes."""
    # Images sorted by class: each one pairs with all that lie beyond its own class.
    images = np.concatenate(members)
    sizes = np.array([len(m) for m in members])
    class_end = np.repeat(np.cumsum(sizes), sizes)
    first_of = np.concatenate([[0], np.cumsum(len(images) - class_end)])
    available = int(first_of[-1])
    if available < count:
        raise ValueError(
            f"{len(images)} images in {len(members)} classes make {available} pairs of different "
            f"classes; lower different_class_pairs={count} or give more images"
        )
    drawn = rng.choice(available, count, replace=False)
    one = np.searchsorted(first_of, drawn, side="right") - 1
    return images[[one, class_end[one] + drawn - first_of[one]]]


def _mean_distance(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.linalg.norm(x - y, axis=1).mean())
