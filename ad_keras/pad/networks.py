"""The three networks of the paper: encoder with discriminator head, and generator.

Architecture, initialisation and sizes follow Deperrois et al. (2022), eLife 11:e76384, Methods.
There are no normalisation layers. Convolutions between 4x4 and 1x1 maps are written as matrix
products: the same mathematics, and faster. Beside them stand residual networks of about as many
parameters.
"""

import math
from collections.abc import Iterator

import keras
import numpy as np

from ad_keras.compute.layers import Convolution, Projection, TransposedConvolution
from ad_keras.pad.parts import require

_KERNEL = 4  # side of every convolution kernel, and of the smallest feature map
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
    blocks, seeds = _blocks(image_size), _seeds(seed, 0)
    residual = _is_residual(network)
    images = keras.Input((image_size, image_size, channels), name="images")
    features = images
    for block in range(blocks):
        name, filters = f"trunk_{block}", base_filters * 2**block
        if residual:
            features = _halved(features, filters, seeds, dtype, name)
        else:
            initial = _initializers(seeds, _KERNEL**2 * features.shape[-1])
            features = _strided(Convolution, features, filters, initial, dtype, name)
        features = keras.layers.LeakyReLU(_SLOPE, dtype=dtype, name=f"{name}_relu")(features)
    if residual:
        features = _convolved(features, base_filters, 1, seeds, dtype, "narrow")
        features = keras.layers.LeakyReLU(_SLOPE, dtype=dtype, name="narrow_relu")(features)
    features = keras.layers.Flatten(dtype=dtype, name="features")(features)

    def head(units, name):
        outputs = keras.layers.Dense(
            units, dtype=dtype, name=f"{name}_head", **_initializers(seeds, features.shape[-1])
        )(features)
        return keras.layers.Activation("linear", dtype="float32", name=name)(outputs)

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

    Args:
        image_size: as in `build_encoder`.
        channels: as in `build_encoder`.
        latent_dim: as in `build_encoder`.
        base_filters: filters in front of the last transposed convolution.
        seed: of the initial weights.
        dtype: as in `build_encoder`.
        network: as in `build_encoder`.

    Returns:
        A functional model from `latent` [B, latent_dim] to images
        [B, image_size, image_size, channels] in [-1, 1].

    Raises:
        ValueError: if `image_size` or `network` is not possible.
    """
    blocks, seeds = _blocks(image_size), _seeds(seed, 1)
    residual = _is_residual(network)
    widths = [base_filters * 2**block for block in reversed(range(blocks))] + [channels]
    latent = keras.Input((latent_dim,), name="latent")
    # A transposed convolution of a 1x1 map is this product; its bias is one number a channel. The
    # uniform range of a transposed convolution's bias follows the kernel's output side, as in the
    # reference (PyTorch counts the fan of the transposed kernel).
    initial = (
        _scaled(seeds, latent_dim) if residual else _initializers(seeds, _KERNEL**2 * widths[0])
    )
    features = Projection(
        "bz,zhwc->bhwc",
        output_shape=(_KERNEL, _KERNEL, base_filters if residual else widths[0]),
        bias_axes="c",
        dtype=dtype,
        name="project",
        **initial,
    )(latent)
    if residual:
        features = keras.layers.LeakyReLU(_SLOPE, dtype=dtype, name="project_relu")(features)
        features = _convolved(features, widths[0], 1, seeds, dtype, "widen")
    for block, filters in enumerate(widths[1:]):
        features = keras.layers.LeakyReLU(_SLOPE, dtype=dtype, name=f"relu_{block}")(features)
        name = f"unfold_{block}"
        if residual:
            features = _doubled(features, filters, seeds, dtype, name)
        else:
            initial = _initializers(seeds, _KERNEL**2 * filters)
            features = _strided(TransposedConvolution, features, filters, initial, dtype, name)
    images = keras.layers.Activation("tanh", dtype="float32", name="images")(features)
    return keras.Model(latent, images, name="generator")


def _halved(
    features: keras.KerasTensor, filters: int, seeds: Iterator[int], dtype: str, name: str
) -> keras.KerasTensor:
    """A residual block from [B, H, W, C] to [B, H / 2, W / 2, filters]."""
    initial = _scaled(seeds, _KERNEL**2 * features.shape[-1])
    branch = _strided(Convolution, features, filters, initial, dtype, f"{name}_halve")
    branch = keras.layers.LeakyReLU(_SLOPE, dtype=dtype, name=f"{name}_halve_relu")(branch)
    branch = _convolved(branch, filters, 3, seeds, dtype, f"{name}_convolve")
    pooled = keras.layers.AveragePooling2D(2, dtype=dtype, name=f"{name}_pool")(features)
    shortcut = _convolved(pooled, filters, 1, seeds, dtype, f"{name}_shortcut")
    return keras.layers.Add(dtype=dtype, name=f"{name}_add")([shortcut, branch])


def _doubled(
    features: keras.KerasTensor, filters: int, seeds: Iterator[int], dtype: str, name: str
) -> keras.KerasTensor:
    """A residual block from [B, H, W, C] to [B, 2 H, 2 W, filters]."""
    width = features.shape[-1]
    branch = _convolved(features, width, 3, seeds, dtype, f"{name}_convolve")
    branch = keras.layers.LeakyReLU(_SLOPE, dtype=dtype, name=f"{name}_convolve_relu")(branch)
    initial = _scaled(seeds, 4 * width)  # a pixel depends on 2x2 of the features
    branch = _strided(TransposedConvolution, branch, filters, initial, dtype, f"{name}_double")
    shortcut = _convolved(features, filters, 1, seeds, dtype, f"{name}_shortcut")
    shortcut = keras.layers.UpSampling2D(2, dtype=dtype, name=f"{name}_repeat")(shortcut)
    return keras.layers.Add(dtype=dtype, name=f"{name}_add")([shortcut, branch])


def _strided(
    layer: type[keras.layers.Layer],
    features: keras.KerasTensor,
    filters: int,
    initializers: dict,
    dtype: str,
    name: str,
) -> keras.KerasTensor:
    shape = {"strides": 2, "padding": "same", "dtype": dtype, "name": name}
    return layer(filters, _KERNEL, **shape, **initializers)(features)


def _convolved(
    features: keras.KerasTensor,
    filters: int,
    kernel: int,
    seeds: Iterator[int],
    dtype: str,
    name: str,
) -> keras.KerasTensor:
    return keras.layers.Conv2D(
        filters,
        kernel,
        padding="same",
        dtype=dtype,
        name=name,
        **_scaled(seeds, kernel**2 * features.shape[-1]),
    )(features)


def _is_residual(network: str) -> bool:
    require(network in ("paper", "residual"), "network", repr(network), "'paper' or 'residual'")
    return network == "residual"


def _blocks(image_size: int) -> int:
    blocks = math.log2(image_size / _KERNEL) if image_size > 0 else 0.0
    if blocks < 1 or not blocks.is_integer():
        raise ValueError(
            f"image_size is {image_size}, but the networks need {_KERNEL} times a power of two, "
            "such as 32, 64 or 128."
        )
    return int(blocks)


def _seeds(seed: int, network: int) -> Iterator[int]:
    # Each initialiser needs its own seed: Keras repeats the numbers of equal ones.
    return iter(np.random.SeedSequence([seed, network]).generate_state(64).tolist())


def _initializers(seeds: Iterator[int], fan_in: int) -> dict:
    """N(0, 0.02) weights; biases uniform within +-1/sqrt(fan_in), PyTorch's default."""
    bound = 1.0 / math.sqrt(fan_in)
    return {
        "kernel_initializer": keras.initializers.RandomNormal(0.0, 0.02, seed=next(seeds)),
        "bias_initializer": keras.initializers.RandomUniform(-bound, bound, seed=next(seeds)),
    }


def _scaled(seeds: Iterator[int], fan_in: int) -> dict:
    """The same, but with weights that keep the variance of what they are applied to.

    At N(0, 0.02) a narrow shortcut would start as good as cut.
    """
    deviation = 1.0 / math.sqrt(fan_in)
    kernel = keras.initializers.RandomNormal(0.0, deviation, seed=next(seeds))
    return {**_initializers(seeds, fan_in), "kernel_initializer": kernel}
