"""Results as a table, a file, pictures and TensorBoard entries."""

import json
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from ad_keras.evaluation import plots
from ad_keras.evaluation.published import LINEAR_SEPARABILITY
from ad_keras.runs.folder import write_atomically

_TITLES = {
    "probe": "linear probe (the paper's, SGD)",
    "ridge_probe": "linear probe (ridge)",
    "layers": "layers",
    "knn": "nearest neighbours (cosine)",
    "occlusion": "paper's probe under occlusion",
    "distances": "distances (ratios of means)",
    "pca": "principal components",
    "fid": "FID",
    "kid": "KID x 1000",
    "density_coverage": "density, coverage",
}
_UNITLESS = {"distances", "fid", "kid", "density_coverage"}  # the others are shares
_LEFT_OUT = {"alpha", "intra_class", "inter_class", "clean_occluded", "deviation_of_subsets"}
_SHOWN_TILE = "tile_4"  # of the occlusion curves: the paper's, at 30 % and 60 %
_SHOWN_OCCLUSIONS = (3, 6)
_PUBLISHED_EPOCHS = 50


def combine(results: Sequence[dict]) -> dict:
    """Mean and standard error over runs of the same condition.

    Args:
        results: at least two, as `evaluate` makes them, of the same metrics.

    Returns:
        The same with `mean` and `sem` (of the mean; the deviation has n - 1) for `values`.
    """
    first = results[0]
    shared = {
        key: value
        for key, value in first.items()
        if key not in ("name", "step", "training_seed", "metrics")
    }
    metrics = {}
    for name, entry in first["metrics"].items():
        values = [result["metrics"][name]["values"] for result in results]
        metrics[name] = {
            "protocol": entry["protocol"],
            "mean": _over_runs(values, lambda runs: runs.mean(axis=0)),
            "sem": _over_runs(values, lambda runs: runs.std(axis=0, ddof=1) / len(runs) ** 0.5),
        }
    return {
        "runs": [result["name"] for result in results],
        "training_seeds": [result["training_seed"] for result in results],
        **shared,
        "metrics": metrics,
    }


def table(results: dict) -> str:
    """What a person wants to see of the results, a figure a line.

    Args:
        results: of one model, or of several, combined.
    """
    lines = [("metric", "of", "ours", "published")]
    for name, entry in results["metrics"].items():
        title = _TITLES.get(name, "")
        errors = dict(_figures(name, entry["sem"])) if "sem" in entry else {}
        for label, value in _figures(name, entry.get("mean", entry.get("values"))):
            published = _published(results) if (name, label) == ("probe", "trained") else ""
            shown = _number(name, value, errors.get(label))
            lines.append((title, label, shown, published))
            title = ""
    widths = [max(len(line[column]) for line in lines) for column in range(4)]
    rule = "-" * (sum(widths) + 6)
    rows = [
        f"{title:<{widths[0]}}  {of:<{widths[1]}}  {ours:>{widths[2]}}  {published:>{widths[3]}}"
        for title, of, ours, published in lines
    ]
    return "\n".join([*_heading(results), rule, rows[0], rule, *map(str.rstrip, rows[1:])])


def write(
    results: dict,
    folder: Path,
    maps: dict[str, np.ndarray] | None = None,
    labels: np.ndarray | None = None,
) -> None:
    """Writes `results.json` and `figures/*.png`.

    Args:
        results: of one model, or of several, combined. NaN becomes null.
        folder: made if need be.
        maps: coordinates [N, 2] of the first N test images, by the map's name.
        labels: of the test images, or None.
    """
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    text = json.dumps(_without_nan(results), indent=1, allow_nan=False)
    write_atomically(folder / "results.json", text + "\n")
    for name, figure in plots.draw(results, maps or {}, labels).items():
        figure.savefig(folder / "figures" / f"{name}.png", dpi=120)


def log(results: dict, folder: Path) -> None:
    """Writes the figures for TensorBoard, in place of those of an earlier evaluation.

    Args:
        results: of one model.
        folder: of the events.
    """
    shutil.rmtree(folder, ignore_errors=True)
    writer = tf.summary.create_file_writer(str(folder))
    with writer.as_default(step=results["epochs"]):
        for name, entry in results["metrics"].items():
            for path, value in _leaves(entry["values"]):
                if not isinstance(value, list) and math.isfinite(value):
                    tf.summary.scalar("/".join(("evaluation", name, *path)), value)
        for tile, curve in results["metrics"].get("occlusion", {}).get("values", {}).items():
            # The share of occluded tiles, in percent, is the step.
            for place, accuracy in enumerate(curve):
                tf.summary.scalar(f"evaluation/occlusion/{tile}", accuracy, step=10 * place)
    writer.close()


def _over_runs(values: Sequence, reduce: Callable[[np.ndarray], np.ndarray]):
    if isinstance(values[0], dict):
        return {key: _over_runs([value[key] for value in values], reduce) for key in values[0]}
    return reduce(np.asarray(values, np.float64)).tolist()


def _leaves(values: dict, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], object]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, (*path, key))
        else:
            yield (*path, key), value


def _figures(metric: str, values: dict) -> Iterator[tuple[str, float]]:
    """The figures of a metric that the table shows, with their names."""
    for path, value in _leaves(values):
        name = path[-1]
        if metric == "occlusion":
            for place in _SHOWN_OCCLUSIONS * (name == _SHOWN_TILE):
                yield f"{10 * place} % of tiles of 4 px", value[place]
        elif metric == "density_coverage" and path[0] == "early":
            continue
        elif metric == "pca":
            yield f"{path[0]}, variance in two", float(np.sum(value))
        elif not isinstance(value, list) and name not in _LEFT_OUT:
            parts = [plots.readable(part) for part in path if part not in ("accuracy", "distance")]
            yield ", ".join(parts), value


def _number(metric: str, value: float, error: float | None) -> str:
    if value is None or math.isnan(value):
        return "not finite"
    scale = {"kid": 1000.0}.get(metric, 1.0 if metric in _UNITLESS else 100.0)
    digits = {"fid": 2, "kid": 2}.get(metric, 3 if metric in _UNITLESS else 1)
    unit = "" if metric in _UNITLESS else " %"
    shown = f"{scale * value:.{digits}f}"
    return shown + (f" +- {scale * error:.{digits}f}" if error is not None else "") + unit


def _published(results: dict) -> str:
    if results["trained_on"] != results["dataset"]:
        return ""
    found = LINEAR_SEPARABILITY.get(results["dataset"], {}).get(results["condition"])
    if found is None:
        return ""
    mean, error = found
    return f"{100 * mean:.2f} +- {100 * error:.2f} % (epoch {_PUBLISHED_EPOCHS}, 4 seeds)"


def _heading(results: dict) -> list[str]:
    trained = f"{results['condition']}, epoch {results['epochs']}"
    if "runs" in results:
        who = f"{len(results['runs'])} runs of {trained}: mean +- standard error"
    else:
        who = f"{results['name']}: {trained}, seed {results['training_seed']}"
    lines = [f"{who}, on {results['dataset']}"]
    if "features" in results:
        features = results["features"]
        line = f"dreams compared in features of: {features['name']}"
        if features["test_accuracy"] is not None:
            line += f", test accuracy {100 * features['test_accuracy']:.1f} %"
        lines.append(line)
    return lines


def _without_nan(value):
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
