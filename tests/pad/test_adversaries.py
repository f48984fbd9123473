"""Tests of the discriminator's losses against plain NumPy in double precision."""

import numpy as np
import pytest
import tensorflow as tf

from ad_keras import Hinge, LeastSquares, Minimax, NonSaturating

LOGITS = np.random.default_rng(0).normal(scale=2, size=11)


def float32(array):
    return tf.constant(array, tf.float32)


def test_discriminator_losses_stay_finite_for_certain_and_wrong_answers():
    # log(sigmoid(-200)) would be -inf in float32.
    certain = tf.constant([200.0])
    np.testing.assert_allclose(Minimax().external(-certain), 200)
    np.testing.assert_allclose(Minimax().internal(certain), 200)


def log_sigmoid(x):
    return -np.log1p(np.exp(-x))


@pytest.mark.parametrize(
    ("adversary", "external", "internal", "fooling"),
    [
        (Minimax(), -log_sigmoid(LOGITS), -log_sigmoid(-LOGITS), None),
        (NonSaturating(), -log_sigmoid(LOGITS), -log_sigmoid(-LOGITS), -log_sigmoid(LOGITS)),
        (Hinge(), np.maximum(0, 1 - LOGITS), np.maximum(0, 1 + LOGITS), -LOGITS),
        (LeastSquares(), (LOGITS - 1) ** 2, LOGITS**2, (LOGITS - 1) ** 2),
    ],
)
def test_adversaries_are_their_formulas(adversary, external, internal, fooling):
    logits = float32(LOGITS)
    np.testing.assert_allclose(adversary.external(logits), external.mean(), rtol=1e-5)
    np.testing.assert_allclose(adversary.internal(logits), internal.mean(), rtol=1e-5)
    if fooling is None:  # the generator ascends the internal loss
        assert adversary.fooling(logits) is None
    else:
        np.testing.assert_allclose(adversary.fooling(logits), fooling.mean(), rtol=1e-5)
