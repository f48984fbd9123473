"""The three networks of the paper: encoder with discriminator head, and generator.

Architecture, initialisation and sizes follow Deperrois et al. (2022), eLife 11:e76384, Methods.
There are no normalisation layers. Convolutions between 4x4 and 1x1 maps are written as matrix
products: the same mathematics, and faster. Beside them stand residual networks of about as many
parameters.
"""

import math

import keras
import numpy as np

from ad_keras.compute.layers import Convolution, Projection, TransposedConvolution
from ad_keras.pad.parts import require

_KERNEL = 4  # side of every convolution kernel, and of the smallest feature map
_SEEDS = 1024  # of initial weights, more than any network has
_SLOPE = 0.2  # of the leaky rectifier for negative values


def build_encoder(
    image_size: int = 32,
    channels: int = 3,
    latent_dim: int = 256,
    base_filters: int = 64,
    seed: int = 0,
    dtype: str = "float32",
    network: str = "paper",
) -> keras.Model:
    """Encoder E with the discriminator's head d on a shared trunk.

    Args:
        image_size: side of the square images in pixels: 8 times a power of two. Each doubling
            above 32 adds a block.
        channels: of the images.
        latent_dim: size of the latent.
        base_filters: filters of the first convolution; each block doubles them.
        seed: of the initial weights.
        dtype: Keras dtype policy of the computation, e.g. "mixed_bfloat16". Inputs and outputs
            are float32 in any case.
        network: "paper", or "residual": each block adds a shortcut, a convolution of the pooled
            features, to two convolutions (as in He et al. 2015, arXiv 1512.03385, but without
            batch normalisation); a 1x1 convolution to `base_filters` comes before the heads.

    Returns:
        A functional model from `images` [B, image_size, image_size, channels] in [-1, 1] to a
        dictionary: `latent` [B, latent_dim] and `external_logit` [B], the evidence that the
        images are external (before the sigmoid). Layers of a block are named
        `trunk_<number>...`, by which the probe of the layers finds it; a network of your own may
        name its blocks so too.

    Raises:
        ValueError: if `image_size` or `network` is not possible.
    """
    blocks, residual = _blocks(image_size), _is_residual(network)
    layers = _Layers(seed, 0, dtype)
    images = keras.Input((image_size, image_size, channels), name="images")
    features = images
    for block in range(blocks):
        name, filters = f"trunk_{block}", base_filters * 2**block
        if residual:
            features = layers.halved(features, filters, name)
        else:
            initial = layers.initializers(_KERNEL**2 * features.shape[-1])
            features = layers.strided(Convolution, features, filters, initial, name)
        features = layers.rectified(features, f"{name}_relu")
    if residual:
        features = layers.convolved(features, base_filters, 1, "narrow")
        features = layers.rectified(features, "narrow_relu")
    features = keras.layers.Flatten(dtype=dtype, name="features")(features)

    def head(units, name):
        initial = layers.initializers(features.shape[-1])
        dense = keras.layers.Dense(units, dtype=dtype, name=f"{name}_head", **initial)
        return keras.layers.Activation("linear", dtype="float32", name=name)(dense(features))

    latent = head(latent_dim, "latent")
    logit = keras.layers.Reshape((), dtype="float32", name="external_logit")(head(1, "external"))
    return keras.Model(images, {"latent": latent, "external_logit": logit}, name="encoder")


def build_generator(
    image_size: int = 32,
    channels: int = 3,
    latent_dim: int = 256,
    base_filters: int = 64,
    seed: int = 0,
    dtype: str = "float32",
    network: str = "paper",
) -> keras.Model:
    """Generator G, the encoder's mirror image.

    Arguments and errors are those of `build_encoder`; `base_filters` are those in front of the last
    transposed convolution.

    Returns:
        A functional model from `latent` [B, latent_dim] to images
        [B, image_size, image_size, channels] in [-1, 1].
    """
    blocks, residual = _blocks(image_size), _is_residual(network)
    layers = _Layers(seed, 1, dtype)
    widths = [base_filters * 2**block for block in reversed(range(blocks))] + [channels]
    latent = keras.Input((latent_dim,), name="latent")
    # A transposed convolution of a 1x1 map is this product; its bias is one number a channel. The
    # uniform range of a transposed convolution's bias follows the kernel's output side, as in the
    # reference (PyTorch counts the fan of the transposed kernel).
    fan_in = _KERNEL**2 * widths[0]
    initial = layers.scaled(latent_dim) if residual else layers.initializers(fan_in)
    features = Projection(
        "bz,zhwc->bhwc",
        output_shape=(_KERNEL, _KERNEL, base_filters if residual else widths[0]),
        bias_axes="c",
        dtype=dtype,
        name="project",
        **initial,
    )(latent)
    if residual:
        features = layers.rectified(features, "project_relu")
        features = layers.convolved(features, widths[0], 1, "widen")
    for block, filters in enumerate(widths[1:]):
        features = layers.rectified(features, f"relu_{block}")
        name = f"unfold_{block}"
        if residual:
            features = layers.doubled(features, filters, name)
        else:
            initial = layers.initializers(_KERNEL**2 * filters)
            features = layers.strided(TransposedConvolution, features, filters, initial, name)
    images = keras.layers.Activation("tanh", dtype="float32", name="images")(features)
    return keras.Model(latent, images, name="generator")


