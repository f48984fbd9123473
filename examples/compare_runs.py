"""Draws how well images of several runs can be classified, epoch by epoch, beside each other.

python examples/compare_runs.py --run_dir=runs/cifar10 --run_dir=runs/cifar10-custom
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from ad_keras.cli import flag, parse, quiet_start, run
from ad_keras.errors import UsageError

PROBES = {"paper's probe": "probe", "ridge probe": "ridge_probe"}


@dataclasses.dataclass(frozen=True)
class CompareConfig:
    """Draws the probes of runs beside each other, on held-out training images."""

    run_dir: tuple[str, ...] = flag(
        (),
        "Flags",
        "folder of a run, or of its history.json; repeat it to compare",
        repeatable=True,
    )
    output: str = flag("curves.png", "Flags", "file of the picture")


def probes(folders: Sequence[str]) -> pd.DataFrame:
    """Reads what was probed of runs.

    Args:
        folders: each with a `history.json`.

    Returns:
        Accuracies on held-out training images, in [0, 1]: `value`, by `probe`, `series` (the
        folder) and epoch `x`.
    """
    from ad_keras.runs.folder import read_history

    lines = [
        (title, folder, int(epoch), figures[f"{name}/validation_accuracy"])
        for folder in folders
        for epoch, figures in read_history(Path(folder)).items()
        for title, name in PROBES.items()
        if f"{name}/validation_accuracy" in figures
    ]
    return pd.DataFrame(lines, columns=["probe", "series", "x", "value"])


def main(argv: Sequence[str]) -> None:
    """Draws the picture.

    Args:
        argv: the program's name and its flags.

    Raises:
        UsageError: if a run was not probed.
    """
    config = parse(CompareConfig, argv, "python examples/compare_runs.py")
    with quiet_start():
        from ad_keras.evaluation.plots import curves

    frame = probes(config.run_dir)
    unprobed = [folder for folder in config.run_dir if folder not in set(frame.series)]
    if unprobed or not config.run_dir:
        raise UsageError(f"--run_dir={','.join(unprobed)} names no run whose history has probes.")
    panels = {title: frame[frame.probe == title] for title in PROBES}
    figure = curves(panels, "epochs", "accuracy on held-out images [%]")
    try:
        figure.savefig(config.output, dpi=120)
    except ValueError as error:  # a format that matplotlib does not know
        raise UsageError(f"--output={config.output} is not possible: {error}.") from None
    print(f"{config.output}: {', '.join(frame.series.unique())}")


if __name__ == "__main__":
    run(main)
