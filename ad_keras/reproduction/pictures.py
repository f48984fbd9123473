"""The report's pictures, as PNG."""

import io
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from ad_keras import data
from ad_keras.evaluation.plots import readable
from ad_keras.pad.model import PAD
from ad_keras.reproduction.findings import TITLES, Measurements, Statistic
from ad_keras.runs import pictures
from ad_keras.runs.checkpoints import Checkpoints
from ad_keras.runs.config import Config
from ad_keras.runs.restore import restore_run

# Okabe and Ito's colours, told apart by all kinds of colour vision; shapes tell the rest.
_STYLES = {
    "full": ("#0072B2", "o", "-"),
    "no_memory_mix": ("#E69F00", "s", "--"),
    "no_rem": ("#D55E00", "^", "-."),
    "no_nrem": ("#009E73", "D", "-"),
    "wake_only": ("#CC79A7", "v", ":"),
    "rem_noise_only": ("#56B4E9", "P", "--"),
    "rem_mix_only": ("#B8A400", "X", "-."),
    "rem_before_nrem": ("#000000", "*", ":"),
    "nrem_mixed": ("#7F7F7F", ">", "--"),
}
_UNTRAINED = ("untrained", "#BBBBBB")

_LOSSES = {
    "wake/reconstruction_loss": "Wake: reconstruction",
    "wake/kl_loss": "Wake: divergence from the prior",
    "wake/external_loss": "Wake: external?",
    "nrem/recovery_loss": "NREM: latent",
    "rem/internal_loss": "REM: external?",
}
_RATIOS = ("intra_inter_ratio", "occluded_inter_ratio")
_MEMORIES = 10  # columns of a sheet of dreams
_SEED = 0  # of their choice, occlusions and noise


def dream_sheets(config: Config) -> dict[int, bytes]:
    """What a run's model makes of test images, early and late.

    Args:
        config: of the finished run.

    Returns:
        A sheet by epoch: of the first, if that is kept and training went on, and of the last.
    """
    images = data.load(
        config.dataset, "test", data_dir=config.data_dir, image_size=config.image_size
    ).images
    images = images[np.random.default_rng(_SEED).permutation(len(images))[:_MEMORIES]]
    folder = config.run_path
    _, late = restore_run(folder)
    models = {config.epochs: late}
    if config.epochs > 1 and 1 in Checkpoints(late, folder).kept_epochs():
        models = {1: restore_run(folder, epoch=1)[1], **models}
    return {epoch: _dream_sheet(model, images) for epoch, model in models.items()}


def probe_curves(measured: Measurements, probe: str, chance: float, *, small: bool) -> bytes | None:
    """Figure 4: a probe's accuracy on held-out training images over epochs.

    Args:
        measured: all that was measured.
        probe: `probe` or `ridge_probe`.
        chance: accuracy of guessing.
        small: whether the picture stands beside the main one.

    Returns:
        None if no run has the figures.
    """
    figure, axes = _axes((4.4, 3.1) if small else (6.4, 4.0))
    drawn = False
    for condition in measured.histories:
        curve = measured.over_epochs(condition, f"{probe}/validation_accuracy")
        if curve:
            drawn = True
            _line(axes, condition, list(curve), list(curve.values()), 100.0)
    if not drawn:
        return None
    _chance(axes, chance)
    _epochs(axes)
    axes.set_ylabel("linear separability [%]")
    _legend(axes)
    return _png(figure)


def occlusion_curves(measured: Measurements, tiles: Sequence[int], chance: float) -> bytes:
    """Figure 5: accuracy against the share of occluded tiles.

    Args:
        measured: all that was measured.
        tiles: sides of the tiles in pixels; one picture each, side by side.
        chance: accuracy of guessing.
    """
    size = (6.4, 4.0) if len(tiles) == 1 else (3.0 * len(tiles) + 1.6, 2.9)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(1, len(tiles), sharey=True, squeeze=False)[0]
    for axes, tile in zip(grid, tiles, strict=True):
        for condition, results in measured.results.items():
            shares = results[0]["metrics"]["occlusion"]["protocol"]["probabilities"]
            curve = [measured.occluded(condition, tile, share) for share in shares]
            _line(axes, condition, [100 * share for share in shares], curve, 100.0)
        _chance(axes, chance)
        _plain(axes)
        axes.set(title=f"tiles of {tile} px", xlabel="occluded tiles [%]")
    grid[0].set_ylabel("linear separability [%]")
    grid[0].set_ylim(bottom=0)
    _legend(grid[-1])
    return _png(figure)


