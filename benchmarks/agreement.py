"""Whether `ad_keras` computes what the published algorithm computes.

    python benchmarks/agreement.py                         # needs PyTorch
    python benchmarks/agreement.py --reference=FILE.npz
    python benchmarks/agreement.py --reference=FILE.npz --peer   # needs PyTorch

The first trains PyTorch's form of the algorithm that `control.py` trains, in float64, and
`ad_keras` from the same weights, on the same images, with the same noise and masks. It says how far
losses and weights are apart. The second does the same with recorded steps, such as those of the
authors' code, and ends with status 1 beyond what float32 explains there. The third follows them
with PyTorch's form, where only the storage of the recorded weights (float32) is left to differ. All
compute on the processor. PyTorch comes with `pip install -e ".[benchmark]"`.

A recording's arrays, of S steps:

- `settings`: JSON text with `condition`, `base_filters`, `latent_dim` and `batch_size`;
- `images` uint8 [S, B, H, W, 3]; `wake_noise` and `rem_noise` [S, B, latent_dim], standard normal;
  `mask` [S, H, W], 1 where NREM sees the dream;
- `losses` [S, 5]: reconstruction, KL, external, recovery, internal; NaN where there is none;
- `weights_N/<network>/<layer>.weight` and `.bias` after N steps, in PyTorch's layouts. The
  encoder's layers are `conv1.0`, `conv2.0`, ..., the last of which is the latent head, and `dis.0`;
  the generator's are `tconv1.0`, ...
"""

import contextlib
import dataclasses
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from processes import pin_to_processor, require_torch

from ad_keras.cli import flag, parse, quiet_start, run
from ad_keras.errors import RunError, UsageError
from ad_keras.runs.config import CONDITIONS, Config

LOSSES = (
    "wake/reconstruction_loss",
    "wake/kl_loss",
    "wake/external_loss",
    "nrem/recovery_loss",
    "rem/internal_loss",
)
CONTROL_FORM = "rewritten_float32"
"""The form of `peer.py` that `control.py` trains."""

SPANS = (1, 3, 10, 30)
BOUNDS = {3: 5e-4, 30: 5e-3}
"""Steps, and the relative difference that float32 explains after so many."""

PEER_BOUNDS = {3: 1e-6, 30: 1e-6}
"""The same of PyTorch in float64."""


@dataclasses.dataclass(frozen=True)
class AgreementConfig:
    """Trains PAD as recorded steps of the algorithm, and compares losses and weights."""

    reference: str | None = flag(None, "Recording", "file of recorded steps (.npz)")
    peer: bool = flag(False, "Recording", "follow it with the control in PyTorch, in float64")

    condition: str = flag(
        "full", "Without a recording", "condition of the paper", tuple(CONDITIONS)
    )
    batch_size: int = flag(64, "Without a recording", "images of a mini-batch")
    base_filters: int = flag(64, "Without a recording", "filters of the first convolution")
    latent_dim: int = flag(256, "Without a recording", "size of the latent")
    seed: int = flag(0, "Without a recording", "seed of weights, images, noise and masks")
    dataset: str = flag(
        "synth_digits", "Without a recording", "data set of the images; prepared if need be"
    )
    data_dir: str | None = flag(
        None, "Without a recording", "folder of prepared TensorFlow Datasets"
    )

    def __post_init__(self):
        if self.peer and self.reference is None:
            raise UsageError("--peer follows a recording: name it with --reference.")
        self.training  # noqa: B018, which refuses what cannot be
        if self.reference is None:
            require_torch("or name a recording with --reference")
        elif self.peer:
            require_torch("or leave out --peer")

    @property
    def training(self) -> Config:
        """The flags of ours for the same training."""
        names = ("batch_size", "base_filters", "latent_dim", "seed")
        sizes = {name: getattr(self, name) for name in names}
        return Config(**sizes, **CONDITIONS[self.condition])


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What a training step is given.

    Attributes:
        images: uint8 [B, H, W, 3].
        wake_noise: [B, latent_dim], standard normal.
        rem_noise: [B, latent_dim], standard normal.
        mask: [H, W], 1 visible, 0 occluded.
    """

    images: np.ndarray
    wake_noise: np.ndarray
    rem_noise: np.ndarray
    mask: np.ndarray


_STREAMS = tuple(field.name for field in dataclasses.fields(Inputs))


class Replay:
    """PAD, trained with random numbers that are given.

    Args:
        config: of the training.
    """

    def __init__(self, config) -> None:
        import tensorflow as tf

        from ad_keras import Mixing
        from ad_keras.pad.perturbations import occlude
        from ad_keras.runs.build import build_model

        replay = self

        class GivenNoise(Mixing):
            def __call__(self, latents, recalled, key):
                return self.mix(latents, recalled, replay.inputs.rem_noise)

        def given_mask(dreams, key):
            return occlude(dreams, replay.inputs.mask[None, :, :, None])

        self.model = build_model(
            config,
            mixing=GivenNoise(config.mix_recent, config.mix_memories),
            perturbation=given_mask,
        )
        deviation = config.wake_noise_variance**0.5
        self.model.wake_noise = lambda *_: deviation * replay.inputs.wake_noise

        def step(*inputs: tf.Tensor) -> dict[str, tf.Tensor]:
            self.inputs = Inputs(*inputs)
            return self.model.train_step(self.inputs.images)

        self._step = tf.function(step, autograph=False)

    def step(self, inputs: Inputs) -> dict[str, float]:
        """Trains one step.

        Args:
            inputs: of the step.

        Returns:
            The losses that the condition has.
        """
        for metric in self.model.metrics:
            metric.reset_state()
        result = self._step(*dataclasses.astuple(inputs))
        return {name: float(result[name]) for name in LOSSES if name in result}

    def weights(self) -> dict[str, np.ndarray]:
        """The weights by the names of the recordings, in PyTorch's layouts."""
        found = {}
        for name, (variable, axes) in _variables(self.model).items():
            value = variable.numpy()
            if len(axes) > value.ndim:  # a dense layer on flattened maps of 4x4
                value = value.reshape(4, 4, -1, value.shape[-1])
            found[name] = value.transpose(axes)
        return found

    def set_weights(self, weights: dict[str, np.ndarray]) -> None:
        """Takes weights over.

        Args:
            weights: by the names of the recordings, in PyTorch's layouts.
        """
        set_weights(self.model, weights)


