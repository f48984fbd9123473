"""Latents in two dimensions, for looking at, and how many dimensions they fill."""

import numpy as np
from numpy.typing import ArrayLike
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from ad_keras.measures import _checks


def pca_map(latents: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Projects latents on their first two principal components.

    Source: Deperrois et al. (eLife 2022;11:e76384), Figure 6.

    Args:
        latents: [N, D], N and D at least 2.

    Returns:
        Coordinates [N, 2], in units of the latents, and the share of the variance that each of the
        two explains, [2], 0 to 1.

    Raises:
        ValueError: If `latents` are not finite, too few, or all equal.
    """
    latents = _varied(latents)
    # The default solver is a randomised one for some sizes.
    pca = PCA(n_components=2, svd_solver="covariance_eigh")
    return pca.fit_transform(latents), pca.explained_variance_ratio_


def filled_dimensions(latents: ArrayLike) -> float:
    """The participation ratio: in how many directions latents vary, about equally.

    It is the squared trace of their covariance, over its sum of squares: 1 for latents on a line, D
    for those that vary alike in all directions. Source: Abbott, Rajan and Sompolinsky,
    "Interactions between intrinsic and stimulus-evoked activity in recurrent neural networks", 2011
    (arXiv 0912.3832).

    Args:
        latents: [N, D], N and D at least 2.

    Returns:
        1 to D.

    Raises:
        ValueError: If `latents` are not finite, too few, or all equal.
    """
    covariance = np.cov(_varied(latents), rowvar=False)
    return float(np.trace(covariance) ** 2 / np.sum(covariance**2))


def tsne_map(latents: ArrayLike, *, perplexity: float = 30.0, seed: int = 0) -> np.ndarray:
    """Embeds latents by t-SNE, which keeps neighbours together but not distances.

    Slow for more than some thousand latents: pass a subsample. Source: van der Maaten and Hinton,
    "Visualizing data using t-SNE", JMLR 2008.

    Args:
        latents: [N, D], N more than `perplexity`, D at least 2.
        perplexity: Number of neighbours that each latent tries to keep, roughly.
        seed: Seed of the optimisation.

    Returns:
        Coordinates [N, 2], without unit.

    Raises:
        ValueError: If `latents` are not finite, too few, or all equal.
    """
    latents = _varied(latents)
    if not 0 < perplexity < len(latents):
        raise ValueError(
            f"perplexity is {perplexity} for {len(latents)} latents; "
            "pass a positive number below that"
        )
    return TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(latents)


def _varied(latents: ArrayLike) -> np.ndarray:
    latents = _checks.features("latents", latents, dtype=np.float64)
    if min(latents.shape) < 2:
        raise ValueError(f"latents has shape {latents.shape}; a map needs at least [2, 2]")
    if (latents == latents[0]).all():
        raise ValueError(
            f"latents are equal in all {len(latents)} rows; "
            "the encoder has collapsed, check its training"
        )
    return latents
