"""Whether `ad_keras` computes what the published algorithm computes.

    python benchmarks/agreement.py --reference=FILE.npz   # recorded steps of the authors' code
    python benchmarks/agreement.py --reference=FILE.npz --peer
    python benchmarks/agreement.py

The last two need PyTorch: `pip install -e ".[benchmark]"`. The first trains from the recorded
weights on the recorded images, with the recorded noise and masks, and says how far losses and
weights are from the recorded ones. It ends with status 1 where they are farther than rounding
explains. The second does the same with PyTorch's form that `control.py` trains, in float64, where
only the storage of the recorded weights (float32) is left to differ. A recording's arrays:

- `settings`: JSON text with `condition`, `base_filters`, `latent_dim` and `batch_size`;
- `images` uint8 [S, B, H, W, 3]; `wake_noise` and `rem_noise` [S, B, latent_dim], standard normal;
  `mask` [S, H, W], 1 where NREM sees the dream;
- `losses` [S, 5]: reconstruction, KL, external, recovery, internal; NaN where there is none;
- `weights_N/<network>/<layer>.weight` and `.bias` after N steps, in PyTorch's layouts. The
  encoder's layers are `conv1.0`, `conv2.0`, ..., the last of which is the latent head, and `dis.0`;
  the generator's are `tconv1.0`, ...

The third compares with the same algorithm written plainly in PyTorch, both in float32 and on the
processor. Training amplifies what float32 rounds differently in every order of summation: "nudged"
is PyTorch beside PyTorch whose first weights differ in their last binary digit.
"""

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from processes import pin_to_processor, require_torch