class PeerReplay:
    """The control in PyTorch, in float64.

    Args:
        settings: of the `Peer`.
    """

    def __init__(self, **settings) -> None:
        from peer import Peer

        peer = Peer(CONTROL_FORM, **settings)
        for network in (peer.encoder, peer.generator):
            network.double()
        self._peer, self.weights, self.set_weights = peer, peer.weights, peer.set_weights

    def step(self, inputs: Inputs) -> dict[str, float]:
        """Trains one step, as `Replay` does."""
        import torch

        images, wake_noise, rem_noise, mask = map(torch.tensor, dataclasses.astuple(inputs))
        return self._peer.step(
            images.permute(0, 3, 1, 2).double().div(127.5).sub(1.0),
            mask.double(),
            *(noise.double()[:, :, None, None] for noise in (rem_noise, wake_noise)),
        )


def set_weights(model, weights: dict[str, np.ndarray]) -> None:
    """Gives a model of `ad_keras` other weights.

    Args:
        model: a PAD model.
        weights: by the names of the recordings, in PyTorch's layouts.
    """
    for name, (variable, axes) in _variables(model).items():
        value = weights[name].transpose(np.argsort(axes))
        variable.assign(value.reshape(variable.shape))


def _variables(model) -> dict[str, tuple]:
    """The weights by the names of the recordings: each with its axes in PyTorch's layout."""
    encoder, generator = model.encoder, model.generator
    blocks = sum(layer.name.startswith("trunk_") for layer in encoder.layers) // 2
    layers = [
        (f"encoder/conv{block + 1}.0", encoder.get_layer(f"trunk_{block}"), (3, 2, 0, 1))
        for block in range(blocks)
    ]
    layers += [
        (f"encoder/conv{blocks + 1}.0", encoder.get_layer("latent_head"), (3, 2, 0, 1)),
        ("encoder/dis.0", encoder.get_layer("external_head"), (3, 2, 0, 1)),
        ("generator/tconv1.0", generator.get_layer("project"), (0, 3, 1, 2)),
    ]
    layers += [
        (f"generator/tconv{block + 2}.0", generator.get_layer(f"unfold_{block}"), (3, 2, 0, 1))
        for block in range(blocks)
    ]
    found = {}
    for name, layer, axes in layers:
        found[f"{name}.weight"] = (layer.kernel, axes)
        found[f"{name}.bias"] = (layer.bias, (0,))
    return found


def read(file: str) -> dict[str, np.ndarray]:
    """Reads a recording.

    Raises:
        UsageError: if the file is none, or of a condition that is not known.
    """
    try:
        with open(file, "rb") as opened, np.load(opened) as arrays:
            recorded = dict(arrays)
        settings = json.loads(str(recorded["settings"]))
        needed = {"condition", "base_filters", "latent_dim", "batch_size"} - settings.keys()
        needed |= {"losses", *_STREAMS} - recorded.keys()
        if not any(name.startswith("weights_0/") for name in recorded):
            needed.add("weights_0/...")
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise UsageError(f"--reference={file} is not a recording ({error}).") from error
    if needed:
        missing = ", ".join(sorted(needed))
        raise UsageError(f"--reference={file} is not a recording: {missing} is missing.")
    if settings["condition"] not in CONDITIONS:
        raise UsageError(
            f"--reference={file} is of the condition '{settings['condition']}'; those known are "
            f"{', '.join(CONDITIONS)}."
        )
    return recorded


