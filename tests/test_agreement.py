"""`benchmarks/agreement.py`, and with it the whole core, against PAD written plainly in float64."""

import functools
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

FILTERS, LATENT, BATCH, STEPS = 3, 5, 6, 30
SIZES = {"base_filters": FILTERS, "latent_dim": LATENT, "batch_size": BATCH}
ADAM = {"rate": 2e-4, "beta_1": 0.5, "beta_2": 0.999, "epsilon": 1e-8}


@pytest.fixture
def agreement(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    import agreement

    yield agreement
    del sys.modules["agreement"]


@pytest.fixture
def eagerly(monkeypatch):
    """Tracing takes longer than three steps."""
    monkeypatch.setattr(tf, "function", lambda step, **_: step)


class Network:
    """Weights in PyTorch's layouts, each with an Adam of its own."""

    def __init__(self, shapes, rng):
        self.weights, self.state = {}, {}
        for name, shape in shapes.items():
            bias = shape[1] if name[0] == "t" else shape[0]
            for kind, value in (
                ("weight", rng.normal(0, 0.1, shape)),
                ("bias", rng.uniform(-0.1, 0.1, bias)),
            ):
                rounded = value.astype(np.float32).astype(np.float64)
                self.weights[f"{name}.{kind}"] = tf.Variable(rounded)
                self.state[f"{name}.{kind}"] = [0.0, 0.0, 0]

    def step(self, gradients, sign=1.0):
        for (name, weight), gradient in zip(self.weights.items(), gradients, strict=True):
            if gradient is None:
                continue
            gradient = sign * gradient.numpy()
            first, second, steps = self.state[name]
            first = ADAM["beta_1"] * first + (1 - ADAM["beta_1"]) * gradient
            second = ADAM["beta_2"] * second + (1 - ADAM["beta_2"]) * gradient**2
            steps += 1
            self.state[name] = [first, second, steps]
            deviation = np.sqrt(second / (1 - ADAM["beta_2"] ** steps)) + ADAM["epsilon"]
            weight.assign_sub(ADAM["rate"] * first / (1 - ADAM["beta_1"] ** steps) / deviation)

    def variables(self):
        return list(self.weights.values())


def convolve(maps, weight, bias, stride, pad):
    padded = tf.pad(maps, [[0, 0], [pad, pad], [pad, pad], [0, 0]])
    return tf.nn.conv2d(padded, tf.transpose(weight, [2, 3, 1, 0]), stride, "VALID") + bias


def spread(maps, weight, bias, stride, pad):
    """PyTorch's transposed convolution: the gradient of a convolution."""
    size = (maps.shape[1] - 1) * stride + 4
    shape = [maps.shape[0], size, size, weight.shape[1]]
    kernel = tf.transpose(weight, [2, 3, 1, 0])
    wide = tf.nn.conv2d_transpose(maps, kernel, shape, stride, "VALID")
    return wide[:, pad : size - pad, pad : size - pad] + bias


def leaky(maps):
    return tf.where(maps > 0, maps, 0.2 * maps)


class Plain:
    """The published algorithm, line by line."""

    def __init__(self, condition, rng):
        f, z = FILTERS, LATENT
        trunk = [(f, 3, 4, 4), (2 * f, f, 4, 4), (4 * f, 2 * f, 4, 4), (z, 4 * f, 4, 4)]
        shapes = {f"conv{number}.0": shape for number, shape in enumerate(trunk, start=1)}
        self.e = Network({**shapes, "dis.0": (1, 4 * f, 4, 4)}, rng)
        back = [(z, 4 * f, 4, 4), (4 * f, 2 * f, 4, 4), (2 * f, f, 4, 4), (f, 3, 4, 4)]
        self.g = Network({f"tconv{n}.0": shape for n, shape in enumerate(back, start=1)}, rng)
        self.nrem = condition not in ("no_nrem", "wake_only")
        self.rem = condition not in ("no_rem", "wake_only")
        self.mixes = condition != "no_memory_mix"
        self.old = None

    def encode(self, images):
        w = self.e.weights
        for name in ("conv1.0", "conv2.0", "conv3.0"):
            images = leaky(convolve(images, w[f"{name}.weight"], w[f"{name}.bias"], 2, 1))
        heads = [
            convolve(images, w[f"{name}.weight"], w[f"{name}.bias"], 1, 0)[:, 0, 0]
            for name in ("conv4.0", "dis.0")
        ]
        return heads[0], heads[1][:, 0]

    def generate(self, latents):
        w = self.g.weights
        maps = spread(latents[:, None, None], w["tconv1.0.weight"], w["tconv1.0.bias"], 1, 0)
        for name in ("tconv2.0", "tconv3.0", "tconv4.0"):
            maps = spread(leaky(maps), w[f"{name}.weight"], w[f"{name}.bias"], 2, 1)
        return tf.tanh(maps)

    @tf.function  # thirty steps take a quarter of the time
    def wake(self, images, noise):
        with tf.GradientTape() as tape:
            latents, logits = self.encode(images)
            reconstruction = tf.reduce_mean((images - self.generate(latents + noise)) ** 2)
            mean = tf.reduce_mean(latents, 0)
            variance = tf.reduce_sum((latents - mean) ** 2, 0) / (BATCH - 1)
            kl = tf.reduce_mean(mean**2 + variance - tf.math.log(variance) - 1) / 2
            external = -tf.reduce_mean(tf.math.log(tf.sigmoid(logits)))
            total = reconstruction + kl + (external if self.rem else 0.0)
        gradients = tape.gradient(total, [self.e.variables(), self.g.variables()])
        return (reconstruction, kl, external), latents, gradients

    @tf.function
    def recover(self, latents, mask):
        dreams = self.generate(latents) * mask[:, :, None]
        with tf.GradientTape() as tape:
            recovery = tf.reduce_mean((latents - self.encode(dreams)[0]) ** 2)
            weighted = recovery if self.rem else 0.5 * recovery
        return recovery, tape.gradient(weighted, self.e.variables())

    @tf.function
    def fool(self, mixed):
        with tf.GradientTape() as tape:
            logits = self.encode(self.generate(mixed))[1]
            internal = -tf.reduce_mean(tf.math.log(1 - tf.sigmoid(logits)))
        return internal, tape.gradient(internal, [self.e.variables(), self.g.variables()])

    def step(self, images, wake_noise, rem_noise, mask):
        losses = [np.nan] * 5
        noise = np.zeros_like(wake_noise) if self.rem else np.sqrt(0.5) * wake_noise
        images, noise = tf.constant(images / 127.5 - 1.0), tf.constant(noise, tf.float64)
        losses[:3], latents, (for_e, for_g) = self.wake(images, noise)
        if not self.rem:
            losses[2] = np.nan
        self.e.step(for_e)
        self.g.step(for_g)
        if self.nrem:
            losses[3], for_e = self.recover(latents, tf.constant(mask, tf.float64))
            self.e.step(for_e)
        if self.rem:
            old = latents if self.old is None else self.old
            mixed = 0.25 * latents + 0.25 * old + 0.5 * rem_noise if self.mixes else latents
            losses[4], (for_e, for_g) = self.fool(mixed)
            self.e.step(for_e)
            self.g.step(for_g, sign=-1.0)
        self.old = latents
        return [float(loss) for loss in losses]

    def weights(self):
        both = (("encoder", self.e), ("generator", self.g))
        return {f"{n}/{k}": v.numpy() for n, net in both for k, v in net.weights.items()}


@functools.cache
def recording(condition):
    rng = np.random.default_rng(7)
    plain = Plain(condition, rng)
    streams = {
        "images": rng.integers(0, 256, (STEPS, BATCH, 32, 32, 3), np.uint8),
        "wake_noise": rng.normal(size=(STEPS, BATCH, LATENT)).astype(np.float32),
        "rem_noise": rng.normal(size=(STEPS, BATCH, LATENT)).astype(np.float32),
        "mask": (rng.random((STEPS, 32, 32)) > 0.4).astype(np.float32),
    }
    arrays = {f"weights_0/{name}": value for name, value in plain.weights().items()}
    losses = []
    for number, inputs in enumerate(zip(*streams.values(), strict=True), start=1):
        losses.append(plain.step(*inputs))
        if number in (1, 3, 10, 30):
            arrays |= {f"weights_{number}/{k}": v for k, v in plain.weights().items()}
    settings = json.dumps({"condition": condition, **SIZES})
    floats = {k: v.astype(np.float32) if k[0] == "w" else v for k, v in arrays.items()}
    return {**streams, **floats, "losses": np.array(losses), "settings": settings}


@pytest.fixture
def saved(tmp_path):
    """Saves three steps of a recording, changed; the flag that names it."""

    def save(**changes):
        arrays = {**three_steps(), **changes}
        file = tmp_path / "steps.npz"
        np.savez(file, **{key: value for key, value in arrays.items() if value is not None})
        return f"--reference={file}"

    return save


def three_steps():
    full = recording("full")
    streams = ("images", "wake_noise", "rem_noise", "mask", "losses")
    return {**full, **{name: full[name][:3] for name in streams}}


each_condition = pytest.mark.parametrize(
    "condition", ["full", "no_memory_mix", "no_rem", "no_nrem", "wake_only"]
)


@each_condition
def test_thirty_steps_are_those_of_the_plain_algorithm(agreement, condition):
    found = agreement.follow(recording(condition))

    assert list(found) == [1, 3, 10, 30]
    assert found[3]["losses"][0] < 1e-4
    assert found[3]["weights"][0] < 1e-4
    assert found[30]["losses"][0] < 1e-3
    assert found[30]["weights"][0] < 1e-3


@each_condition
def test_the_control_in_pytorch_is_the_plain_algorithm(agreement, condition, pytorch):
    found = agreement.follow(recording(condition), peer=True)

    for differences in found.values():
        assert differences["losses"][0] < 1e-9
        assert differences["weights"][0] < 1e-7


def test_without_a_recording_the_control_makes_one_that_ours_follows(
    agreement, eagerly, success, image_folder, monkeypatch, pytorch
):
    monkeypatch.setattr(agreement, "SPANS", (1, 3))
    sizes = ("--batch_size=16", "--base_filters=8", "--latent_dim=16")

    stdout = success(agreement.main, f"--dataset={image_folder}", *sizes)

    assert "of ad_keras from PyTorch in float64, on the processor" in stdout
    assert [line.split()[0] for line in stdout.splitlines()[2:]] == ["1", "3"]


def test_it_prints_the_differences_and_names_the_variable(agreement, eagerly, saved, success):
    stdout = success(agreement.main, saved())

    found = agreement.follow(three_steps())
    lines = [line.split() for line in stdout.splitlines()[2:]]
    assert [line[0] for line in lines] == ["1", "3"]
    for steps, *told in lines:
        (loss, loss_name), (weight, weight_name) = found[int(steps)].values()
        assert told == [f"{loss:.1e}", loss_name, f"{weight:.1e}", weight_name]
        assert f"weights_0/{weight_name}" in recording("full")


@pytest.mark.parametrize(
    ("key", "factor", "words"),
    [
        ("weights_3/generator/tconv2.0.weight", 1.001, "weights (generator/tconv2.0.weight)"),
        ("losses", 1.001, "losses ("),
        ("losses", np.inf, "losses ("),
    ],
)
def test_more_than_rounding_ends_with_status_1(
    agreement, eagerly, saved, refusal, key, factor, words
):
    changed = saved(**{key: three_steps()[key] * factor})
    assert words in refusal(agreement.main, changed, status=1)


def test_more_than_rounding_after_thirty_steps_ends_with_status_1(agreement, saved, refusal):
    full, key = recording("full"), "weights_30/encoder/dis.0.bias"
    changed = saved(**full | {key: full[key] * 1.01})
    assert "after 30 steps" in refusal(agreement.main, changed, status=1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"settings": '{"condition": "no_dreams"}'}, "is not a recording"),
        ({"settings": json.dumps({"condition": "no_dreams", **SIZES})}, "condition 'no_dreams'"),
        ({"losses": None}, "is not a recording"),
    ],
)
def test_what_is_no_recording_is_refused(agreement, saved, refusal, change, words):
    assert words in refusal(agreement.main, saved(**change))


def test_half_a_recording_is_refused(agreement, saved, refusal):
    first = [name for name in three_steps() if name.startswith("weights_0/")]
    file = saved(**dict.fromkeys(first))
    assert "weights_0/... is missing" in refusal(agreement.main, file)
    path = Path(file.partition("=")[2])
    path.write_bytes(path.read_bytes()[:1000])
    assert "is not a recording" in refusal(agreement.main, file)
