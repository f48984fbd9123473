"""Pictures of results."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart by all kinds of colour vision, and two more, so that ten
# classes have ten; shapes tell the rest.
_COLOURS = (
    *("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9"),
    *("#D55E00", "#000000", "#B8A400", "#999999", "#6F2DA8"),
)
_SHAPES = "osD^vPX*<>"
_POINTS = 2000  # of a map; more would hide each other
_MOST_NAMES = 20  # classes whose names fit along an axis


_NAMES = {
    "intra_inter_ratio": "intra/inter-class",
    "occluded_inter_ratio": "clean-occluded/inter-class",
    "nrem_replayed": "NREM, before occlusion",
    "nrem": "NREM",
    "rem": "REM",
    "probe": "paper's probe",
    "ridge_probe": "ridge probe",
}


def readable(name: str) -> str:
    """A name of `results.json` as people write it."""
    return _NAMES.get(name, name.replace("_", " "))


def draw(
    results: dict, maps: dict[str, np.ndarray], labels: np.ndarray | None
) -> dict[str, Figure]:
    """Draws what can be drawn of results.

    Args:
        results: of one model, or of several, combined.
        maps: coordinates [N, 2] of the first N test images, by the map's name.
        labels: of the test images, or None.

    Returns:
        Figures by name: `occlusion`, `confusion`, `layers`, `distances`, `fid` and the maps, as
        far as they were measured.
    """
    metrics, names = results["metrics"], results["class_names"]
    parts = {
        name: (entry.get("mean", entry.get("values")), entry.get("sem"))
        for name, entry in metrics.items()
    }
    figures = {}
    if "occlusion" in parts:
        shares = metrics["occlusion"]["protocol"]["probabilities"]
        figures["occlusion"] = _curves(*parts["occlusion"], shares, 1 / len(names))
    if "probe" in parts:
        figures["confusion"] = _confusion(parts["probe"][0]["trained"]["confusion"], names)
    if "layers" in parts:
        figures["layers"] = _bars(
            *parts["layers"], ("probe", "ridge_probe"), "accuracy on test images"
        )
    if "distances" in parts:
        ratios = ("intra_inter_ratio", "occluded_inter_ratio")
        figures["distances"] = _bars(*parts["distances"], ratios, "ratio of mean distances")
    if "fid" in parts:
        values, errors = parts["fid"]
        kinds = tuple(values["late"])
        figures["fid"] = _bars(
            _times(values),
            _times(errors),
            kinds,
            "FID",
            ("real test images", values["test_images"]),
        )
    for name, coordinates in maps.items():
        figures[name] = _map(coordinates, labels, names, "component" if name == "pca" else "t-SNE")
    return figures


def _times(values: dict | None) -> dict | None:
    if values is None:
        return None
    return {time: values[time] for time in ("early", "late") if time in values}


def _axes(width: float = 5.0, height: float = 3.6):
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _curves(curves: dict, errors: dict | None, shares: Sequence[float], chance: float) -> Figure:
    figure, axes = _axes()
    percent = 100 * np.asarray(shares)
    for place, (name, curve) in enumerate(curves.items()):
        axes.errorbar(
            percent,
            100 * np.asarray(curve),
            None if errors is None else 100 * np.asarray(errors[name]),
            color=_COLOURS[place],
            marker=_SHAPES[place],
            markersize=4,
            label=f"tiles of {name.removeprefix('tile_')} px",
        )
    axes.axhline(100 * chance, color="grey", linestyle=":", label="chance")
    axes.set(xlabel="occluded tiles [%]", ylabel="linear separability [%]")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    return figure


def _confusion(counts: Sequence[Sequence[float]], names: Sequence[str]) -> Figure:
    counts = np.asarray(counts, float)
    shares = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure, axes = _axes(5.4, 4.6)
    picture = axes.imshow(shares, cmap="cividis", vmin=0, vmax=100)
    if len(names) <= _MOST_NAMES:
        axes.set_xticks(range(len(names)), names, rotation=90)
        axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="predicted class", ylabel="true class")
    figure.colorbar(picture, label="share of the true class [%]")
    return figure


def _bars(
    values: dict,
    errors: dict | None,
    series: Sequence[str],
    quantity: str,
    line: tuple[str, float] | None = None,
) -> Figure:
    """Groups of bars, one for each key of `values`, with a bar for each of `series`."""
    figure, axes = _axes(max(5.0, 1.3 * len(values)))
    width = 0.8 / len(series)
    for place, name in enumerate(series):
        axes.bar(
            np.arange(len(values)) + (place - (len(series) - 1) / 2) * width,
            [group[name] for group in values.values()],
            width,
            yerr=None if errors is None else [group[name] for group in errors.values()],
            color=_COLOURS[place],
            label=readable(name),
        )
    axes.set_xticks(range(len(values)), [readable(name) for name in values])
    if line is not None:
        axes.axhline(line[1], color="black", linestyle=":", label=line[0])
    axes.set(ylabel=quantity)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _map(
    coordinates: np.ndarray, labels: np.ndarray | None, names: Sequence[str], quantity: str
) -> Figure:
    figure, axes = _axes(5.6, 4.4)
    coordinates = coordinates[:_POINTS]
    classes = np.zeros(len(coordinates), int) if labels is None else labels[: len(coordinates)]
    for label in np.unique(classes):
        axes.scatter(
            *coordinates[classes == label].T,
            s=14,
            linewidths=0,
            alpha=0.8,
            color=_COLOURS[label % len(_COLOURS)],
            marker=_SHAPES[label % len(_SHAPES)],
            label=names[label] if names else None,
        )
    axes.set(xlabel=f"{quantity} 1", ylabel=f"{quantity} 2")
    if 0 < len(names) <= _MOST_NAMES:
        axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5), markerscale=1.5)
    return figure