def record(config: AgreementConfig) -> dict[str, np.ndarray]:
    """Trains the control in float64, from initial weights of ours, and records its steps."""
    from ad_keras import Occlusion, data
    from ad_keras.compute import draws

    images = data.load(config.dataset, "train", data_dir=config.data_dir).images
    names = ("condition", "base_filters", "latent_dim", "batch_size")
    settings = {name: getattr(config, name) for name in names}
    peer = PeerReplay(**{name: settings[name] for name in names[:-1]})
    peer.set_weights(Replay(config.training).weights())
    arrays = {f"weights_0/{name}": value for name, value in peer.weights().items()}
    steps, losses = [], []
    batches = data.batches(images, config.batch_size, config.seed, 0, SPANS[-1])
    for number, batch in enumerate(batches.as_numpy_iterator(), start=1):
        keys = draws.split(draws.fold_in([config.seed, 0], number), 2)
        noise = draws.normal([2, config.batch_size, config.latent_dim], keys[0]).numpy()
        mask = Occlusion().sample(keys[1], 1, *batch.shape[1:3]).numpy()[0, :, :, 0]
        steps.append(Inputs(batch, *noise, mask))
        found = peer.step(steps[-1])
        losses.append([found.get(name, np.nan) for name in LOSSES])
        if number in SPANS:
            arrays |= {f"weights_{number}/{name}": w for name, w in peer.weights().items()}
    streams = {name: np.stack([getattr(step, name) for step in steps]) for name in _STREAMS}
    return {**streams, **arrays, "losses": np.array(losses), "settings": json.dumps(settings)}


def follow(
    recorded: dict[str, np.ndarray], peer: bool = False
) -> dict[int, dict[str, tuple[float, str]]]:
    """Trains as a recording and compares.

    Args:
        recorded: the recording's arrays.
        peer: whether it is the control in PyTorch that trains, in float64, and not `ad_keras`.

    Returns:
        By number of steps, for `losses` (of all steps so far) and `weights` (after the last of
        them) the largest relative difference and what it is of. The difference of weights is the
        norm of the difference by the norm of a variable's weights.
    """
    sizes = json.loads(str(recorded["settings"]))
    sizes = {
        name: sizes[name] for name in ("condition", "base_filters", "latent_dim", "batch_size")
    }
    if peer:
        del sizes["batch_size"]
        replay = PeerReplay(**sizes)
    else:
        condition = CONDITIONS[sizes.pop("condition")]
        replay = Replay(Config(image_size=recorded["images"].shape[2], **sizes, **condition))
    replay.set_weights(_weights_after(recorded, 0))
    worst_loss, found = (0.0, "none"), {}
    steps = map(Inputs, *(recorded[name] for name in _STREAMS))
    for number, (inputs, expected) in enumerate(zip(steps, recorded["losses"], strict=True), 1):
        losses = replay.step(inputs)
        for name, value in zip(LOSSES, expected, strict=True):
            if np.isnan(value) == (name in losses):
                raise RunError(f"{name} is only in the recording, or only in ad_keras.")
            if name in losses:
                worst_loss = max(worst_loss, (_finite(abs(losses[name] / value - 1.0)), name))
        if weights := _weights_after(recorded, number):
            ours = replay.weights()
            worst = max(
                (_finite(np.linalg.norm(ours[name] - value) / np.linalg.norm(value)), name)
                for name, value in weights.items()
            )
            found[number] = {"losses": worst_loss, "weights": worst}
    return found


def main(argv: Sequence[str]) -> None:
    """Prints the largest differences."""
    config = parse(AgreementConfig, argv, "python benchmarks/agreement.py")
    pin_to_processor()
    with quiet_start(), contextlib.suppress(ImportError):
        # PyTorch's builds for GPUs load it later, when it crashes because TensorFlow is there.
        import triton  # noqa: F401
    if config.reference is None:
        recorded, source = record(config), "PyTorch in float64"
    else:
        recorded, source = read(config.reference), Path(config.reference).name
    found = follow(recorded, config.peer)
    who = "PyTorch in float64" if config.peer else "ad_keras"
    print(f"Largest relative difference of {who} from {source}, on the processor")
    print(f"{'steps':<8}{'losses':<38}weights")
    for steps in [steps for steps in SPANS if steps in found]:
        losses, weights = (f"{value:.1e}  {name}" for value, name in found[steps].values())
        print(f"{steps:<8}{losses:<38}{weights}")
    if config.reference is None:
        return
    bounds = PEER_BOUNDS if config.peer else BOUNDS
    if not set(bounds) & set(found):
        print(f"No bound was checked: there are no weights after {' or '.join(map(str, bounds))}.")
    for steps, bound in bounds.items():
        for what, (value, name) in found.get(steps, {}).items():
            if value > bound:
                raise RunError(
                    f"the {what} ({name}) are {value:.1e} from the recording after {steps} steps, "
                    f"more than the {bound} that rounding explains."
                )


def _finite(difference: float) -> float:
    """NaN compares with nothing, but is as far away as can be."""
    return float(np.nan_to_num(difference, nan=np.inf))


def _weights_after(recorded: dict[str, np.ndarray], steps: int) -> dict[str, np.ndarray]:
    start = f"weights_{steps}/"
    return {
        name.removeprefix(start): value
        for name, value in recorded.items()
        if name.startswith(start)
    }


if __name__ == "__main__":
    run(main)
