"""The networks' layers: Keras's own, computed in forms that are faster on a CPU.

Each has the variables, the configuration and the mathematics (to rounding) of the built-in layer
that it derives from. It is that layer on other devices, and with settings other than those of the
paper's networks. TensorFlow's CPU kernels leave four gaps:

- the filter gradient of a convolution in bfloat16 is several times slower than the matrix product
  that it is;
- a transposed convolution to the three channels of an image is slower than a convolution whose
  channels are then spread over the pixels;
- the bias gradient in bfloat16 is summed in bfloat16, which loses most of its digits;
- `EinsumDense` does not become the plain matrix product that it could be.
"""

import keras
import numpy as np
import tensorflow as tf

_KERNEL = 4  # side of the kernels that these forms are made for, with stride 2
_SMALL = 8  # side of the maps up to which a matrix product is the faster convolution
_FEW = 4  # channels up to which a transposed convolution is computed as pixels' channels

# A pixel of a doubled image depends on two rows (and columns) of features. By the parity of the
# pixel: which row of the kernel meets the feature before, at and behind it; row 4 is empty.
_TAPS = np.array([[3, 1, 4], [4, 2, 0]], np.int32)


@keras.saving.register_keras_serializable("ad_keras")
class Convolution(keras.layers.Conv2D):
    """`keras.layers.Conv2D`, faster with 4x4 kernels, stride 2 and "same" padding."""

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Halves [B, H, W, C] to [B, H / 2, W / 2, filters], with the settings it is made for."""
        even = all(size is not None and size % 2 == 0 for size in inputs.shape[1:3])
        if _on_cpu() and _is_plain(self) and self.groups == 1 and even:
            return _convolution(inputs, *_values(self))
        return super().call(inputs)


@keras.saving.register_keras_serializable("ad_keras")
class TransposedConvolution(keras.layers.Conv2DTranspose):
    """`keras.layers.Conv2DTranspose`, faster with 4x4 kernels, stride 2 and "same" padding."""

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Doubles [B, H, W, C] to [B, 2 H, 2 W, filters], with the settings it is made for."""
        known = None not in inputs.shape[1:3] and self.output_padding is None
        if _on_cpu() and _is_plain(self) and known:
            return _transposed_convolution(inputs, *_values(self))
        return super().call(inputs)


