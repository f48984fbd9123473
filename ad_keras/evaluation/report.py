"""Results as one tidy table, from which come the text, pictures and TensorBoard entries."""

import json
import math
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import tensorflow as tf

from ad_keras.evaluation import plots
from ad_keras.evaluation.published import EPOCHS, LINEAR_SEPARABILITY, SEEDS
from ad_keras.measures.statistics import summarise
from ad_keras.runs.folder import write_atomically

_TITLES = {
    "probe": "linear probe (the paper's, SGD)",
    "logistic_probe": "linear probe (logistic regression)",
    "ridge_probe": "linear probe (ridge)",
    "epochs": "probes of earlier epochs",
    "knn": "nearest neighbours (cosine)",
    "occlusion": "paper's probe under occlusion",
    "distances": "distances (ratios of means)",
    "pca": "principal components",
    "dimensions": "filled dimensions",
    "fid": "FID",
    "kid": "KID x 1000",
    "density_coverage": "density, coverage",
}
_UNITLESS = {"distances", "dimensions", "fid", "kid", "density_coverage"}  # the others are shares
_LEFT_OUT = {"alpha", "intra_class", "inter_class", "clean_occluded", "deviation_of_subsets"}
_SHOWN_OCCLUSIONS = (("tile_4", "0.3"), ("tile_4", "0.6"))
_MAPPED = 2000  # points of a map that are written


def tidy(results: dict) -> pd.DataFrame:
    """Every figure of results, a line each.

    Args:
        results: of one model as `results.json` has them, or of several, combined.

    Returns:
        Columns `run`; `seed`, of its training; `metric`; `of`, such as `trained`, `late` or
        `tile_4`; `figure`, such as `accuracy`, `nrem`, the share of occluded tiles, or nothing;
        `protocol`, its text; and `value`. Of principal components there is the sum of the explained
        variance. Figures by class are left out.
    """
    names = results.get("runs", [results.get("name")])
    seeds = results.get("training_seeds", [results.get("training_seed")])
    rows = [
        (run, seed, metric, *figure.partition("/")[::2], entry["protocol"].get("text"), value)
        for metric, entry in results["metrics"].items()
        for run, seed, values in zip(names, seeds, _by_run(results, metric), strict=True)
        for figure, value in _figures(metric, values or {}, entry["protocol"])
    ]
    columns = ["run", "seed", "metric", "of", "figure", "protocol", "value"]
    return pd.DataFrame(rows, columns=columns).astype({"value": float})


def combine(results: Sequence[dict]) -> dict:
    """Mean and standard error over runs of the same condition.

    Args:
        results: at least two, as `evaluate` makes them.

    Returns:
        The same with, for each metric, `values` of each run (None where it lacks the metric, or
        measured it otherwise than others, such as with more probe seeds or in other features), and
        by figure their `mean` and `sem` (the deviation has n - 1) over the runs that have it.
        `lacking` names what some of the runs do not have, such as an early epoch.
    """
    single = ("name", "step", "training_seed", "weights", "metrics")
    # Those with values come last, since a protocol without has no details, and of these those
    # with early dreams.
    entries = [pair for result in results for pair in result["metrics"].items()]
    entries.sort(key=lambda pair: (bool(pair[1]["values"]), "early_epoch" in pair[1]["protocol"]))
    entries = dict(entries)
    names, seeds = zip(*((r["name"], r["training_seed"]) for r in results), strict=True)
    if len(set(names)) < len(names):  # folders of one name in several places
        names = [f"{name}, seed {seed}" for name, seed in zip(names, seeds, strict=True)]
    combined = {
        "runs": list(names),
        "training_seeds": list(seeds),
        **{key: value for result in results for key, value in result.items() if key not in single},
        "metrics": {
            name: {
                "protocol": entry["protocol"],
                "values": [_values(result, name, entry["protocol"]) for result in results],
                "mean": {},
                "sem": {},
            }
            for name, entry in entries.items()
        },
    }
    measured = tidy(combined).dropna(subset="value")
    for (metric, of, figure), values in measured.groupby(["metric", "of", "figure"]).value:
        summary, name = summarise(values), f"{of}/{figure}".rstrip("/")
        combined["metrics"][metric]["mean"][name] = summary.mean
        combined["metrics"][metric]["sem"][name] = summary.sem
    parts = (measured.metric + " " + measured.of).groupby(measured.run).unique()
    everything = dict.fromkeys(part for run in parts for part in run)
    lacking = {
        run: missing
        for run in combined["runs"]
        if (missing := [part for part in everything if part not in set(parts.get(run, []))])
    }
    return combined | ({"lacking": lacking} if lacking else {})


