"""How latents of the same memory are made to agree: the paper's distance, and contrastive losses.

These serve as `recovery` in NREM, between a memory and perturbed dreams of it, and as `agreement`
in wake, between an image and glimpses of it. Each returns a scalar float32 tensor.
"""

import itertools

import keras
import tensorflow as tf

from ad_keras.compute import replicas
from ad_keras.pad.losses import decorrelation_loss
from ad_keras.pad.parts import Part, require


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
class Contrast(Part):
    """InfoNCE between views: those of one memory attract, those of others repel.

    As in contrastive dreaming (Deperrois et al. 2023, arXiv 2308.01830). The loss is that of SimCLR
    (Chen et al. 2020, arXiv 2002.05709, equation 1): -log(exp(s+ / t) / sum exp(s / t)), with the
    cosine similarity s, over all other views in the mini-batch. With more than two views, each
    other view of the same memory counts as s+ in turn.

    Args:
        temperature: t, above 0.
        views: perturbed views of each memory, at least 2.
    """

    def __init__(self, temperature: float = 0.2, views: int = 2) -> None:
        require(temperature > 0, "temperature", temperature, "above 0")
        require(views >= 2, "views", views, "at least 2")
        self.temperature = temperature
        self.views = views

    def __call__(self, replayed: tf.Tensor, recovered: tf.Tensor) -> tf.Tensor:
        """Compares the views; arguments as in `LatentDistance`, of which `replayed` is not used."""
        views = [replicas.gather(view) for view in tf.unstack(recovered)]
        count = tf.shape(views[0])[0]
        directions = tf.math.l2_normalize(tf.concat(views, axis=0), axis=-1, epsilon=1e-12)
        similar = tf.matmul(directions, directions, transpose_b=True) / self.temperature
        own = tf.eye(tf.shape(similar)[0])
        same = tf.tile(tf.eye(count), [self.views, self.views]) - own  # views of the same memory
        log_sum = tf.reduce_logsumexp(similar - 1e9 * own, axis=1)
        attraction = tf.reduce_sum(same * similar, axis=1) / (self.views - 1)
        return tf.reduce_mean(log_sum - attraction)


@keras.saving.register_keras_serializable("ad_keras")
class VICReg(Part):
    """Variance, invariance and covariance of views (Bardes et al. 2022, arXiv 2105.04906).

    Views of the same memory attract. What keeps them from collapsing are a hinge on the standard
    deviation of each latent dimension in the mini-batch, at 1, and the squared covariances between
    dimensions.

    Args:
        invariance: weight of the mean squared difference between views, 0 or more.
        variance: weight of the hinge, 0 or more.
        covariance: weight of the covariances, 0 or more.
        views: perturbed views of each memory, at least 2.
    """

    def __init__(
        self,
        invariance: float = 25.0,
        variance: float = 25.0,
        covariance: float = 1.0,
        views: int = 2,
    ) -> None:
        weights = {"invariance": invariance, "variance": variance, "covariance": covariance}
        for name, weight in weights.items():
            require(weight >= 0, name, weight, "0 or more")
        require(views >= 2, "views", views, "at least 2")
        self.invariance = invariance
        self.variance = variance
        self.covariance = covariance
        self.views = views

    def __call__(self, replayed: tf.Tensor, recovered: tf.Tensor) -> tf.Tensor:
        """Compares the views, as in `Contrast`; B is at least 2."""
        views = [replicas.gather(view) for view in tf.unstack(recovered)]
        pairs = list(itertools.combinations(views, 2))
        distances = [tf.reduce_mean(tf.math.squared_difference(*pair)) for pair in pairs]
        return (
            self.invariance * tf.add_n(distances) / len(pairs)
            + self.variance * tf.add_n([_hinge(view) for view in views]) / self.views
            + self.covariance * tf.add_n([decorrelation_loss(view) for view in views]) / self.views
        )


@keras.saving.register_keras_serializable("ad_keras")
class CodingRate(Part):
    """Total coding rate of views, as in EMP-SSL (Tong et al. 2023, arXiv 2304.03977).

    Each view is pulled to the mean of its memory's views. What keeps them from collapsing is the
    rate R = log det(I + N / (B distortion) Z^T Z) / 2 of the mini-batch's B latents of N
    dimensions, scaled to length 1: it is the larger, the more evenly they spread. The loss is the
    mean over views of -R - similarity cos(view, mean).

    Args:
        similarity: weight of the cosine against the rate, 0 or more.
        distortion: epsilon squared of the rate, above 0.
        views: perturbed views of each memory, at least 2.
    """

    def __init__(self, similarity: float = 200.0, distortion: float = 0.2, views: int = 2) -> None:
        require(similarity >= 0, "similarity", similarity, "0 or more")
        require(distortion > 0, "distortion", distortion, "above 0")
        require(views >= 2, "views", views, "at least 2")
        self.similarity = similarity
        self.distortion = distortion
        self.views = views

    def __call__(self, replayed: tf.Tensor, recovered: tf.Tensor) -> tf.Tensor:
        """Compares the views; arguments as in `LatentDistance`, of which `replayed` is not used."""
        views = [replicas.gather(view) for view in tf.unstack(recovered)]
        directions = tf.math.l2_normalize(tf.stack(views), axis=-1, epsilon=1e-12)
        centres = tf.math.l2_normalize(tf.reduce_mean(directions, axis=0), axis=-1, epsilon=1e-12)
        cosine = tf.reduce_mean(tf.reduce_sum(directions * centres, axis=-1))
        _, count, size = tf.unstack(tf.cast(tf.shape(directions), directions.dtype))
        scale = size / (count * self.distortion)
        products = scale * tf.matmul(directions, directions, transpose_a=True)
        rates = 0.5 * tf.linalg.logdet(tf.eye(tf.shape(products)[-1]) + products)
        return -tf.reduce_mean(rates) - self.similarity * cosine


def _hinge(view: tf.Tensor) -> tf.Tensor:
    """How far the deviations of dimensions in a mini-batch [B, N] fall short of 1, on average."""
    count = tf.cast(tf.shape(view)[0], view.dtype)
    variances = tf.math.reduce_variance(view, axis=0) * count / (count - 1.0)
    return tf.reduce_mean(tf.nn.relu(1.0 - tf.sqrt(variances + 1e-4)))
