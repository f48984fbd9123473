"""What REM dreams of: mixtures of memories and noise."""

import keras
import tensorflow as tf

from ad_keras.compute import replicas
from ad_keras.pad.parts import Part, require


@keras.saving.register_keras_serializable("ad_keras")
class Mixing(Part):
    """Convex mixture of two memories and noise.

    lambda' (lambda Z + (1 - lambda) Z_old) + (1 - lambda') epsilon with epsilon ~ N(0, I), the
    creation of REM latents in Deperrois et al. (eLife 2022;11:e76384), Methods.

    Args:
        recent: lambda, the share of the newer of the two memories, in [0, 1].
        memories: lambda', the share of memories in the mixture, in [0, 1]; the rest is noise.

    Raises:
        ValueError: if a share is not in [0, 1].
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
        """Mixes with a noise that is given.

        Args:
            latents: Z, [B, latent_dim].
            recalled: Z_old, [B, latent_dim].
            noise: epsilon, [B, latent_dim].

        Returns:
            [B, latent_dim].
        """
        memories = self.recent * latents + (1 - self.recent) * recalled
        return self.memories * memories + (1 - self.memories) * noise