def table(results: dict) -> str:
    """What a person wants to see of the results, a figure a line.

    Args:
        results: of one model, or of several, combined.
    """
    lines, shown = [("metric", "of", "ours", "published")], None
    grouped = tidy(results).groupby(["metric", "of", "figure"], sort=False).value
    for (metric, *path), values in grouped:
        label = _label(metric, *path)
        if label is None:
            continue
        title = _TITLES.get(metric, metric) if metric != shown else ""
        of_table_1 = (metric, *path) == ("probe", "trained", "mean_of_seeds")
        published = _published(results) if of_table_1 else ""
        lines.append((title, label, _number(metric, values), published))
        shown = metric
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
    """Writes results, pictures, and maps.

    These are `results.json`, every figure as a line of `results.csv`, `figures/*.png`, and the
    maps' first 2,000 points as CSV beside them.

    Args:
        results: of one model, or of several, combined. NaN becomes null.
        folder: made if need be.
        maps: coordinates [N, 2] of the first N test images, by the map's name.
        labels: of the test images, or None.
    """
    figures = folder / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    finite = json.loads(json.dumps(results), parse_constant=lambda _: None)
    write_atomically(folder / "results.json", json.dumps(finite, indent=1) + "\n")
    frame = tidy(results)
    write_atomically(folder / "results.csv", frame.to_csv(index=False))
    points = {}
    for name, coordinates in (maps or {}).items():
        points[name] = pd.DataFrame(coordinates[:_MAPPED], columns=["x", "y"])
        if labels is not None:
            points[name]["label"] = labels[: len(points[name])]
        text = points[name].to_csv(index=False, float_format="%.5g")
        write_atomically(figures / f"{name}.csv", text)
    drawn = plots.draw(frame, results["class_names"], chance(results), _confusion(results), points)
    for name, figure in drawn.items():
        figure.savefig(figures / f"{name}.png", dpi=120)


def log(results: dict, folder: Path) -> None:
    """Writes the figures for TensorBoard, in place of those of an earlier evaluation.

    Args:
        results: of one model.
        folder: of the events.
    """
    shutil.rmtree(folder, ignore_errors=True)
    writer = tf.summary.create_file_writer(str(folder))
    with writer.as_default(step=int(results["epochs"])):
        for row in tidy(results).dropna(subset="value").itertuples():
            tag = f"evaluation/{row.metric}/{row.of}"
            if row.metric == "occlusion":  # the share of occluded tiles, in percent, is the step
                tf.summary.scalar(tag, row.value, step=round(100 * float(row.figure)))
            else:
                tf.summary.scalar(f"{tag}/{row.figure}".rstrip("/"), row.value)
    writer.close()


def chance(results: dict) -> float:
    """Accuracy of always guessing the commonest class of the test images; NaN without labels."""
    if "chance" in results:
        return math.nan if results["chance"] is None else results["chance"]
    confusion = _confusion(results)  # results of earlier versions
    if confusion is None or not np.isfinite(confusion).all():
        return 1 / len(results["class_names"])
    totals = confusion.sum(axis=1)
    return float(totals.max() / totals.sum())


def _confusion(results: dict) -> np.ndarray | None:
    """Counts of test images [true class, predicted class], over all runs, if they were probed."""
    counts = [
        probe["trained"]["confusion"]
        for probe in _by_run(results, "probe")
        if probe and "confusion" in probe["trained"]
    ]
    return np.sum(np.asarray(counts, np.float64), axis=0) if counts else None


