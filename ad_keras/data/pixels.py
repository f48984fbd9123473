"""Between pixels and the values that the networks see."""

import tensorflow as tf


def as_signed(images: tf.Tensor) -> tf.Tensor:
    """Images as the networks see them: float32, same shape, in [-1, 1].

    Args:
        images: uint8 [..., H, W, C], or float in [-1, 1], which is passed on.

    Raises:
        ValueError: if they are integers of another type, whose range is unknown.
    """
    images = tf.convert_to_tensor(images)
    if images.dtype == tf.uint8:
        return tf.cast(images, tf.float32) / 127.5 - 1.0
    if not images.dtype.is_floating:
        raise ValueError(
            f"images are of type {images.dtype.name}: they must be uint8, or floats in [-1, 1]."
        )
    return tf.cast(images, tf.float32)


def to_pixels(images: tf.Tensor) -> tf.Tensor:
    """Images of the generator, [..., H, W, C] in [-1, 1], as pixels: uint8, same shape."""
    return tf.cast(tf.round((tf.clip_by_value(images, -1.0, 1.0) + 1.0) * 127.5), tf.uint8)
