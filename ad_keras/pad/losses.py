"""The losses of perturbed and adversarial dreaming.

Their source is Deperrois, Petrovici, Senn & Jordan (2022), eLife 11:e76384, Methods. Every function
returns a scalar float32 tensor, a mean over the mini-batch, or over a replica's part of it.
"""

import keras
import tensorflow as tf

from ad_keras.pad.parts import Part

_SMALLEST_VARIANCE = 1e-12


def reconstruction_loss(images: tf.Tensor, reconstructions: tf.Tensor) -> tf.Tensor:
    """Squared error between images and what the generator makes of their latents (wake).

    The paper sums over pixels. The published results come from the mean over all elements, which
    is what this returns.

    Args:
        images: [B, H, W, C], in [-1, 1].
        reconstructions: [B, H, W, C], in [-1, 1].
    """
    return tf.reduce_mean(tf.math.squared_difference(images, reconstructions))


def kl_loss(latents: tf.Tensor) -> tf.Tensor:
    """Divergence of the mini-batch's latents from the prior N(0, I), per dimension (wake).

    The encoder is deterministic. The Gaussian that is compared with the prior has the empirical
    mean and the unbiased variance of the mini-batch in each latent dimension. A dimension without
    variance, as bfloat16 rounds those of a small untrained network, would be infinitely far from
    the prior, so its variance counts as 1e-12.

    Args:
        latents: [B, latent_dim] with B of at least 2; a single latent has no variance.
    """
    count = tf.cast(tf.shape(latents)[0], latents.dtype)
    mean = tf.reduce_mean(latents, axis=0)
    variance = tf.reduce_sum(tf.math.squared_difference(latents, mean), axis=0) / (count - 1.0)
    variance = tf.maximum(variance, _SMALLEST_VARIANCE)
    return 0.5 * tf.reduce_mean(tf.square(mean) + variance - tf.math.log(variance) - 1.0)


@keras.saving.register_keras_serializable("ad_keras")
class LatentDistance(Part):
    """NREM's recovery loss in the paper: the squared error between latents, a mean of elements.

    A recovery loss of your own has the same call and may set `views`.

    Attributes:
        views: how many perturbed views of each dream the encoder recovers.
    """

    views = 1

    def __call__(self, replayed: tf.Tensor, recovered: tf.Tensor) -> tf.Tensor:
        """Compares latents.

        Args:
            replayed: [B, latent_dim], the latents that NREM dreams of.
            recovered: [views, B, latent_dim], the encoder's answers to the perturbed dreams.
        """
        return tf.reduce_mean(tf.math.squared_difference(replayed, recovered))


@keras.saving.register_keras_serializable("ad_keras")
class Minimax(Part):
    """The paper's adversarial losses: cross-entropies of the discriminator d, from its logits.

    An adversary of your own has these three methods.
    """

    def external(self, logits: tf.Tensor) -> tf.Tensor:
        """-log d(X), of calling images external (wake).

        Args:
            logits: [B], the discriminator's output for images, before the sigmoid.
        """
        return tf.reduce_mean(tf.math.softplus(-logits))

    def internal(self, logits: tf.Tensor) -> tf.Tensor:
        """-log(1 - d(G(Z_mix))), of calling dreams internal (REM).

        Args:
            logits: [B], the discriminator's output for dreams, before the sigmoid.
        """
        return tf.reduce_mean(tf.math.softplus(logits))

    def fooling(self, logits: tf.Tensor) -> tf.Tensor | None:
        """What the generator descends in REM.

        Args:
            logits: [B], the discriminator's output for dreams, before the sigmoid.

        Returns:
            None here: the generator ascends `internal`, in the same backward pass.
        """
        return None
