"""Memories of latents: the paper's, of the last mini-batch, and others that reach further back.

Their constructors raise a ValueError of one line if an argument is not possible.
"""

import keras
import tensorflow as tf

from ad_keras.compute import draws
from ad_keras.pad.parts import require


@keras.saving.register_keras_serializable("ad_keras")
class Hippocampus(keras.layers.Layer):
    """Keeps the latents of one mini-batch until the next REM phase recalls them.

    Its content is two weights, so that checkpoints and saved models hold it. With several
    replicas, each keeps the latents of the whole mini-batch.

    Args:
        capacity: the most latents that can be stored at a time, at least 1.
        **kwargs: of `keras.layers.Layer`.
    """

    def __init__(self, capacity: int = 64, **kwargs) -> None:
        super().__init__(**{"trainable": False, "dtype": "float32", **kwargs})
        require(capacity >= 1, "capacity", capacity, "at least 1")
        self.capacity = capacity

    def build(self, latents_shape: tuple[int | None, int]) -> None:
        """Makes room for latents of this shape, [B, latent_dim], unless that was done."""
        if not self.built:
            self.latents = self._zeros("latents", (self.capacity, latents_shape[-1]))
            self.stored = self._zeros("stored", (), "int32")

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

    def _zeros(self, name: str, shape: tuple, dtype: str | None = None) -> keras.Variable:
        state = {"trainable": False, "aggregation": "only_first_replica"}
        return self.add_weight(shape, "zeros", dtype, name=name, **state)

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


@keras.saving.register_keras_serializable("ad_keras")
class EpisodicHippocampus(Hippocampus):
    """Keeps many latents, and recalls some of them at random.

    Args:
        capacity: the most latents that are kept, at least the size of a mini-batch.
        replacement: what a full memory forgets: the "oldest" latents, or those that make room in a
            "reservoir", which is at any time a uniform sample of all that was ever stored
            (Vitter 1985, algorithm R).
        seed: of what a reservoir forgets.
        **kwargs: of `keras.layers.Layer`.
    """

    def __init__(
        self, capacity: int = 4096, replacement: str = "oldest", seed: int = 0, **kwargs
    ) -> None:
        super().__init__(capacity, **kwargs)
        allowed = "'oldest' or 'reservoir'"
        require(replacement in ("oldest", "reservoir"), "replacement", repr(replacement), allowed)
        self.replacement = replacement
        self.seed = seed

    def build(self, latents_shape: tuple[int | None, int]) -> None:
        """Makes room, as `Hippocampus.build` does."""
        if not self.built:
            super().build(latents_shape)
            self.seen = self._zeros("seen", (), "int64")

    def store(self, latents: tf.Tensor) -> None:
        """Adds latents, as in `Hippocampus`, each in the place of a forgotten one if need be."""
        latents = self._fitting(latents)
        count = tf.shape(latents)[0]
        ordinals = self.seen.value + tf.range(tf.cast(count, tf.int64))
        places = ordinals % self.capacity
        if self.replacement == "reservoir":
            key = draws.fold_in([self.seed, 0], self.seen.value)
            high, low = tf.unstack(tf.cast(draws.uniform([2, count], key), tf.float64))
            # One number has 23 bits, too few for the places of a long run.
            chosen = (high + low * 2.0**-23) * tf.cast(ordinals + 1, tf.float64)
            places = tf.where(ordinals < self.capacity, ordinals, tf.cast(chosen, tf.int64))
        # A place that several want keeps the last of them; one beyond the capacity keeps none.
        wanted = tf.cast(places, tf.int32) == tf.range(self.capacity)[:, None]
        newest = tf.reduce_max(tf.where(wanted, tf.range(count) + 1, 0), axis=1) - 1
        replaced = tf.gather(latents, tf.maximum(newest, 0))
        self.latents.assign(tf.where((newest >= 0)[:, None], replaced, self.latents))
        self.seen.assign_add(tf.cast(count, tf.int64))
        self.stored.assign(tf.minimum(self.stored + count, self.capacity))

    def recall(self, latents: tf.Tensor, key: tf.Tensor) -> tf.Tensor:
        """A random one of the stored latents for each of the present ones.

        Where there is none, the present latent is its own partner. Arguments and result are as in
        `Hippocampus`.
        """
        latents = self._fitting(latents)
        stored = tf.cast(self.stored, tf.float32)
        chosen = draws.uniform([tf.shape(latents)[0]], key) * stored
        return tf.where(
            self.stored > 0, tf.gather(self.latents, tf.cast(chosen, tf.int32)), latents
        )

    def get_config(self) -> dict:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "replacement": self.replacement, "seed": self.seed}


@keras.saving.register_keras_serializable("ad_keras")
class AssociativeHippocampus(EpisodicHippocampus):
    """Completes a partial cue to a stored pattern, as a modern Hopfield network does.

    A part of the present latent is the cue. What is recalled is the mean of the stored latents,
    weighted by softmax(beta * cue . latent / number of the cue's components): one update of
    Ramsauer et al. (2021, arXiv 2008.02217, equation 3).

    Args:
        capacity: as in `EpisodicHippocampus`.
        beta: inverse temperature, above 0; the larger, the more a single latent is recalled.
        cue: share of the latent's components that the cue has, above 0 and at most 1.
        **kwargs: of `EpisodicHippocampus`.
    """

    def __init__(
        self, capacity: int = 4096, *, beta: float = 16.0, cue: float = 0.5, **kwargs
    ) -> None:
        super().__init__(capacity, **kwargs)
        require(beta > 0, "beta", beta, "above 0")
        require(0 < cue <= 1, "cue", cue, "above 0 and at most 1")
        self.beta = beta
        self.cue = cue

    def recall(self, latents: tf.Tensor, key: tf.Tensor) -> tf.Tensor:
        """What each present latent reminds of; the key draws the cues.

        Where nothing is stored, the present latent is its own partner. Arguments and result are as
        in `Hippocampus`.
        """
        latents = self._fitting(latents)
        shown = tf.cast(draws.uniform(tf.shape(latents), key) < self.cue, tf.float32)
        parts = tf.maximum(tf.reduce_sum(shown, axis=1, keepdims=True), 1.0)
        likeness = tf.matmul(shown * latents, self.latents.value, transpose_b=True) / parts
        empty = tf.range(self.capacity) >= self.stored
        weights = tf.nn.softmax(tf.where(empty, -1e9, self.beta * likeness))
        return tf.where(self.stored > 0, tf.matmul(weights, self.latents.value), latents)

    def get_config(self) -> dict:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "beta": self.beta, "cue": self.cue}
