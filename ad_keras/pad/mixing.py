"""What REM dreams of: mixtures of memories and noise, the paper's and others."""

import keras
import tensorflow as tf

from ad_keras.compute import draws, replicas
from ad_keras.pad.parts import Part, require


@keras.saving.register_keras_serializable("ad_keras")
class Mixing(Part):
    """Convex mixture of two memories and noise.

    lambda' (lambda Z + (1 - lambda) Z_old) + (1 - lambda') epsilon with epsilon ~ N(0, I), the
    creation of REM latents in Deperrois et al. (eLife 2022;11:e76384), Methods.

    Args:
        recent: lambda, the share of the newer of the two memories, in [0, 1].
        memories: lambda', the share of memories in the mixture, in [0, 1]; the rest is noise.
    """

    def __init__(self, recent: float = 0.5, memories: float = 0.5) -> None:
        for name, share in (("recent", recent), ("memories", memories)):
            require(0 <= share <= 1, name, share, "between 0 and 1")
        self.recent = recent
        self.memories = memories

    def __call__(self, latents: tf.Tensor, recalled: tf.Tensor, key: tf.Tensor) -> tf.Tensor:
        """Draws the noise and mixes.

        Args:
            latents: Z, the newer memories, [B, latent_dim].
            recalled: Z_old, the older memories, [B, latent_dim].
            key: integer [2], of the stateless noise.

        Returns:
            Latents of REM dreams, [B, latent_dim].
        """
        return self.mix(latents, recalled, replicas.normal(latents, key))

    def mix(self, latents: tf.Tensor, recalled: tf.Tensor, noise: tf.Tensor) -> tf.Tensor:
        """Mixes Z, Z_old and a noise epsilon that is given, all [B, latent_dim]."""
        memories = self.recent * latents + (1 - self.recent) * recalled
        return self.memories * memories + (1 - self.memories) * noise


@keras.saving.register_keras_serializable("ad_keras")
class VariancePreservingMixing(Mixing):
    """The convex mixture, divided by the root of the sum of its squared shares.

    Memories and noise of unit variance, independent of each other, give dreams of unit variance,
    as the prior has it. Those of the convex mixture have a standard deviation of 0.61 with the
    paper's shares.
    """

    def mix(self, latents: tf.Tensor, recalled: tf.Tensor, noise: tf.Tensor) -> tf.Tensor:
        """Mixes with a noise that is given; arguments and result as in `Mixing.mix`."""
        newer, older = self.recent * self.memories, (1 - self.recent) * self.memories
        norm = (newer**2 + older**2 + (1 - self.memories) ** 2) ** 0.5
        return super().mix(latents, recalled, noise) / norm


@keras.saving.register_keras_serializable("ad_keras")
class ComponentMixing(Mixing):
    """Each component of a dream's latent comes whole from one memory or from the noise.

    The shares of `Mixing` are the probabilities of the three sources here, so that a dream has the
    variance of its sources.
    """

    def __call__(self, latents: tf.Tensor, recalled: tf.Tensor, key: tf.Tensor) -> tf.Tensor:
        """Draws the noise and the sources; arguments and result as in `Mixing`."""
        noise_key, source_key = draws.split(key, 2)
        shape = tf.shape(latents) * [replicas.count(), 1]
        source = replicas.own(draws.uniform(shape, source_key))
        dreamt = tf.where(source < self.recent * self.memories, latents, recalled)
        return tf.where(source < self.memories, dreamt, replicas.normal(latents, noise_key))


@keras.saving.register_keras_serializable("ad_keras")
class ManyMemoriesMixing(Mixing):
    """The convex mixture with the mean of several older memories in place of one.

    The others are those of other images in the mini-batch: each image recalls one, and takes those
    that the images before it recall, too. Where images are mixed with each other, as in evaluation,
    each recalls the one before it, so that none meets itself.

    Args:
        recent: lambda, the share of the newest memory, in [0, 1].
        memories: lambda', the share of memories against noise, in [0, 1].
        older: how many older memories, at least 1; with 1 it is `Mixing`.
    """

    def __init__(self, recent: float = 0.5, memories: float = 0.5, older: int = 3) -> None:
        super().__init__(recent, memories)
        require(older >= 1, "older", older, "at least 1")
        self.older = older

    def __call__(self, latents: tf.Tensor, recalled: tf.Tensor, key: tf.Tensor) -> tf.Tensor:
        """Draws the noise and mixes; arguments and result as in `Mixing`."""
        whole = replicas.gather(tf.convert_to_tensor(recalled))
        older = tf.add_n([tf.roll(whole, number, axis=0) for number in range(self.older)])
        return super().__call__(latents, replicas.own(older / self.older), key)