@keras.saving.register_keras_serializable("ad_keras")
class Projection(keras.layers.EinsumDense):
    """`keras.layers.EinsumDense` from latents to feature maps, with one bias a channel."""

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Projects [B, latent_dim] to [B, H, W, C], with a kernel [latent_dim, H, W, C]."""
        settings = (self.equation, self.bias_axes, self.activation)
        if _on_cpu() and settings == ("bz,zhwc->bhwc", "c", keras.activations.linear):
            return _projection(inputs, *_values(self))
        return super().call(inputs)


def builtin(layer: keras.layers.Layer) -> type[keras.layers.Layer]:
    """The class of Keras's own with a layer's configuration, variables and mathematics."""
    ours = isinstance(layer, (Convolution, TransposedConvolution, Projection))
    return type(layer).__base__ if ours else type(layer)


def _on_cpu() -> bool:
    return all(device.device_type == "CPU" for device in tf.config.list_logical_devices())


def _is_plain(layer: keras.layers.Conv2D | keras.layers.Conv2DTranspose) -> bool:
    settings = (layer.kernel_size, layer.strides, layer.dilation_rate, layer.padding)
    return (
        settings == ((_KERNEL, _KERNEL), (2, 2), (1, 1), "same")
        and layer.use_bias
        and layer.activation is keras.activations.linear
        and layer.data_format == "channels_last"
    )


def _values(layer: keras.layers.Layer) -> tuple[tf.Tensor, tf.Tensor]:
    return tf.convert_to_tensor(layer.kernel), tf.convert_to_tensor(layer.bias)


@tf.custom_gradient
def _convolution(images: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor):
    patches = _patches(images) if images.shape[1] <= _SMALL else None

    def gradients(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        return (
            _spread(upstream, kernel),
            _kernel_gradient(images, upstream, patches),
            _bias_gradient(upstream),
        )

    return tf.nn.bias_add(_gather(images, kernel, patches), bias), gradients


@tf.custom_gradient
def _transposed_convolution(features: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor):
    def gradients(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        patches = _patches(upstream) if upstream.shape[1] <= _SMALL else None
        return (
            _gather(upstream, kernel, patches),
            _kernel_gradient(upstream, features, patches),
            _bias_gradient(upstream),
        )

    return tf.nn.bias_add(_spread(features, kernel), bias), gradients


@tf.custom_gradient
def _projection(latents: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor):
    latent_dim, *shape = kernel.shape
    matrix = tf.reshape(kernel, [latent_dim, -1])

    def gradients(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        rows = tf.reshape(upstream, [-1, matrix.shape[1]])
        return (
            tf.matmul(rows, matrix, transpose_b=True),
            tf.reshape(tf.matmul(latents, rows, transpose_a=True), kernel.shape),
            _bias_gradient(upstream),
        )

    products = tf.reshape(tf.matmul(latents, matrix), [-1, *shape])
    return tf.nn.bias_add(products, bias), gradients


def _gather(images: tf.Tensor, kernel: tf.Tensor, patches: tf.Tensor | None) -> tf.Tensor:
    """The convolution: [B, H, W, C] and [4, 4, C, F] -> [B, H / 2, W / 2, F]."""
    if patches is None:
        return tf.nn.conv2d(images, kernel, 2, "SAME")
    _, height, width, _ = images.shape
    filters = kernel.shape[-1]
    products = tf.matmul(patches, tf.reshape(kernel, [-1, filters]))
    return tf.reshape(products, [-1, height // 2, width // 2, filters])


def _spread(features: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    """The transposed convolution: [B, H, W, F] and [4, 4, C, F] -> [B, 2 H, 2 W, C]."""
    _, height, width, filters = features.shape
    channels = kernel.shape[2]
    if channels <= _FEW:
        padded = tf.pad(kernel, [[0, 1], [0, 1], [0, 0], [0, 0]])
        taps = tf.gather(tf.gather(padded, _TAPS, axis=0), _TAPS, axis=2)  # [2, 3, 2, 3, C, F]
        taps = tf.reshape(tf.transpose(taps, [1, 3, 5, 0, 2, 4]), [3, 3, filters, 4 * channels])
        return tf.nn.depth_to_space(tf.nn.conv2d(features, taps, 1, "SAME"), 2)
    shape = [tf.shape(features)[0], 2 * height, 2 * width, channels]
    return tf.ensure_shape(
        tf.nn.conv2d_transpose(features, kernel, shape, 2, "SAME"), [None, *shape[1:]]
    )


def _kernel_gradient(
    images: tf.Tensor, features: tf.Tensor, patches: tf.Tensor | None
) -> tf.Tensor:
    """Of a kernel [4, 4, C, F] between images [B, H, W, C] and features [B, H / 2, W / 2, F]."""
    shape = [_KERNEL, _KERNEL, images.shape[-1], features.shape[-1]]
    if patches is None and features.dtype != tf.bfloat16:
        return tf.raw_ops.Conv2DBackpropFilter(
            input=images,
            filter_sizes=shape,
            out_backprop=features,
            strides=[1, 2, 2, 1],
            padding="SAME",
        )
    if patches is None:
        patches = _patches(images)
    rows = tf.reshape(features, [-1, shape[-1]])
    return tf.reshape(tf.matmul(patches, rows, transpose_a=True), shape)


def _patches(images: tf.Tensor) -> tf.Tensor:
    """What the kernel sees at each of its positions: [B, H, W, C] -> [B H/2 W/2, 16 C]."""
    _, height, width, channels = images.shape
    padded = tf.pad(images, [[0, 0], [1, 1], [1, 1], [0, 0]])
    # Two neighbouring pixels lie together in memory, so they are copied as one piece.
    pairs = tf.reshape(padded, [-1, 2 * channels])
    pairs_a_row = width // 2 + 1
    rows = 2 * np.arange(height // 2)[:, None] + np.arange(_KERNEL)  # [H / 2, 4]
    columns = np.arange(width // 2)[:, None] + np.arange(2)  # [W / 2, 2]
    places = rows[:, None, :, None] * pairs_a_row + columns[None, :, None, :]
    starts = tf.range(tf.shape(images)[0]) * ((height + 2) * pairs_a_row)
    places = starts[:, None] + places.reshape(-1).astype(np.int32)
    return tf.reshape(tf.gather(pairs, tf.reshape(places, [-1])), [-1, _KERNEL**2 * channels])


def _bias_gradient(upstream: tf.Tensor) -> tf.Tensor:
    if upstream.dtype == tf.bfloat16:
        return tf.reduce_sum(upstream, axis=[0, 1, 2])  # adds up in float32
    return tf.raw_ops.BiasAddGrad(out_backprop=upstream)
