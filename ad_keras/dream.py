"""`python -m ad_keras.dream`: draws what a trained model perceives, replays and dreams."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ad_keras.cli import flag, parse, quiet_start, require, run, same_flag
from ad_keras.data import load, resolve
from ad_keras.errors import UsageError
from ad_keras.evaluation.config import EvaluateConfig, require_model
from ad_keras.runs.config import Config

_STOPS = 6  # memories of the animated walk
_STEPS = 16  # from one of them to the next


@dataclasses.dataclass(frozen=True)
class DreamConfig:
    """Draws reconstructions, NREM and REM dreams as a sheet, and a walk through memories as GIF."""

    run_dir: str | None = flag(None, "Model", "folder of a run")
    export: str | None = same_flag(EvaluateConfig, "export", "Model")

    dataset: str | None = flag(
        None,
        "Memories",
        "data set whose test images are shown, or a folder of pictures (default: the run's)",
    )
    data_dir: str | None = same_flag(EvaluateConfig, "data_dir", "Memories")
    num_images: int = flag(12, "Memories", "number of images, side by side")
    seed: int = flag(0, "Memories", "seed of the choice of images, the occlusions and the noise")

    output_dir: str | None = flag(
        None,
        "Output",
        "folder of the pictures (default: figures in the run's folder, or dreams for an export)",
    )

    def __post_init__(self):
        require_model(self)
        require(self, "num_images", self.num_images >= 4, "at least 4")
        require(self, "seed", 0 <= self.seed < 2**63, "0 or more, and a number of 64 bits")


def main(argv: Sequence[str]) -> None:
    """Draws as a command line says."""
    flags = parse(DreamConfig, argv, "python -m ad_keras.dream")
    if flags.dataset:
        resolve(flags.dataset)
    with quiet_start():
        from ad_keras.runs import pictures
        from ad_keras.runs.restore import restore_export, restore_run
    source = Path(flags.run_dir or flags.export)
    config, model = restore_run(source) if flags.run_dir else restore_export(source)
    images = _choose(flags, config)
    default = source / "figures" if flags.run_dir else Path("dreams")
    folder = Path(flags.output_dir) if flags.output_dir else default
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pictures.overview(model, images, flags.seed)).save(folder / "sheet.png")
    walk = pictures.loop(model, images[:_STOPS], _STEPS)
    pictures.save_loop(folder / "walk.gif", walk, pause_every=_STEPS)
    print(f"Memories and dreams: {folder / 'sheet.png'}")
    print(f"A walk through memories: {folder / 'walk.gif'}")


def _choose(flags: DreamConfig, config: Config) -> np.ndarray:
    """Random test images; where there is no test split, of what there is."""
    dataset, count = flags.dataset or config.dataset, flags.num_images
    folder, split = resolve(dataset), "test"
    if folder is not None and not (folder / "test").is_dir():
        split = "train"
        if not (folder / "train").is_dir():
            # A plain folder of pictures is loaded as if it were a split of the folder around it.
            folder = folder.resolve()
            dataset, split = str(folder.parent), folder.name
    data_dir = flags.data_dir or config.data_dir
    images = load(dataset, split, data_dir=data_dir, image_size=config.image_size).images
    if len(images) < count:
        raise UsageError(
            f"--num_images={count} is more than the {len(images)} images of "
            f"{Path(dataset) / split}."
        )
    return images[np.random.default_rng(flags.seed).permutation(len(images))[:count]]


if __name__ == "__main__":
    run(main)
