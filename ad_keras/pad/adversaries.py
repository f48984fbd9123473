"""The discriminator's losses: the paper's, and others of generative adversarial networks.

Each takes logits [B], the discriminator's output before the sigmoid, and returns a scalar float32
tensor, a mean over the mini-batch, or over a replica's part of it.
"""

import keras
import tensorflow as tf

from ad_keras.pad.parts import Part


@keras.saving.register_keras_serializable("ad_keras")
class Minimax(Part):
    """The paper's adversarial losses: cross-entropies of the discriminator d.

    An adversary of your own has these three methods, of logits [B] of images or dreams.
    """

    def external(self, logits: tf.Tensor) -> tf.Tensor:
        """-log d(X), of calling images external (wake)."""
        return tf.reduce_mean(tf.math.softplus(-logits))

    def internal(self, logits: tf.Tensor) -> tf.Tensor:
        """-log(1 - d(G(Z_mix))), of calling dreams internal (REM)."""
        return tf.reduce_mean(tf.math.softplus(logits))

    def fooling(self, logits: tf.Tensor) -> tf.Tensor | None:
        """What the generator descends in REM, of dreams.

        Here it is None: the generator ascends `internal`, in the same backward pass.
        """
        return None


@keras.saving.register_keras_serializable("ad_keras")
class NonSaturating(Minimax):
    """As `Minimax`, but the generator descends the external loss of dreams, -log d(G(Z_mix)).

    Its gradient does not vanish where the discriminator wins (Goodfellow et al. 2014,
    arXiv 1406.2661, section 3).
    """

    def fooling(self, logits: tf.Tensor) -> tf.Tensor:
        """The external loss, of dreams."""
        return self.external(logits)


@keras.saving.register_keras_serializable("ad_keras")
class Hinge(Minimax):
    """The hinge losses of Lim & Ye (2017, arXiv 1705.02894): logits beyond +-1 cost nothing."""

    def external(self, logits: tf.Tensor) -> tf.Tensor:
        """max(0, 1 - logit), of images."""
        return tf.reduce_mean(tf.nn.relu(1.0 - logits))

    def internal(self, logits: tf.Tensor) -> tf.Tensor:
        """max(0, 1 + logit), of dreams."""
        return tf.reduce_mean(tf.nn.relu(1.0 + logits))

    def fooling(self, logits: tf.Tensor) -> tf.Tensor:
        """-logit, of dreams."""
        return -tf.reduce_mean(logits)


@keras.saving.register_keras_serializable("ad_keras")
class LeastSquares(NonSaturating):
    """Squared distances of logits to 1 (external) and 0 (internal); Mao et al. 2016, 1611.04076.

    The generator descends the distance of dreams to 1.
    """

    def external(self, logits: tf.Tensor) -> tf.Tensor:
        """(logit - 1)^2, of images."""
        return tf.reduce_mean(tf.math.squared_difference(logits, 1.0))

    def internal(self, logits: tf.Tensor) -> tf.Tensor:
        """logit^2, of dreams."""
        return tf.reduce_mean(tf.square(logits))
