"""The losses of perturbed and adversarial dreaming, as pure functions.

Equation numbers refer to Deperrois, Petrovici, Senn & Jordan (2022), eLife 11:e76384. Every
function returns a scalar float32 tensor, a mean over the mini-batch.
"""

import tensorflow as tf

_SMALLEST_VARIANCE = 1e-12


def reconstruction_loss(images: tf.Tensor, reconstructions: tf.Tensor) -> tf.Tensor:
    """Squared error between images and what the generator makes of their latents.

    The paper's equation sums over pixels; the published results come from the mean over all
    elements, which is what this returns.

    Args:
        images: [B, H, W, C], in [-1, 1].
        reconstructions: [B, H, W, C], in [-1, 1].
    """
    return tf.reduce_mean(tf.math.squared_difference(images, reconstructions))


def kl_loss(latents: tf.Tensor) -> tf.Tensor:
    """Divergence of the mini-batch's latents from the prior N(0, I), per dimension.

    The encoder is deterministic, so the Gaussian that is compared with the prior is the one with
    the empirical mean and (unbiased) variance of the mini-batch in each latent dimension. A
    dimension in which all latents are the same, as bfloat16 rounds those of a small untrained
    network, would be infinitely far from the prior: its variance counts as 1e-12.

    Args:
        latents: [B, latent_dim] with B of at least 2; a single latent has no variance.
    """
    count = tf.cast(tf.shape(latents)[0], latents.dtype)
    mean = tf.reduce_mean(latents, axis=0)
    variance = tf.reduce_sum(tf.math.squared_difference(latents, mean), axis=0) / (count - 1.0)
    variance = tf.maximum(variance, _SMALLEST_VARIANCE)
    return 0.5 * tf.reduce_mean(tf.square(mean) + variance - tf.math.log(variance) - 1.0)


def latent_loss(latents: tf.Tensor, recovered: tf.Tensor) -> tf.Tensor:
    """Squared error between replayed latents and those recovered from the occluded dream (NREM).

    Args:
        latents: [B, latent_dim], what was replayed.
        recovered: [B, latent_dim], the encoder's answer to the occluded dream.
    """
    return tf.reduce_mean(tf.math.squared_difference(latents, recovered))


def external_loss(logits: tf.Tensor) -> tf.Tensor:
    """Cross-entropy of calling images external: -log d(x), from logits.

    Args:
        logits: [B], the discriminator's output before the sigmoid.
    """
    return tf.reduce_mean(tf.math.softplus(-logits))


def internal_loss(logits: tf.Tensor) -> tf.Tensor:
    """Cross-entropy of calling images internal: -log(1 - d(x)), from logits.

    In REM the encoder and discriminator descend this loss and the generator ascends it.

    Args:
        logits: [B], the discriminator's output before the sigmoid.
    """
    return tf.reduce_mean(tf.math.softplus(logits))
