"""Latents of many images."""

from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from ad_keras.data.pixels import as_signed
from ad_keras.pad.perturbations import occlude, occlusion_mask

_BATCH = 500


def encode(
    encoder: keras.Model,
    images: np.ndarray,
    perturb: Callable[[tf.Tensor, int], tf.Tensor] | None = None,
) -> np.ndarray:
    """Encodes images batch by batch.

    Args:
        encoder: from `build_encoder`.
        images: uint8 [N, H, W, C].
        perturb: changes a batch in [-1, 1], of which it is told the number too.

    Returns:
        Latents, float32 [N, latent_dim].
    """
    latents = np.empty((len(images), encoder.output["latent"].shape[-1]), np.float32)
    for number, start in enumerate(range(0, len(images), _BATCH)):
        rows = slice(start, start + _BATCH)
        batch = as_signed(images[rows])
        # Called as it is, since `predict` would trace graphs anew for every short last batch.
        latents[rows] = encoder(perturb(batch, number) if perturb else batch)["latent"]
    return latents


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
        key = tf.constant([seed, number], tf.int64)
        strengths = tf.fill([count], probability), tf.fill([count], tile)
        return occlude(batch, occlusion_mask(key, *strengths, height, width))

    return encode(encoder, images, occluded)
