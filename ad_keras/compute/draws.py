"""Random numbers as functions of a key, the same on every device, with and without XLA.

Keys are integers [2], and `shape` is that of the result. TensorFlow's own floating-point draws
take the low bits of its random integers, and XLA's the high bits, so that only integers agree:
floats are made of them here.
"""

import tensorflow as tf

_ALGORITHM = "philox"
_BITS = 23  # of a uniform number; with more, its ends would be rounded to infinite normals


def fold_in(key: tf.Tensor, number: int | tf.Tensor) -> tf.Tensor:
    """The key, int64, of a numbered piece of what a key is for."""
    return tf.random.fold_in(tf.cast(key, tf.int64), tf.cast(number, tf.int64), alg=_ALGORITHM)


def split(key: tf.Tensor, count: int) -> list[tf.Tensor]:
    """Independent keys, integers [2], as many as `count`."""
    return tf.unstack(tf.random.split(tf.cast(key, tf.int64), count, alg=_ALGORITHM))


def integers(shape: tf.Tensor | list, key: tf.Tensor, low: int, high: int) -> tf.Tensor:
    """Uniform over the integers from `low` to `high`, ends included, as int32."""
    return tf.random.stateless_uniform(
        shape, key, minval=low, maxval=high + 1, dtype=tf.int32, alg=_ALGORITHM
    )


def uniform(shape: tf.Tensor | list, key: tf.Tensor) -> tf.Tensor:
    """Uniform in [0, 1), multiples of 2^-23 as float32."""
    draws = integers(shape, key, 0, 2**_BITS - 1)
    return tf.cast(draws, tf.float32) * 2.0**-_BITS


def normal(shape: tf.Tensor | list, key: tf.Tensor) -> tf.Tensor:
    """Standard normal as float32, by the inverse of its distribution function; within +-5.5."""
    centred = 2.0 * uniform(shape, key) + (2.0**-_BITS - 1.0)  # in (-1, 1)
    return 2.0**0.5 * tf.math.erfinv(centred)
