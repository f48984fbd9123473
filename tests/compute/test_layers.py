"""Tests of the layers: the same as Keras's own, in values, gradients and saved files."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras.layers import Conv2D, Conv2DTranspose, EinsumDense

from ad_keras.compute.layers import Convolution, Projection, TransposedConvolution, builtin

PROJECTION = {"equation": "bz,zhwc->bhwc", "output_shape": (4, 4, 10), "bias_axes": "c"}
LAYERS = {
    "to small maps": (Convolution, Conv2D, (8, 8, 6), {"filters": 10}),
    "to large maps": (Convolution, Conv2D, (16, 12, 6), {"filters": 10}),
    "from images": (Convolution, Conv2D, (32, 32, 3), {"filters": 8}),
    "from small maps": (TransposedConvolution, Conv2DTranspose, (4, 4, 6), {"filters": 10}),
    "from large maps": (TransposedConvolution, Conv2DTranspose, (8, 12, 6), {"filters": 10}),
    "to images": (TransposedConvolution, Conv2DTranspose, (8, 16, 6), {"filters": 3}),
    "from latents": (Projection, EinsumDense, (7,), PROJECTION),
}


@pytest.fixture(params=LAYERS.values(), ids=LAYERS.keys())
def pair(request):
    """Makes one of our layers and Keras's with the same random weights, and an input."""

    def make(dtype: str, batch: int = 5):
        ours, keras_layer, shape, settings = request.param
        if "filters" in settings:
            settings = {"kernel_size": 4, "strides": 2, "padding": "same", **settings}
        rng = np.random.default_rng(0)
        inputs = rng.normal(size=(batch, *shape))
        layers = [kind(**settings, dtype=dtype) for kind in (ours, keras_layer)]
        layers[0].build((None, *shape))
        layers[1].build((None, *shape))
        weights = [rng.normal(size=variable.shape) for variable in layers[0].variables]
        for layer in layers:
            layer.set_weights(weights)
        return *layers, inputs

    return make


def values_and_gradients(layer, inputs: np.ndarray, dtype) -> list[np.ndarray]:
    inputs = tf.constant(inputs, dtype)
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        outputs = layer(inputs)
    upstream = tf.constant(np.random.default_rng(1).normal(0.1, size=outputs.shape), dtype)
    gradients = tape.gradient(
        outputs, [inputs, *layer.trainable_variables], output_gradients=upstream
    )
    return [np.asarray(tf.cast(value, tf.float64)) for value in (outputs, *gradients)]


def test_values_and_gradients_are_those_of_keras(pair):
    ours, keras_layer, inputs = pair("float64")
    expected = values_and_gradients(keras_layer, inputs, tf.float64)
    for mine, theirs in zip(values_and_gradients(ours, inputs, tf.float64), expected, strict=True):
        assert mine.shape == theirs.shape
        np.testing.assert_allclose(mine, theirs, rtol=1e-11, atol=1e-11)


def test_values_and_gradients_in_bfloat16_are_the_exact_ones_but_for_rounding(pair):
    ours, _, inputs = pair("mixed_bfloat16", batch=64)
    _, exact, _ = pair("float64", batch=64)
    expected = values_and_gradients(exact, inputs, tf.float64)
    found = values_and_gradients(ours, inputs, tf.bfloat16)
    for mine, theirs in zip(found, expected, strict=True):
        assert np.abs(mine - theirs).max() < 0.02 * np.abs(theirs).max()


def test_any_batch_size_in_a_graph_and_in_the_builtin_layer(pair):
    ours, _, inputs = pair("float32")
    graph = tf.function(
        ours, input_signature=[tf.TensorSpec((None, *inputs.shape[1:]), tf.float32)]
    )
    kind = builtin(ours)
    assert kind.__module__.startswith("keras.")
    copy = kind.from_config(ours.get_config())
    copy.build((None, *inputs.shape[1:]))
    copy.set_weights(ours.get_weights())
    for count in (1, 3):
        few = tf.constant(inputs[:count], tf.float32)
        np.testing.assert_allclose(graph(few), copy(few), rtol=1e-4, atol=1e-4)


def test_other_layers_are_their_own_builtin():
    assert builtin(keras.layers.Dense(3)) is keras.layers.Dense


@pytest.mark.parametrize(
    "settings",
    [
        *({"strides": 1}, {"activation": "relu"}, {"padding": "valid"}, {"use_bias": False}),
        *({"kernel_size": 3}, {"size": (7, 9)}),
    ],
)
@pytest.mark.parametrize("ours", [Convolution, TransposedConvolution])
def test_other_settings_and_sizes_compute_what_keras_does(ours, settings):
    settings = {"filters": 5, "kernel_size": 4, "strides": 2, "padding": "same", **settings}
    size = settings.pop("size", (8, 8))
    images = tf.constant(np.random.default_rng(0).normal(size=(2, *size, 3)), tf.float32)
    layer = ours(**settings)
    found = layer(images)
    plain = builtin(layer)(**settings)
    plain(images)
    plain.set_weights(layer.get_weights())
    np.testing.assert_allclose(found, plain(images), rtol=1e-5, atol=1e-6)
