"""The losses of wake that are no parts.

Their source is Deperrois, Petrovici, Senn & Jordan (2022), eLife 11:e76384, Methods. Every function
returns a scalar float32 tensor, a mean over the mini-batch, or over a replica's part of it.
"""

import tensorflow as tf

_SMALLEST_VARIANCE = 1e-12


def reconstruction_loss(images: tf.Tensor, reconstructions: tf.Tensor) -> tf.Tensor:
    """Squared error between images and what the generator makes of their latents (wake).

    Both are [B, H, W, C], in [-1, 1]. The paper sums over pixels. The published results come from
    the mean over all elements, which is what this returns.
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


def decorrelation_loss(latents: tf.Tensor) -> tf.Tensor:
    """Squared covariances between latent dimensions, summed, per dimension (wake).

    The prior's dimensions are independent. The divergence does not see whether the latents' are.
    It is the covariance term of VICReg (Bardes et al. 2022, arXiv 2105.04906, equations 3 and 4).

    Args:
        latents: [B, latent_dim] with B of at least 2.
    """
    count, size = tf.unstack(tf.cast(tf.shape(latents), latents.dtype))
    centred = latents - tf.reduce_mean(latents, axis=0)
    covariances = tf.matmul(centred, centred, transpose_a=True) / (count - 1.0)
    variances = tf.linalg.diag_part(covariances)
    return (tf.reduce_sum(tf.square(covariances)) - tf.reduce_sum(tf.square(variances))) / size


def gradient_penalty_loss(gradients: tf.Tensor) -> tf.Tensor:
    """R1: half the squared norm of the discriminator's gradient at external images (wake).

    Its weight is the gamma of Mescheder, Geiger & Nowozin (2018, arXiv 1801.04406, equation 9).

    Args:
        gradients: [B, H, W, C], of each image's external logit with respect to its pixels.
    """
    return 0.5 * tf.reduce_mean(tf.reduce_sum(tf.square(gradients), axis=[1, 2, 3]))
