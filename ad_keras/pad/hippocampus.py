"""The memory of the last mini-batch's latents."""

import keras
import tensorflow as tf

from ad_keras.pad.parts import require


@keras.saving.register_keras_serializable("ad_keras")
class Hippocampus(keras.layers.Layer):
    """Keeps the latents of one mini-batch until the next REM phase recalls them.

    Its content is two weights, so that checkpoints and saved models hold it. With several
    replicas, each keeps the latents of the whole mini-batch.

    Args:
        capacity: the most latents that can be stored at a time, at least 1.
        **kwargs: of `keras.layers.Layer`.

    Raises:
        ValueError: if the capacity is below 1.
    """

    def __init__(self, capacity: int = 64, **kwargs) -> None:
        super().__init__(**{"trainable": False, "dtype": "float32", **kwargs})
        require(capacity >= 1, "capacity", capacity, "at least 1")
        self.capacity = capacity

    def build(self, latents_shape: tuple[int | None, int]) -> None:
        """Makes room.

        Args:
            latents_shape: [B, latent_dim], of what will be stored.
        """
        if self.built:
            return
        self.latents = self.add_weight(
            shape=(self.capacity, latents_shape[-1]),
            initializer="zeros",
            trainable=False,
            aggregation="only_first_replica",
            name="latents",
        )
        self.stored = self.add_weight(
            shape=(),
            initializer="zeros",
            dtype="int32",
            trainable=False,
            aggregation="only_first_replica",
            name="stored",
        )

    def store(self, latents: tf.Tensor) -> None:
        """Replaces the memory.

        Args:
            latents: [B, latent_dim] with B of at most `capacity`.
        """
        latents = self._fitting(latents)
        count = tf.shape(latents)[0]
        self.latents.assign(tf.pad(latents, [[0, self.capacity - count], [0, 0]]))
        self.stored.assign(count)

    def recall(self, latents: tf.Tensor, key: tf.Tensor) -> tf.Tensor:
        """The latents of the previous mini-batch, as partners for the present ones.

        Where there is none (at the first step, or if the previous mini-batch was smaller), the
        present latent is its own partner.

        Args:
            latents: [B, latent_dim] with B of at most `capacity`.
            key: integer [2], for memories that choose at random; this one does not.

        Returns:
            [B, latent_dim].
        """
        latents = self._fitting(latents)
        count = tf.shape(latents)[0]
        remembered = (tf.range(count) < self.stored)[:, None]
        return tf.where(remembered, self.latents[:count], latents)

    def _fitting(self, latents: tf.Tensor) -> tf.Tensor:
        count = latents.shape[0] or tf.shape(latents)[0]
        assertion = tf.debugging.assert_less_equal(
            count,
            self.capacity,
            "A mini-batch has more images than the hippocampus can hold: build PAD with "
            f"hippocampus=Hippocampus(capacity) of at least that (it is {self.capacity}).",
        )
        with tf.control_dependencies([] if assertion is None else [assertion]):
            return tf.identity(latents)

    def get_config(self) -> dict:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "capacity": self.capacity}
