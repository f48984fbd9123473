"""Pictures of results. Where there are several seeds, bands and bars' whiskers are of 95 %."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ad_keras.measures.statistics import summarise

# Okabe and Ito's colours, told apart by all kinds of colour vision, and two more, so that ten
# classes have ten; shapes and dashes tell the rest.
_COLOURS = (
    *("#0072B2", "#E69F00", "#D55E00", "#009E73", "#CC79A7"),
    *("#56B4E9", "#B8A400", "#000000", "#999999", "#6F2DA8"),
)
_SHAPES, _DASHES = list("os^DvPX*><"), 2 * ["-", "--", "-.", "-", ":"]
_STYLES = list(cycler(color=_COLOURS, marker=_SHAPES, linestyle=_DASHES))
_POINTS = 2000  # of a map; more would hide each other
_MOST_NAMES = 20  # classes whose names fit along an axis

_NAMES = {
    "full": "PAD",
    "no_memory_mix": "w/o memory mix",
    "no_rem": "w/o REM",
    "no_nrem": "w/o NREM",
    "wake_only": "Wake only",
    "rem_noise_only": "REM from noise only",
    "rem_mix_only": "REM from memories only",
    "rem_before_nrem": "REM before NREM",
    "nrem_mixed": "NREM of mixed memories",
    "intra_inter_ratio": "intra/inter-class",
    "occluded_inter_ratio": "clean-occluded/inter-class",
    "nrem_replayed": "NREM, before perturbation",
    "nrem": "NREM",
    "rem": "REM",
    "probe": "paper's probe",
    "logistic_probe": "logistic regression",
    "knn": "nearest neighbours",
    **{f"tile_{side}": f"tiles of {side} px" for side in (1, 2, 4, 8)},
}
_BARS = {
    "layers": ("accuracy on test images", "probe", "ridge_probe"),
    "distances": ("ratio of mean distances", "intra_inter_ratio", "occluded_inter_ratio"),
    "fid": ("FID", "reconstructions", "nrem_replayed", "nrem", "rem"),
}


def readable(name: str) -> str:
    """A condition, or a name of `results.json`, as people write it."""
    return _NAMES.get(name, name.replace("_", " "))


def draw(
    frame: pd.DataFrame,
    classes: Sequence[str],
    chance: float = math.nan,
    confusion: np.ndarray | None = None,
    maps: Mapping[str, pd.DataFrame] = {},
) -> dict[str, Figure]:
    """Draws what can be drawn of the results of one condition.

    Args:
        frame: as `ad_keras.evaluation.report.tidy` makes it.
        classes: their names.
        chance: accuracy of guessing; NaN if it is not known.
        confusion: counts of test images [true class, predicted class], or None.
        maps: coordinates `x` and `y` and the `label` of test images, by the map's name.

    Returns:
        Figures by name: `occlusion`, `confusion`, `layers`, `distances`, `fid` and the maps, as
        far as they were measured.
    """
    figures = {}
    curve = frame[frame.metric == "occlusion"]
    if len(curve):
        lines = curve.assign(series=curve.of, x=100 * curve.figure.astype(float))
        figures["occlusion"] = curves({"": lines}, "occluded tiles [%]", chance=chance)
    if confusion is not None:
        figures["confusion"] = _confusion(confusion, classes)
    for metric, (quantity, *series) in _BARS.items():
        rows = frame[frame.metric == metric].rename(columns={"of": "group", "figure": "series"})
        floor = rows[rows.group == "test_images"].value.mean()
        rows = rows[rows.series.isin(series)]
        if len(rows):
            figures[metric] = bars({"": rows}, quantity, floor)
    for name, points in maps.items():
        figures[name] = scatter({"": points}, classes, "component" if name == "pca" else "t-SNE")
    return figures


def curves(
    panels: Mapping[str, pd.DataFrame],
    quantity: str,
    of: str = "linear separability [%]",
    *,
    order: Sequence[str] | None = None,
    chance: float = math.nan,
    scale: float = 100.0,
) -> Figure:
    """Lines with 95 % bands, of which each point is the mean over seeds.

    Args:
        panels: by title, lines with `series`, `x` and `value`, a line for each seed.
        quantity: along the axis of `x`.
        of: along the other axis.
        order: of all series there could be, which gives each its colour.
        chance: accuracy of guessing, drawn dotted; NaN for none.
        scale: that values are multiplied by.
    """
    figure, grid = _grid(len(panels), 4.4, 3.4)
    for axes, (title, frame) in zip(grid, panels.items(), strict=True):
        names = frame.series.unique().tolist()
        for name in names:
            sums = scale * _intervals(frame[frame.series == name], "x")
            low, high = sums["mean"] - sums.half, sums["mean"] + sums.half
            style = _STYLES[(order or names).index(name) % len(_STYLES)]
            axes.plot(sums.index, sums["mean"], markersize=4, label=readable(name), **style)
            axes.fill_between(sums.index, low, high, color=style["color"], alpha=0.2, linewidth=0)
        if math.isfinite(chance):
            axes.set_ylim(0, scale)  # intervals of two seeds go far beyond what an accuracy can be
            axes.axhline(scale * chance, color="grey", linestyle=":", linewidth=1, label="chance")
        axes.set(title=title, xlabel=quantity)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    grid[0].set_ylabel(of)
    return _with_legend(figure)


def bars(panels: Mapping[str, pd.DataFrame], quantity: str, floor: float = math.nan) -> Figure:
    """Groups of bars with 95 % intervals.

    Args:
        panels: by title, lines with `group`, `series` and `value`, a line for each seed.
        quantity: of the bars.
        floor: value of real test images, drawn dotted; NaN for none.
    """
    groups = max(frame.group.nunique() for frame in panels.values())
    figure, grid = _grid(len(panels), max(4.4, 0.9 * groups), 3.6)
    for axes, (title, frame) in zip(grid, panels.items(), strict=True):
        names, series = (list(dict.fromkeys(frame[column])) for column in ("group", "series"))
        for place, name in enumerate(series):
            sums = _intervals(frame[frame.series == name], "group")
            drawn = axes.bar(
                [names.index(g) + (place + 0.5) * 0.8 / len(series) - 0.4 for g in sums.index],
                sums["mean"],
                0.8 / len(series),
                yerr=sums.half.fillna(0),
                color=_COLOURS[place % len(_COLOURS)],
                label=readable(name),
            )
            axes.bar_label(drawn, fmt=_short, padding=3, fontsize=7)
        axes.set_xticks(range(len(names)), map(readable, names), rotation=30, ha="right")
        if math.isfinite(floor):
            axes.axhline(floor, color="black", linestyle=":", label="real test images")
        axes.set_title(title)
    grid[0].set(ylabel=quantity, ylim=(0, None))  # intervals may reach below, the figures do not
    return _with_legend(figure)


def scatter(
    panels: Mapping[str, pd.DataFrame], classes: Sequence[str], quantity: str = "component"
) -> Figure:
    """Maps of latents, a point for each of the first test images.

    Args:
        panels: by title, lines with `x`, `y` and, where it is known, the class's `label`.
        classes: their names.
        quantity: of the axes.
    """
    figure, grid = _grid(len(panels), 4.4, 3.8, shared=False)
    for axes, (title, points) in zip(grid, panels.items(), strict=True):
        points = points.head(_POINTS)
        labels = points.label if "label" in points else pd.Series(0, points.index)
        for label, rows in points.groupby(labels):
            name = classes[label] if 0 < len(classes) <= _MOST_NAMES else None
            # Dashes would show even at an edge without width.
            style = {**_STYLES[label % len(_STYLES)], "linestyle": "-", "linewidths": 0}
            axes.scatter(rows.x, rows.y, s=14, alpha=0.8, label=name, **style)
        axes.set(title=title, xlabel=f"{quantity} 1", ylabel=f"{quantity} 2")
    return _with_legend(figure)


def _short(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def _intervals(rows: pd.DataFrame, by: str) -> pd.DataFrame:
    """Mean over seeds, and half of its 95 % interval, at each value of a column."""
    sums = rows.dropna(subset="value").groupby(by).value.apply(summarise)
    return pd.DataFrame(sums.to_list(), sums.index, ["mean", "half"], dtype=float)


def _confusion(counts: np.ndarray, classes: Sequence[str]) -> Figure:
    shares = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure, (axes,) = _grid(1, 5.4, 4.6)
    picture = axes.imshow(shares, cmap="cividis", vmin=0, vmax=100)
    if len(classes) <= _MOST_NAMES:
        axes.set_xticks(range(len(classes)), classes, rotation=90)
        axes.set_yticks(range(len(classes)), classes)
    axes.set(xlabel="predicted class", ylabel="true class")
    figure.colorbar(picture, label="share of the true class [%]")
    return figure


def _grid(
    panels: int, width: float, height: float, *, shared: bool = True
) -> tuple[Figure, Sequence[Axes]]:
    columns = 2 if panels == 4 else min(panels, 3)
    rows = -(-panels // columns)
    figure = Figure(figsize=(width * columns + 1.2, height * rows), layout="constrained")
    grid = figure.subplots(rows, columns, sharey=shared, squeeze=False).flatten()
    for axes in grid:
        axes.spines[["top", "right"]].set_visible(False)
    for axes in grid[panels:]:
        axes.set_axis_off()
    return figure, grid[:panels]


def _with_legend(figure: Figure) -> Figure:
    handles = {}
    for axes in figure.axes:
        found, names = axes.get_legend_handles_labels()
        handles |= dict(zip(names, found, strict=True))
    if handles:
        figure.legend(handles.values(), handles.keys(), loc="outside right center", frameon=False)
    return figure