def _values(result: dict, metric: str, protocol: dict) -> dict | None:
    """Values of a metric, if a run has it and measured it by this protocol.

    Those of early dreams are left out if they are of another epoch.
    """
    entry = result["metrics"].get(metric, {"protocol": {}, "values": None})
    details = protocol.keys() - {"text", "gaps", "early_epoch"}
    alike = all(entry["protocol"].get(name, protocol[name]) == protocol[name] for name in details)
    early, values = "early_epoch", entry["values"] if alike else None
    if values and entry["protocol"].get(early) != protocol.get(early):
        values = {name: value for name, value in values.items() if name != "early"}
    return values


def _by_run(results: dict, metric: str) -> list[dict | None]:
    """Values of a metric: of each of the runs, or of the one."""
    values = results["metrics"].get(metric, {}).get("values")
    return (values or []) if "runs" in results else [values]


def _figures(metric: str, values: dict, protocol: dict) -> Iterator[tuple[str, float]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from ((f"{key}/{rest}", v) for rest, v in _figures(metric, value, protocol))
        elif metric == "occlusion":
            for share, accuracy in zip(protocol["probabilities"], value, strict=True):
                yield f"{key}/{share:g}", accuracy
        elif metric == "pca":
            yield key, float(np.sum(value))
        elif not isinstance(value, list):
            yield key, value


def _label(metric: str, of: str, figure: str) -> str | None:
    """A figure's name in the table, or None if it is not shown."""
    if metric == "occlusion":
        shown = f"{100 * float(figure):.0f} % of {plots.readable(of)}"
        return shown if (of, figure) in _SHOWN_OCCLUSIONS else None
    path = [of, *figure.split("/")]
    if path[-1] in _LEFT_OUT or (metric == "density_coverage" and of == "early"):
        return None
    names = {"accuracy": "", "distance": "", "explained_variance": "variance in two"}
    parts = (names.get(part, plots.readable(part)) for part in path)
    return ", ".join(part for part in parts if part)


def _number(metric: str, values: pd.Series) -> str:
    values = values[np.isfinite(values)]
    if not len(values):
        return "not finite"
    summary = summarise(values)
    scale = {"kid": 1000.0}.get(metric, 1.0 if metric in _UNITLESS else 100.0)
    digits = {"dimensions": 1, "fid": 2, "kid": 2}.get(metric, 3 if metric in _UNITLESS else 1)
    unit = "" if metric in _UNITLESS else " %"
    error = f" +- {scale * summary.sem:.{digits}f}" if summary.count > 1 else ""
    return f"{scale * summary.mean:.{digits}f}{error}{unit}"


def _published(results: dict) -> str:
    table_1 = LINEAR_SEPARABILITY.get(results["dataset"], {})
    unlike = results.get("differences", ["unknown"]) or results["trained_on"] != results["dataset"]
    if unlike or results["condition"] not in table_1:
        return ""
    mean, error = table_1[results["condition"]]
    return f"{100 * mean:.2f} +- {100 * error:.2f} % (epoch {EPOCHS}, {SEEDS} seeds)"


def _heading(results: dict) -> list[str]:
    trained = f"{results['condition']}, epoch {results['epochs']}, {results['precision']}"
    if "runs" in results:
        who = f"{len(results['runs'])} runs of {trained}: mean +- standard error"
    else:
        who = f"{results['name']}: {trained}, seed {results['training_seed']}"
    lines = [f"{who}, on {results['dataset']}"]
    for run, missing in results.get("lacking", {}).items():
        lines.append(f"{run} has no {', '.join(missing)}: those means are without it")
    if results.get("differences"):
        lines.append(f"not as in the paper: {'; '.join(results['differences'])}")
    if "features" in results:
        features = results["features"]
        accuracy = features["test_accuracy"]
        tested = "" if accuracy is None else f", test accuracy {100 * accuracy:.1f} %"
        lines.append(f"dreams compared in features of: {features['name']}{tested}")
    return lines
