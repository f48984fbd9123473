"""Latents of many images."""

import keras
import numpy as np
import tensorflow as tf

from ad_keras.model import as_signed

_BATCH = 500


def encode(encoder: keras.Model, images: np.ndarray) -> np.ndarray:
    """Encodes images batch by batch.

    Args:
        encoder: from `build_encoder`.
        images: uint8 [N, H, W, C].

    Returns:
        Latents, float32 [N, latent_dim].
    """
    batches = tf.data.Dataset.from_tensor_slices(images).batch(_BATCH)
    signed = batches.map(as_signed).prefetch(2)
    return encoder.predict(signed, verbose=0)["latent"]
