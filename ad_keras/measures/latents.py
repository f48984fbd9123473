"""Latents of many images."""

from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from ad_keras.data.pixels import as_signed
from ad_keras.pad.perturbations import occlude, occlusion_mask

_BATCH = 500


def encode(encoder: keras.Model, images: np.ndarray) -> np.ndarray:
    """Encodes images batch by batch.

    Args:
        encoder: from `build_encoder`.
        images: uint8 [N, H, W, C].

    Returns:
        Latents, float32 [N, latent_dim].
    """
    return _encode(encoder, images, lambda batch, _: batch)


def encode_occluded(
    encoder: keras.Model, images: np.ndarray, probability: float, tile: int, seed: int
) -> np.ndarray:
    """Encodes images of which a share is occluded, each by a mask of its own.

    Args:
        encoder: from `build_encoder`.
        images: uint8 [N, H, W, C].
        probability: of occluding a tile, 0 to 1. With the same seed and tile size, what a lower
            one occludes a higher one does too.
        tile: side of the tiles in pixels.
        seed: of the masks.

    Returns:
        Latents, float32 [N, latent_dim].
    """

    def occluded(batch: tf.Tensor, number: int) -> tf.Tensor:
        count, height, width, _ = batch.shape
        mask = occlusion_mask(
            tf.constant([seed, number], tf.int64),
            tf.fill([count], probability),
            tf.fill([count], tile),
            height,
            width,
        )
        return occlude(batch, mask)

    return _encode(encoder, images, occluded)


def _encode(
    encoder: keras.Model,
    images: np.ndarray,
    perturb: Callable[[tf.Tensor, int], tf.Tensor],
) -> np.ndarray:
    latents = np.empty((len(images), encoder.output["latent"].shape[-1]), np.float32)
    for number, start in enumerate(range(0, len(images), _BATCH)):
        rows = slice(start, start + _BATCH)
        # Called as it is, since `predict` would trace graphs anew for every short last batch.
        latents[rows] = encoder(perturb(as_signed(images[rows]), number))["latent"]
    return latents