def distance_bars(measured: Measurements) -> bytes:
    """Figure 6: both ratios of distances of each condition and of the untrained encoder.

    Args:
        measured: all that was measured.
    """
    conditions = list(measured.results)
    names = [*(TITLES[name] for name in conditions), _UNTRAINED[0]]
    colours = [*(_STYLES[name][0] for name in conditions), _UNTRAINED[1]]
    figure = Figure(figsize=(8.4, 0.8 + 0.36 * len(names)), layout="constrained")
    for axes, ratio in zip(figure.subplots(1, 2, sharey=True), _RATIOS, strict=True):
        bars = [measured.value(name, "distances", "trained", ratio) for name in conditions]
        bars.append(measured.value(conditions[0], "distances", "untrained", ratio))
        drawn = axes.barh(
            names, [bar.mean for bar in bars], xerr=[bar.sem or 0 for bar in bars], color=colours
        )
        axes.bar_label(drawn, [bar.text(digits=3) for bar in bars], padding=4, fontsize=8)
        axes.margins(x=0.25)
        _plain(axes)
        axes.set(xlabel=f"{readable(ratio)} distances")
    axes.invert_yaxis()
    return _png(figure)


def loss_curves(measured: Measurements) -> bytes:
    """The losses over epochs.

    Args:
        measured: all that was measured.
    """
    figure = Figure(figsize=(9.6, 5.2), layout="constrained")
    grid = figure.subplots(2, 3).flat
    for axes, (name, title) in zip(grid, _LOSSES.items(), strict=False):
        for condition in measured.histories:
            curve = measured.over_epochs(condition, name)
            _line(axes, condition, list(curve), list(curve.values()), markers=False)
        _plain(axes)
        _epochs(axes)
        axes.set(title=title, ylabel="loss")
    # The sixth place is the legend's.
    handles = [_line(axes, name, [], [], markers=False) for name in measured.histories]
    grid[len(_LOSSES)].legend(handles=handles, frameon=False, loc="center")
    grid[len(_LOSSES)].set_axis_off()
    return _png(figure)


def _dream_sheet(model: PAD, images: np.ndarray) -> bytes:
    # NREM's and REM's rows begin with the images that wake's have already.
    rows = [
        *pictures.wake_rows(model, images),
        *pictures.nrem_rows(model, images, _SEED)[1:],
        *pictures.rem_rows(model, images, np.roll(images, -1, axis=0), _SEED)[2:],
    ]
    file = io.BytesIO()
    Image.fromarray(pictures.sheet(rows)).save(file, "png")
    return file.getvalue()


def _line(
    axes: Axes,
    condition: str,
    places: Sequence[float],
    values: Sequence[Statistic],
    scale: float = 1.0,
    *,
    markers: bool = True,
):
    colour, shape, dashes = _STYLES[condition]
    means = scale * np.array([value.mean for value in values])
    errors = scale * np.array([value.sem or 0.0 for value in values])
    (line,) = axes.plot(
        places,
        means,
        color=colour,
        linestyle=dashes,
        marker=shape if markers or len(places) == 1 else None,
        markersize=4,
        label=TITLES[condition],
    )
    if errors.any():
        axes.fill_between(
            places, means - errors, means + errors, color=colour, alpha=0.2, linewidth=0
        )
    return line


def _epochs(axes: Axes) -> None:
    axes.set_xlabel("epochs")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    low, high = axes.get_xlim()
    if high - low < 1:  # a single epoch, or none
        axes.set_xlim(low - 1, high + 1)


def _chance(axes: Axes, chance: float) -> None:
    axes.axhline(100 * chance, color="grey", linestyle=":", linewidth=1, label="chance")


def _legend(axes: Axes) -> None:
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))


def _axes(size: tuple[float, float]) -> tuple[Figure, Axes]:
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    _plain(axes)
    return figure, axes


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    return file.getvalue()
