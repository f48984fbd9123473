"""Whether `ad_keras` computes what the same algorithm written plainly in PyTorch computes.

    python benchmarks/agreement.py          # needs pip install -e ".[benchmark]"

Both train in float32 from the same weights on the same images, with the same noise and masks. The
table says how far the losses of the steps are apart at most, relative to PyTorch's. Float32 rounds
differently in every order of summation, and training amplifies that: "nudged" is PyTorch beside
PyTorch whose first weights differ in their last binary digit.

Keras counts Adam's steps for all variables of an optimizer together and PyTorch for each variable,
which differs for a head that a phase leaves alone; and Keras adds epsilon before the correction of
the second moment and PyTorch after. For an exact comparison PyTorch is given Keras's count and
epsilon. "own Adam" is PyTorch without that.
"""

import contextlib
import copy
import dataclasses
import importlib.util
from collections.abc import Iterator, Sequence

import numpy as np

from ad_keras.cli import flag, parse, quiet_start, run
from ad_keras.errors import UsageError

COLUMNS = ("ad_keras", "nudged", "own Adam")


@dataclasses.dataclass(frozen=True)
class AgreementConfig:
    """Trains PAD and its plain form in PyTorch alike and compares their losses."""

    steps: int = flag(200, "Flags", "of training")
    batch_size: int = flag(64, "Flags", "images of a mini-batch")
    base_filters: int = flag(64, "Flags", "filters of the first convolution")
    latent_dim: int = flag(256, "Flags", "size of the latent")
    seed: int = flag(0, "Flags", "of weights, images, noise and masks")
    dataset: str = flag("synth_digits", "Flags", "whose images; prepared if need be")
    data_dir: str | None = flag(None, "Flags", "folder of prepared TensorFlow Datasets")

    def __post_init__(self):
        for name, least in (
            ("steps", 1),
            ("base_filters", 1),
            ("latent_dim", 1),
            ("batch_size", 2),
        ):
            if getattr(self, name) < least:
                raise UsageError(f"--{name}={getattr(self, name)} must be at least {least}.")
        if importlib.util.find_spec("torch") is None:
            raise UsageError('PyTorch is not installed: pip install -e ".[benchmark]".')


def compare(config: AgreementConfig) -> dict[str, dict[str, np.ndarray]]:
    """Trains all of them.

    Args:
        config: sizes and length of the training.

    Returns:
        By column of `COLUMNS` and loss: the difference of every step, relative to PyTorch in
        float32 with Keras's Adam; for "own Adam", its difference from the same.
    """
    import tensorflow as tf
    import torch
    from peer import Peer

    from ad_keras import data
    from ad_keras.data.pixels import as_signed
    from ad_keras.runs.build import build_model
    from ad_keras.runs.config import Config

    tf.config.optimizer.set_experimental_options({"remapping": False})  # as `training.train` does
    settings = {"latent_dim": config.latent_dim, "base_filters": config.base_filters}
    model = build_model(Config(batch_size=config.batch_size, seed=config.seed, **settings))
    plain = Peer(**settings)
    _copy_weights(model, plain)
    own, nudged = copy.deepcopy(plain), copy.deepcopy(plain)
    _nudge(nudged)
    for peer in (plain, nudged):
        for optimizer in (peer.encoder_optimizer, peer.generator_optimizer):
            _use_keras_adam(optimizer)
    images = data.load(config.dataset, "train", data_dir=config.data_dir).images
    batches = data.batches(images, config.batch_size, config.seed, 0, config.steps)
    step = tf.function(model.train_step)
    losses = {name: [] for name in ("plain", *COLUMNS)}
    for batch, (mask, noise) in zip(batches, _draws(config), strict=True):
        for metric in model.metrics:
            metric.reset_state()
        losses["ad_keras"].append({name: float(value) for name, value in step(batch).items()})
        signed = torch.from_numpy(as_signed(batch).numpy().transpose(0, 3, 1, 2).copy())
        inputs = (signed, torch.tensor(mask), torch.tensor(noise))
        losses["plain"].append(plain.step(*inputs))
        losses["own Adam"].append(own.step(*inputs))
        losses["nudged"].append(nudged.step(*inputs))

    def values(column: str, name: str) -> np.ndarray:
        return np.array([entry[name] for entry in losses[column]])

    return {
        column: {
            name: np.abs(values(column, name) / values("plain", name) - 1.0)
            for name in losses["plain"][0]
        }
        for column in COLUMNS
    }