class _Layers:
    """Adds layers of one dtype to feature maps, each with initial weights of its own."""

    def __init__(self, seed: int, network: int, dtype: str) -> None:
        self._dtype = dtype
        # Each initialiser needs its own seed: Keras repeats the numbers of equal ones.
        self._seeds = iter(np.random.SeedSequence([seed, network]).generate_state(_SEEDS).tolist())

    def rectified(self, features, name: str):
        return keras.layers.LeakyReLU(_SLOPE, dtype=self._dtype, name=name)(features)

    def convolved(self, features, filters: int, kernel: int, name: str):
        initial = self.scaled(kernel**2 * features.shape[-1])
        shape = {"padding": "same", "dtype": self._dtype, "name": name}
        return keras.layers.Conv2D(filters, kernel, **shape, **initial)(features)

    def strided(self, layer: type, features, filters: int, initializers: dict, name: str):
        shape = {"strides": 2, "padding": "same", "dtype": self._dtype, "name": name}
        return layer(filters, _KERNEL, **shape, **initializers)(features)

    def halved(self, features, filters: int, name: str):
        """A residual block from [B, H, W, C] to [B, H / 2, W / 2, filters]."""
        initial = self.scaled(_KERNEL**2 * features.shape[-1])
        branch = self.strided(Convolution, features, filters, initial, f"{name}_halve")
        branch = self.rectified(branch, f"{name}_halve_relu")
        branch = self.convolved(branch, filters, 3, f"{name}_convolve")
        pooled = keras.layers.AveragePooling2D(2, dtype=self._dtype, name=f"{name}_pool")(features)
        shortcut = self.convolved(pooled, filters, 1, f"{name}_shortcut")
        return keras.layers.Add(dtype=self._dtype, name=f"{name}_add")([shortcut, branch])

    def doubled(self, features, filters: int, name: str):
        """A residual block from [B, H, W, C] to [B, 2 H, 2 W, filters]."""
        width = features.shape[-1]
        branch = self.convolved(features, width, 3, f"{name}_convolve")
        branch = self.rectified(branch, f"{name}_convolve_relu")
        initial = self.scaled(4 * width)  # a pixel depends on 2x2 of the features
        branch = self.strided(TransposedConvolution, branch, filters, initial, f"{name}_double")
        shortcut = self.convolved(features, filters, 1, f"{name}_shortcut")
        repeat = keras.layers.UpSampling2D(2, dtype=self._dtype, name=f"{name}_repeat")
        return keras.layers.Add(dtype=self._dtype, name=f"{name}_add")([repeat(shortcut), branch])

    def initializers(self, fan_in: int) -> dict:
        """N(0, 0.02) weights; biases uniform within +-1/sqrt(fan_in), PyTorch's default."""
        bound = 1.0 / math.sqrt(fan_in)
        return {
            "kernel_initializer": keras.initializers.RandomNormal(0.0, 0.02, next(self._seeds)),
            "bias_initializer": keras.initializers.RandomUniform(-bound, bound, next(self._seeds)),
        }

    def scaled(self, fan_in: int) -> dict:
        """The same, but with weights that keep the variance of what they are applied to.

        At N(0, 0.02) a narrow shortcut would start as good as cut.
        """
        deviation = 1.0 / math.sqrt(fan_in)
        kernel = keras.initializers.RandomNormal(0.0, deviation, next(self._seeds))
        return {**self.initializers(fan_in), "kernel_initializer": kernel}


def _is_residual(network: str) -> bool:
    require(network in ("paper", "residual"), "network", repr(network), "'paper' or 'residual'")
    return network == "residual"


def _blocks(image_size: int) -> int:
    blocks = math.log2(image_size / _KERNEL) if image_size > 0 else 0.0
    if blocks < 1 or not blocks.is_integer():
        raise ValueError(
            f"image_size is {image_size}, but the networks need {2 * _KERNEL} times a power of "
            "two, such as 32, 64 or 128."
        )
    return int(blocks)
