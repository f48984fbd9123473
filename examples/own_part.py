"""Parts of one's own: a perturbation and a recovery loss, trained by the package's machinery.

    python examples/own_part.py

A run with checkpoints, TensorBoard and an export, as `python -m ad_keras.train` makes it. Called
again, it continues where it was stopped, and a finished run is exported again.
"""

import functools
from collections.abc import Sequence
from pathlib import Path

import keras
import tensorflow as tf

from ad_keras import Part
from ad_keras.cli import parse, require, run
from ad_keras.compute import draws
from ad_keras.runs.build import build_model
from ad_keras.runs.config import Config
from ad_keras.runs.restore import restore_run
from ad_keras.runs.training import train


@keras.saving.register_keras_serializable("examples")
class Stripes(Part):
    """Hides vertical stripes of NREM dreams, in another place for each mini-batch.

    Args:
        period: pixels from one stripe to the next.
        width: of a stripe in pixels.
    """

    def __init__(self, period: int = 8, width: int = 4) -> None:
        self.period = period
        self.width = width

    def __call__(self, images: tf.Tensor, key: tf.Tensor) -> tf.Tensor:
        """Perturbs images [B, H, W, C] in [-1, 1]; the key makes the draw repeatable."""
        start = draws.integers([], key, 0, self.period - 1)
        hidden = (tf.range(images.shape[2]) + start) % self.period < self.width
        return tf.where(hidden[:, None], 0.0, images)


@keras.saving.register_keras_serializable("examples")
class Angle(Part):
    """One minus the cosine between a replayed latent and each of its recovered views."""

    views = 2  # how often each dream is perturbed and perceived

    def __call__(self, replayed: tf.Tensor, recovered: tf.Tensor) -> tf.Tensor:
        """Compares latents [B, latent_dim] with recovered ones [views, B, latent_dim]."""
        return 1.0 + tf.reduce_mean(keras.losses.cosine_similarity(replayed, recovered))


# What `train` and `restore_run` build from the flags, with these two parts in place of the paper's.
build = functools.partial(build_model, perturbation=Stripes(), recovery=Angle())


def main(argv: Sequence[str]) -> None:
    """Trains, restores, and shows that the parts came back."""
    config = parse(Config, argv, "python examples/own_part.py")
    require(config, "phases", "nrem" in config.phases, "with nrem, which the two parts are of")
    result = train(config, build=build)
    _, model = restore_run(result.run_folder, build=build)
    losses = result.history[max(result.history, key=int)]
    print(f"recovery loss of the last epoch, by angle: {losses['nrem/recovery_loss']:.3f}")
    print(f"restored after {int(model.step.numpy())} steps, with {type(model.recovery).__name__}")
    print(f"exported to {Path(result.export_folder)}")


if __name__ == "__main__":
    import sys

    defaults = ["--base_filters=32", "--batch_size=32", "--epochs=5", "--run_dir=runs/own_part"]
    run(lambda _: main([sys.argv[0], *defaults, *sys.argv[1:]]))
