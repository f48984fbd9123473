"""Tests of the networks against the paper's layers in plain NumPy."""

import itertools

import keras
import numpy as np
import pytest
import scipy.stats

from ad_keras import PAD, export_networks, load_encoder
from ad_keras.data import ImageSet
from ad_keras.evaluation.suite import Suite
from ad_keras.pad.networks import build_encoder, build_generator

BUILDERS = (build_encoder, build_generator)


def convolve(maps, kernel, bias, stride, padding):
    """PyTorch's Conv2d: [B, H, W, in] with kernel [k, k, in, out]."""
    side = len(kernel)
    maps = np.pad(maps, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    size = (maps.shape[1] - side) // stride + 1
    result = np.tile(bias, (len(maps), size, size, 1)).astype(float)
    for row, column in itertools.product(range(size), repeat=2):
        top, left = row * stride, column * stride
        patch = maps[:, top : top + side, left : left + side]
        result[:, row, column] += np.einsum("bijc,ijcd->bd", patch, kernel)
    return result


def convolve_transposed(maps, kernel, bias, stride, padding):
    """PyTorch's ConvTranspose2d: [B, H, W, in] with kernel [k, k, out, in]."""
    side, size = len(kernel), maps.shape[1]
    full = (size - 1) * stride + side
    result = np.zeros((len(maps), full, full, kernel.shape[2]))
    for row, column in itertools.product(range(size), repeat=2):
        top, left = row * stride, column * stride
        result[:, top : top + side, left : left + side] += np.einsum(
            "bc,ijdc->bijd", maps[:, row, column], kernel
        )
    return result[:, padding : full - padding, padding : full - padding] + bias


def leaky(values):
    return np.where(values > 0, values, 0.2 * values)


def plain_encoder(images, weights, blocks):
    """The paper's E and d: latents and d's logits."""
    features = images
    for block in range(blocks):
        features = leaky(convolve(features, *weights[f"trunk_{block}"], stride=2, padding=1))
    outputs = []
    for head in ("latent_head", "external_head"):
        kernel, bias = weights[head]
        kernel = kernel.reshape(4, 4, features.shape[-1], -1)
        outputs.append(convolve(features, kernel, bias, stride=1, padding=0)[:, 0, 0])
    return outputs[0], outputs[1][:, 0]


def plain_generator(latents, weights, blocks):
    """The paper's G."""
    kernel, bias = weights["project"]  # [in, 4, 4, out]
    kernel = np.moveaxis(kernel, 0, -1)
    features = convolve_transposed(latents[:, None, None], kernel, bias, stride=1, padding=0)
    for block in range(blocks):
        kernel, bias = weights[f"unfold_{block}"]
        features = convolve_transposed(leaky(features), kernel, bias, stride=2, padding=1)
    return np.tanh(features)


def lively(network, seed=0):
    """Replaces the weights by larger ones, so that no layer's part in the output is negligible."""
    rng = np.random.default_rng(seed)
    for layer in network.layers:
        if layer.weights:
            kernel, bias = layer.get_weights()
            fan = bias.size if layer.name == "project" else kernel.size / bias.size
            layer.set_weights(
                [rng.normal(0, 1.5 / np.sqrt(fan), kernel.shape), rng.normal(0, 0.3, bias.shape)]
            )
    return network


def weights_of(network):
    """float64 kernels and biases by layer."""
    return {
        layer.name: [weight.astype(float) for weight in layer.get_weights()]
        for layer in network.layers
        if layer.weights
    }


@pytest.mark.parametrize(("image_size", "blocks"), [(32, 3), (64, 4)])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_networks_are_the_papers_convolutions(image_size, blocks, channels):
    encoder, generator = (lively(build(image_size, channels, 7, 4)) for build in BUILDERS)
    images = np.random.default_rng(1).uniform(-1, 1, (3, image_size, image_size, channels))
    outputs = encoder(images.astype(np.float32))
    latents, logits = plain_encoder(images, weights_of(encoder), blocks)
    assert latents.std() > 0.05
    np.testing.assert_allclose(outputs["latent"], latents, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(outputs["external_logit"], logits, rtol=1e-4, atol=1e-4)
    latents = np.random.default_rng(1).normal(size=(3, 7))
    dreams = plain_generator(latents, weights_of(generator), blocks)
    assert 0.1 < dreams.std() < 0.95
    np.testing.assert_allclose(generator(latents.astype(np.float32)), dreams, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("image_size", "blocks"), [(32, 3), (64, 4), (128, 5)])
def test_each_doubling_of_the_image_adds_a_block_of_doubled_filters(image_size, blocks):
    arguments = {"image_size": image_size, "latent_dim": 6, "base_filters": 2}
    networks = [build(**arguments) for build in BUILDERS]
    assert [network.inputs[0].name for network in networks] == ["images", "latent"]
    outputs = {name: tuple(output.shape) for name, output in networks[0].output.items()}
    assert outputs == {"latent": (None, 6), "external_logit": (None,)}
    assert networks[1].output.shape == networks[0].input.shape == (None, image_size, image_size, 3)
    encoder, generator = map(weights_of, networks)
    trunk = [encoder[name][1].size for name in sorted(encoder) if name.startswith("trunk")]
    assert trunk == [2 * 2**block for block in range(blocks)]
    unfold = [generator[name][1].size for name in sorted(generator) if name.startswith("unfold")]
    assert unfold == [*reversed(trunk[:-1]), 3]
    assert generator["project"][0].shape == (6, 4, 4, trunk[-1])


def test_the_default_networks_have_the_papers_number_of_parameters():
    assert build_encoder().count_params() == 1_711_809
    assert build_generator().count_params() == 1_707_459


def test_initial_weights_are_normal_with_standard_deviation_002():
    for network in (build_encoder(), build_generator()):
        for name, (kernel, _) in weights_of(network).items():
            assert abs(kernel.mean()) < 4.5 * 0.02 / np.sqrt(kernel.size), name
            assert abs(kernel.std() / 0.02 - 1) < 4.5 / np.sqrt(2 * kernel.size), name
            sample = kernel.ravel()[:: max(1, kernel.size // 5000)]
            assert scipy.stats.kstest(sample, "norm", args=(0, 0.02)).pvalue > 1e-4, name


def test_initial_biases_are_uniform_as_pytorch_has_them():
    # PyTorch counts the fan on a convolution's [out, in, 4, 4] and a transposed one's
    # [in, out, 4, 4], in both cases as the second axis times the kernel's 16 pixels.
    axes = {"trunk_0": 3, "trunk_1": 64, "trunk_2": 128, "latent_head": 256, "external_head": 256}
    axes |= {"project": 256, "unfold_0": 128, "unfold_1": 64, "unfold_2": 3}
    weights = weights_of(build_encoder()) | weights_of(build_generator())
    assert weights.keys() == axes.keys()
    for name, (_, bias) in weights.items():
        bound = 1 / np.sqrt(16 * axes[name])
        assert np.abs(bias).max() <= bound * (1 + 1e-6), name
        assert scipy.stats.kstest(bias, "uniform", args=(-bound, 2 * bound)).pvalue > 1e-4, name
        assert bias.size < 64 or np.abs(bias).max() > 0.9 * bound, name


def test_the_few_biases_of_the_last_layers_fill_their_range():
    seeds = range(15)
    arguments = {"image_size": 8, "latent_dim": 2, "base_filters": 2}
    images = [weights_of(build_generator(**arguments, seed=s))["unfold_0"][1] for s in seeds]
    external = [weights_of(build_encoder(**arguments, seed=s))["external_head"][1] for s in seeds]
    for biases, fan in ((images, 3 * 16), (external, 2 * 16)):
        biases = np.concatenate(biases) * np.sqrt(fan)
        assert 0.8 < np.abs(biases).max() <= 1 + 1e-6
        assert scipy.stats.kstest(biases, "uniform", args=(-1, 2)).pvalue > 0.001


@pytest.mark.parametrize("build", BUILDERS)
def test_weights_are_a_function_of_the_seed(build):
    first, again, other = (build(latent_dim=6, base_filters=2, seed=s) for s in (3, 3, 4))
    for one, two, three in zip(*(n.get_weights() for n in (first, again, other)), strict=True):
        np.testing.assert_array_equal(one, two)
        assert (one != three).all()


def test_no_two_layers_start_from_the_same_numbers():
    draws = {}
    for network in (build(latent_dim=6, base_filters=4) for build in BUILDERS):
        for name, (kernel, bias) in weights_of(network).items():
            draws[network.name, name, "kernel"] = kernel.ravel() / 0.02
            draws[network.name, name, "bias"] = bias / np.abs(bias).max()
    for one, two in itertools.combinations(draws, 2):
        if one[2] == two[2]:
            count = min(draws[one].size, draws[two].size, 1000)
            if count > 1:
                assert not np.allclose(draws[one][:count], draws[two][:count], rtol=1e-3), one
            if count > 20:
                correlation = np.corrcoef(draws[one][:count], draws[two][:count])[0, 1]
                assert abs(correlation) < 5 / np.sqrt(count), (one, two)


@pytest.mark.parametrize("build", BUILDERS)
@pytest.mark.parametrize("image_size", [0, 4, 28, 33, 48])
def test_an_impossible_image_size_raises_and_names_possible_ones(build, image_size):
    with pytest.raises(ValueError, match=f"image_size is {image_size}.*32, 64 or 128"):
        build(image_size=image_size)


@pytest.mark.parametrize("build", BUILDERS)
def test_large_residual_networks_are_built(build):
    network = build(512, 1, latent_dim=2, base_filters=1, network="residual")
    shapes = {network.inputs[0].shape, *(output.shape for output in network.outputs)}
    assert (None, 512, 512, 1) in shapes


def test_mixed_precision_gives_float32_near_that_of_float32():
    arguments = {"latent_dim": 16, "base_filters": 8}
    for build in BUILDERS:
        full, mixed = build(**arguments), build(**arguments, dtype="mixed_bfloat16")
        lively(full)
        mixed.set_weights(full.get_weights())
        assert {w.dtype for w in mixed.weights} == {"float32"}
        assert any(layer.compute_dtype == "bfloat16" for layer in mixed.layers)
        rng = np.random.default_rng(0)
        inputs = rng.uniform(-1, 1, (4, *full.inputs[0].shape[1:])).astype(np.float32)
        expected, actual = (keras.tree.flatten(n(inputs)) for n in (full, mixed))
        for one, two in zip(expected, actual, strict=True):
            assert two.dtype == "float32"
            assert mixed.inputs[0].dtype == "float32"
            np.testing.assert_allclose(two, one, atol=0.03 * np.abs(one).max())
            assert (two.numpy() != one.numpy()).any()


# The residual networks.

RESIDUAL = {"latent_dim": 5, "base_filters": 3, "network": "residual"}
HEADS = ("latent", "external")


def residual_encoder(images, weights):
    features = images
    for block in range(3):
        branch = leaky(convolve(features, *weights[f"trunk_{block}_halve"], stride=2, padding=1))
        branch = convolve(branch, *weights[f"trunk_{block}_convolve"], stride=1, padding=1)
        pooled = sum(features[:, i::2, j::2] for i in (0, 1) for j in (0, 1)) / 4
        shortcut = convolve(pooled, *weights[f"trunk_{block}_shortcut"], stride=1, padding=0)
        features = leaky(shortcut + branch)
    features = leaky(convolve(features, *weights["narrow"], stride=1, padding=0))
    flat = features.reshape(len(features), -1)
    latents, logits = (flat @ weights[f"{n}_head"][0] + weights[f"{n}_head"][1] for n in HEADS)
    return latents, logits[:, 0]


def residual_generator(latents, weights):
    kernel, bias = weights["project"]
    features = leaky(np.einsum("bz,zhwc->bhwc", latents, kernel) + bias)
    features = convolve(features, *weights["widen"], stride=1, padding=0)
    for block in range(3):
        features = leaky(features)
        shortcut = convolve(features, *weights[f"unfold_{block}_shortcut"], stride=1, padding=0)
        shortcut = shortcut.repeat(2, axis=1).repeat(2, axis=2)
        branch = convolve(features, *weights[f"unfold_{block}_convolve"], stride=1, padding=1)
        branch = leaky(branch)
        kernel, bias = weights[f"unfold_{block}_double"]
        features = shortcut + convolve_transposed(branch, kernel, bias, stride=2, padding=1)
    return np.tanh(features)


def test_the_residual_networks_are_plain_residual_blocks():
    encoder, generator = (build(**RESIDUAL, seed=1) for build in BUILDERS)
    rng = np.random.default_rng(1)
    for network in (encoder, generator):
        for bias in (weight for weight in network.weights if weight.path.endswith("bias")):
            bias.assign(rng.normal(0, 0.3, bias.shape))
    images, latents = rng.uniform(-1, 1, (2, 32, 32, 3)), rng.normal(size=(2, 5))
    outputs = encoder(images.astype(np.float32))
    expected = residual_encoder(images, weights_of(encoder))
    for name, values in zip(("latent", "external_logit"), expected, strict=True):
        assert values.shape == outputs[name].shape
        np.testing.assert_allclose(outputs[name], values, rtol=1e-4, atol=1e-5)
    dreams = residual_generator(latents, weights_of(generator))
    np.testing.assert_allclose(generator(latents.astype(np.float32)), dreams, rtol=1e-4, atol=1e-5)


def test_the_residual_networks_have_about_the_papers_size_and_begin_in_its_range():
    rng = np.random.default_rng(0)
    for build, paper in ((build_encoder, 1_711_809), (build_generator, 1_707_459)):
        network = build(network="residual")
        assert 0.85 * paper < network.count_params() < 1.15 * paper
        inputs = rng.normal(size=(8, *network.inputs[0].shape[1:])).clip(-1, 1).astype(np.float32)
        first = keras.tree.flatten(network(inputs))[-1].numpy()
        assert 0.02 < first.std() < 0.6, network.name  # neither silent nor saturated


def test_residual_networks_are_exported_as_builtin_layers_and_probed_by_blocks(tmp_path):
    model = PAD(*(build(**RESIDUAL, image_size=8) for build in BUILDERS))
    export_networks(model, tmp_path / "export")
    loaded = load_encoder(tmp_path / "export")
    assert {type(layer).__module__.split(".")[0] for layer in loaded.layers} == {"keras"}
    images = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), np.uint8)
    latents = loaded(images)["latent"]
    expected = model.encoder(images / np.float32(127.5) - 1)["latent"]
    np.testing.assert_allclose(latents, expected, rtol=1e-4, atol=1e-6)
    part = ImageSet(images, np.arange(6) % 2, ("one", "two"))
    found = Suite(model, part, part, tmp_path).measure(["layers"])["layers"]
    assert found["protocol"]["features"] == {"trunk_0": 4 * 4 * 3, "latent": 5}


@pytest.mark.parametrize("build", BUILDERS)
def test_an_unknown_network_raises_and_names_the_known_ones(build):
    with pytest.raises(ValueError, match="network is 'deep', but must be 'paper' or 'residual'"):
        build(network="deep")