from ad_keras.cli import flag, parse, quiet_start, run
from ad_keras.errors import RunError, UsageError

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
    """Trains PAD as a recording, or as PyTorch, and compares losses and weights."""

    reference: str | None = flag(None, "Recording", "file of recorded steps (.npz)")
    peer: bool = flag(False, "Recording", "follow it with the control in PyTorch, in float64")

    steps: int = flag(200, "PyTorch", "of training")
    batch_size: int = flag(64, "PyTorch", "images of a mini-batch")
    base_filters: int = flag(64, "PyTorch", "filters of the first convolution")
    latent_dim: int = flag(256, "PyTorch", "size of the latent")
    seed: int = flag(0, "PyTorch", "of weights, images, noise and masks")
    dataset: str = flag("synth_digits", "PyTorch", "whose images; prepared if need be")
    data_dir: str | None = flag(None, "PyTorch", "folder of prepared TensorFlow Datasets")

    def __post_init__(self):
        for name, least in (
            ("steps", 1),
            ("base_filters", 1),
            ("latent_dim", 1),
            ("batch_size", 2),
        ):
            if getattr(self, name) < least:
                raise UsageError(f"--{name}={getattr(self, name)} must be at least {least}.")
        if self.peer and self.reference is None:
            raise UsageError("--peer follows a recording: name it with --reference.")
        if self.reference is None:
            require_torch("or name a recording with --reference")
        elif self.peer:
            require_torch("or leave out --peer")


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
            return occlude(dreams, tf.constant(replay.inputs.mask[None, :, :, None]))

        self.model = build_model(
            config,
            mixing=GivenNoise(config.mix_recent, config.mix_memories),
            perturbation=given_mask,
        )
        deviation = config.wake_noise_variance**0.5
        self.model.wake_noise = lambda *_: deviation * replay.inputs.wake_noise

    def step(self, inputs: Inputs) -> dict[str, float]:
        """Trains one step.

        Args:
            inputs: of the step.

        Returns:
            The losses that the condition has.
        """
        self.inputs = inputs
        for metric in self.model.metrics:
            metric.reset_state()
        result = self.model.train_step(inputs.images)
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
    """The same in PyTorch.

    Args:
        dtype: of weights and computation.
        settings: of the `Peer`.
    """

    def __init__(self, dtype: str = "float32", **settings) -> None:
        import torch
        from peer import Peer

        self.model, self._dtype = Peer(**settings), getattr(torch, dtype)
        for network in (self.model.encoder, self.model.generator):
            network.to(self._dtype)
        self.weights, self.set_weights = self.model.weights, self.model.set_weights

    def step(self, inputs: Inputs) -> dict[str, float]:
        """Trains one step, as `Replay` does."""
        import torch

        def tensor(values: np.ndarray) -> torch.Tensor:
            return torch.tensor(values).to(self._dtype)

        return self.model.step(
            tensor(inputs.images.transpose(0, 3, 1, 2) / 127.5 - 1.0),
            tensor(inputs.mask),
            *(tensor(noise)[:, :, None, None] for noise in (inputs.rem_noise, inputs.wake_noise)),
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


def follow(file: str, peer: bool = False) -> dict[int, dict[str, tuple[float, str]]]:
    """Trains as a recording and compares.

    Args:
        file: of the recording.
        peer: whether it is the control in PyTorch that trains, in float64, and not `ad_keras`.

    Returns:
        By number of steps, for `losses` (of all steps so far) and `weights` (after the last of
        them) the largest relative difference and what it is of. The difference of weights is the
        norm of the difference by the norm of a variable's weights.

    Raises:
        UsageError: if the file is not a recording, or of a condition that is not known.
    """
    from ad_keras.runs.config import CONDITIONS, Config

    try:
        with np.load(file) as arrays:
            recorded = dict(arrays)
        settings = json.loads(str(recorded["settings"]))
        condition = settings["condition"]
        sizes = {name: settings[name] for name in ("base_filters", "latent_dim", "batch_size")}
        streams = [recorded[field.name] for field in dataclasses.fields(Inputs)]
        expected_losses = recorded["losses"]
        first = _weights_after(recorded, 0)
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(f"--reference={file} is not a recording ({error}).") from error
    if condition not in CONDITIONS:
        raise UsageError(
            f"--reference={file} is of the condition '{condition}'; those known are "
            f"{', '.join(CONDITIONS)}."
        )
    image_size = recorded["images"].shape[2]
    if peer:
        del sizes["batch_size"]
        replay = PeerReplay("float64", form=CONTROL_FORM, condition=condition, **sizes)
    else:
        replay = Replay(Config(image_size=image_size, **sizes, **CONDITIONS[condition]))
    replay.set_weights(first)
    worst_loss, found = (0.0, "none"), {}
    for number, (inputs, expected) in enumerate(
        zip(map(Inputs, *streams), expected_losses, strict=True), start=1
    ):
        losses = replay.step(inputs)
        for name, value in zip(LOSSES, expected, strict=True):
            if np.isnan(value) == (name in losses):
                raise RunError(f"{name} is in one of the recording and this package only.")
            if name in losses:
                worst_loss = max(worst_loss, (_finite(abs(losses[name] / value - 1.0)), name))
        weights = _weights_after(recorded, number)
        if weights:
            ours = replay.weights()
            worst = max(
                (_finite(np.linalg.norm(ours[name] - value) / np.linalg.norm(value)), name)
                for name, value in weights.items()
            )
            found[number] = {"losses": worst_loss, "weights": worst}
    return found


def compare(config: AgreementConfig) -> dict[str, dict[str, np.ndarray]]:
    """Trains PAD, its plain form in PyTorch, and the nudged one.

    Args:
        config: sizes and length of the training.

    Returns:
        For `ad_keras` and `nudged`, by loss: the difference of every step, relative to PyTorch.
    """
    from ad_keras.runs.config import Config

    settings = {"latent_dim": config.latent_dim, "base_filters": config.base_filters}
    replay = Replay(Config(batch_size=config.batch_size, seed=config.seed, **settings))
    plain, nudged = PeerReplay(**settings), PeerReplay(**settings)
    for peer in (plain, nudged):
        peer.set_weights(replay.weights())
    _nudge(nudged.model)
    losses = {"plain": [], "ad_keras": [], "nudged": []}
    for inputs in _draws(config):
        for name, each in (("plain", plain), ("ad_keras", replay), ("nudged", nudged)):
            losses[name].append(each.step(inputs))

    def values(column: str, name: str) -> np.ndarray:
        return np.array([entry[name] for entry in losses[column]])

    return {
        column: {
            name: np.abs(values(column, name) / values("plain", name) - 1.0) for name in LOSSES
        }
        for column in ("ad_keras", "nudged")
    }


def main(argv: Sequence[str]) -> None:
    """Prints the largest differences.

    Args:
        argv: the program's name and its flags.
    """
    config = parse(AgreementConfig, argv, "python benchmarks/agreement.py")
    if config.peer or config.reference is None:
        pin_to_processor()
    with quiet_start():
        # PyTorch's builds for GPUs load it later, when it crashes because TensorFlow is there.
        with contextlib.suppress(ImportError):
            import triton  # noqa: F401
        import tensorflow  # noqa: F401
    if config.reference is None:
        _print_comparison(compare(config), config.steps)
        return
    found = follow(config.reference, config.peer)
    who = "PyTorch in float64" if config.peer else "ad_keras"
    print(f"Largest relative difference of {who} from {Path(config.reference).name}")
    print(f"{'steps':<8}{'losses':<38}weights")
    for steps in [steps for steps in SPANS if steps in found]:
        losses, weights = (f"{value:.1e}  {name}" for value, name in found[steps].values())
        print(f"{steps:<8}{losses:<38}{weights}")
    for steps, bound in (PEER_BOUNDS if config.peer else BOUNDS).items():
        for what, (value, name) in found.get(steps, {}).items():
            if value > bound:
                raise RunError(
                    f"the {what} ({name}) are {value:.1e} from the recording after {steps} steps, "
                    f"more than the {bound} that rounding explains."
                )


def _print_comparison(differences: dict[str, dict[str, np.ndarray]], steps: int) -> None:
    spans = sorted({min(span, steps) for span in (1, 20, 200, steps)})
    print("Largest relative difference of the losses from PyTorch in float32, on the processor")
    print(f"{'over the first steps':<26}" + "".join(f"{span:>10}" for span in spans))
    for column, by_loss in differences.items():
        print(column)
        for name, difference in by_loss.items():
            cells = "".join(f"{difference[:span].max():>10.1e}" for span in spans)
            print(f"  {name:<24}{cells}")


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


def _draws(config: AgreementConfig) -> Iterator[Inputs]:
    """Images of a data set, with noise and masks as the paper draws them."""
    from ad_keras import Occlusion, data
    from ad_keras.compute import draws

    images = data.load(config.dataset, "train", data_dir=config.data_dir).images
    batches = data.batches(images, config.batch_size, config.seed, 0, config.steps)
    for step, batch in enumerate(batches.as_numpy_iterator()):
        keys = draws.split(draws.fold_in([config.seed, 0], step), 2)
        noise = draws.normal([config.batch_size, config.latent_dim], keys[0]).numpy()
        mask = Occlusion().sample(keys[1], 1, *batch.shape[1:3]).numpy()[0, :, :, 0]
        yield Inputs(batch, noise, noise, mask)


def _nudge(peer) -> None:
    """Moves a third of a `Peer`'s weights up and a third down, to the next number of float32."""
    import torch

    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weights in peer.parameters().values():
            direction = torch.randint(-1, 2, weights.shape, generator=random)
            moved = torch.nextafter(weights, direction * torch.inf)
            weights.copy_(torch.where(direction == 0, weights, moved))


if __name__ == "__main__":
    run(main)