def main(argv: Sequence[str]) -> None:
    """Prints the largest differences.

    Args:
        argv: the program's name and its flags.
    """
    config = parse(AgreementConfig, argv, "python benchmarks/agreement.py")
    with quiet_start():
        # PyTorch's builds for GPUs load it later, when it crashes because TensorFlow is there.
        with contextlib.suppress(ImportError):
            import triton  # noqa: F401
        import tensorflow  # noqa: F401
    differences = compare(config)
    spans = sorted({min(span, config.steps) for span in (1, 20, 200, config.steps)})
    print("Largest relative difference of the losses from PyTorch in float32")
    print(f"{'over the first steps':<26}" + "".join(f"{span:>10}" for span in spans))
    for column, by_loss in differences.items():
        print(column)
        for name, difference in by_loss.items():
            cells = "".join(f"{difference[:span].max():>10.1e}" for span in spans)
            print(f"  {name:<24}{cells}")


def _draws(config: AgreementConfig) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The mask [32, 32] and noise [B, latent_dim, 1, 1] that PAD draws at each step."""
    import tensorflow as tf

    from ad_keras.pad.model import PHASES
    from ad_keras.pad.perturbations import occlusion_mask, sample_occlusion

    for step in range(config.steps):
        nrem, rem = (
            tf.random.fold_in(
                tf.constant([config.seed, PHASES.index(phase)], tf.int64),
                tf.constant(step, tf.int64),
            )
            for phase in ("nrem", "rem")
        )
        keys = tf.random.split(nrem, 3)
        mask = occlusion_mask(keys[1], *sample_occlusion(keys[0], 1), 32, 32)
        noise = tf.random.stateless_normal((config.batch_size, config.latent_dim), rem)
        yield mask.numpy()[0, :, :, 0], noise.numpy()[:, :, None, None]


def _copy_weights(model, peer) -> None:
    """Gives the networks of a `Peer` the weights of a `PAD`, whose kernels have channels last."""
    import torch

    encoder, generator = model.encoder, model.generator
    pairs = [
        (encoder.get_layer(f"trunk_{block}"), peer.encoder.trunk[2 * block], (3, 2, 0, 1))
        for block in range(3)
    ]
    pairs += [
        (encoder.get_layer("latent_head"), peer.encoder.latent, (3, 2, 0, 1)),
        (encoder.get_layer("external_head"), peer.encoder.external, (3, 2, 0, 1)),
        (generator.get_layer("project"), peer.generator[0], (0, 3, 1, 2)),
    ]
    pairs += [
        (generator.get_layer(f"unfold_{block}"), peer.generator[2 * block + 2], (3, 2, 0, 1))
        for block in range(3)
    ]
    with torch.no_grad():
        for ours, theirs, axes in pairs:
            kernel = ours.kernel.numpy()
            if kernel.ndim == 2:  # a dense layer on flattened maps of 4x4
                kernel = kernel.reshape(4, 4, -1, kernel.shape[1])
            theirs.weight.copy_(torch.tensor(kernel.transpose(axes)))
            theirs.bias.copy_(torch.tensor(ours.bias.numpy()))


def _nudge(peer) -> None:
    """Moves a third of a `Peer`'s weights up and a third down, to the next number of float32."""
    import torch

    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for network in (peer.encoder, peer.generator):
            for weights in network.parameters():
                direction = torch.randint(-1, 2, weights.shape, generator=random)
                moved = torch.nextafter(weights, direction * torch.inf)
                weights.copy_(torch.where(direction == 0, weights, moved))


def _use_keras_adam(optimizer) -> None:
    """Makes PyTorch's Adam count its steps, and scale its epsilon, as Keras does."""
    steps = 0

    def before(optimizer, _args, _kwargs) -> None:
        nonlocal steps
        for state in optimizer.state.values():
            state["step"].fill_(steps)
        steps += 1
        for group in optimizer.param_groups:
            group["eps"] = 1e-8 / (1.0 - group["betas"][1] ** steps) ** 0.5

    optimizer.register_step_pre_hook(before)


if __name__ == "__main__":
    run(main)
