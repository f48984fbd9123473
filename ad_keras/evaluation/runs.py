"""Evaluates runs and exports: from their folders to their results."""

import dataclasses
import functools
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import joblib
import numpy as np

from ad_keras import data
from ad_keras.data import ImageSet
from ad_keras.errors import Interrupted, RunError, UsageError, first_line
from ad_keras.evaluation import report
from ad_keras.evaluation.config import METRICS, EvaluateConfig
from ad_keras.evaluation.features import FeatureExtractor, classifier_features, inception_features
from ad_keras.evaluation.published import differences
from ad_keras.evaluation.suite import OF_DREAMS, Suite, check
from ad_keras.pad.model import PAD
from ad_keras.runs.build import build_model
from ad_keras.runs.checkpoints import Checkpoints
from ad_keras.runs.config import RUN_ONLY, Config
from ad_keras.runs.export import versions
from ad_keras.runs.folder import digest, load_config, read_record
from ad_keras.runs.restore import epochs_behind, restore_export, restore_run

_say = functools.partial(print, flush=True)


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
    """A trained model to be measured.

    Attributes:
        folder: of the run or the export.
        config: of its training.
        model: trained.
        epoch: how many epochs the model has behind it, maybe not whole ones.
        earlier: the model after each epoch before that is kept, as far as it is measured.
    """

    folder: Path
    config: Config
    model: PAD
    epoch: float
    earlier: dict[int, PAD]


def evaluate(flags: EvaluateConfig) -> tuple[dict, Path]:
    """Measures what the flags name and writes results, pictures and TensorBoard entries.

    Earlier results of the same weights and data that are not measured now are kept.

    Args:
        flags: of the command line.

    Returns:
        What `results.json` says, and the folder that it is in. For several runs, each one's own
        results are in its folder too.

    Raises:
        UsageError: if runs, data or metrics are not as they must be.
        RunError: if a checkpoint cannot be read, or nothing could be measured.
    """
    folders = [Path(folder) for folder in flags.run_dir]
    _check_runs(folders)
    # What does not fit is refused before the first of several models is measured.
    metrics = flags.chosen_metrics
    subjects = [_restore(folder, flags.epoch, metrics) for folder in folders]
    _check_epochs(subjects)
    subjects = subjects or [_export(Path(flags.export), metrics)]
    config = subjects[0].config
    dataset = flags.dataset or config.dataset
    places = {"data_dir": flags.data_dir or config.data_dir, "image_size": config.image_size}
    train_set = data.load(dataset, "train", **places)
    if flags.held_out:
        train_set, test_set = _held_out(subjects[0], dataset, train_set)
    else:
        test_set = data.load(dataset, "test", **places)
    check(metrics, train_set, test_set, flags.num_dreams)
    content = joblib.hash((train_set, test_set))
    cache = Path(flags.cache_dir).expanduser()
    features = None
    if set(OF_DREAMS) & set(metrics):
        if flags.features == "inception":
            features = inception_features(cache, flags.inception_weights)
        else:  # not of --seed: all evaluations on the same images share the classifier
            features = classifier_features(train_set, test_set, cache)

    results = []
    for subject in subjects:
        untrained = build_model(dataclasses.replace(subject.config, precision="float32"))
        options = {name: getattr(flags, name) for name in ("num_dreams", "probe_seeds", "seed")}
        options |= {"untrained": untrained.encoder, "earlier": subject.earlier}
        suite = Suite(subject.model, train_set, test_set, cache, features=features, **options)
        step, planned = int(subject.model.step.numpy()), subject.config.epochs
        if subject.epoch != planned:
            _say(f"{subject.folder}: step {step}, epoch {subject.epoch} of {planned}")
        try:
            # A progress bar shows nothing where its output is a file.
            measured = suite.measure(metrics, None if sys.stderr.isatty() else _say)
        except ValueError as error:
            raise RunError(f"{subject.folder} cannot be measured: {error}.") from error
        for metric, entry in measured.items():
            for what, reason in entry["protocol"].get("gaps", {}).items():
                _say(f"not measured: {metric}, {what}: {reason}")
        header = _header(subject, dataset, test_set, features) | {"data": content}
        folder = subject.folder
        if flags.export:  # the next export replaces the folder and all in it
            folder = folder.resolve().with_name(f"{folder.resolve().name}-evaluation")
        if flags.output_dir and len(subjects) == 1:
            folder = Path(flags.output_dir)
        logs = folder / "logs" / ("held_out" if flags.held_out else "evaluation")
        if flags.held_out:
            header["held_out"] = True
            header["differences"].append("measured on held-out training images")
            folder = folder if flags.output_dir else folder / "held_out"
        result = _with_earlier(header | {"metrics": measured}, folder)
        report.write(result, folder, suite.maps, test_set.labels)
        report.log(result, logs)
        results.append(result)
    if len(results) == 1:
        return results[0], folder
    name = f"evaluation-{data.short_name(dataset)}-{config.condition}"
    beside = folders[0].resolve().parent / name
    folder = Path(flags.output_dir) if flags.output_dir else beside
    combined = report.combine(results)
    for name in ("confusion", *METRICS):  # of an earlier evaluation
        (folder / "figures" / f"{name}.png").unlink(missing_ok=True)
    report.write(combined, folder)
    return combined, folder


def _held_out(subject: Subject, dataset: str, train_set: ImageSet) -> tuple[ImageSet, ImageSet]:
    """The training images without those that training can hold out, and these."""
    config = subject.config
    if dataset != config.dataset:
        raise UsageError(f"--held_out is for the data of the training, --dataset={config.dataset}.")
    seen = train_set.take(config.train_examples or len(train_set))
    fitted, held_out = map(seen.take, data.validation_split(len(seen), config.seed))
    known = config.hold_out and (subject.folder / "data.json").is_file()  # exports have none
    if known and read_record(subject.folder, "data.json")["sha256"] != digest(fitted.images):
        raise UsageError(
            f"{subject.folder} was trained on some of the images that --held_out would take: a "
            "search splits them by its own seed. Its scores are in history.json."
        )
    return fitted, held_out


def _with_earlier(result: dict, folder: Path) -> dict:
    """Adds the metrics of an earlier evaluation that were not measured now.

    They are dropped, with their pictures, if the weights or the data have changed since; those of
    dreams also if they were measured in other features.
    """
    file, own = folder / "results.json", result["metrics"]
    try:
        earlier = json.loads(file.read_text())
        others = {name: entry for name, entry in earlier["metrics"].items() if name not in own}
    except FileNotFoundError:
        return result
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        _say(f"{file} cannot be read ({first_line(error)}): it is replaced.")
        return result
    same = all(
        earlier.get(name) == result[name]
        for name in ("step", "training_seed", "weights", "data", "trained_on", "versions")
    )
    if same and "features" in earlier and "features" not in result:
        result = {"features": earlier["features"]} | result
    old = set(OF_DREAMS) if earlier.get("features") != result.get("features") else set()
    if dropped := [name for name in others if name in old or not same]:
        gone = ", ".join(dropped)
        _say(f"{file}: {gone} dropped, measured of other weights, data, features or versions.")
    for name in (*dropped, *own):  # what was measured now, and has values, is drawn anew
        picture = "confusion" if name == "probe" else name
        for path in (folder / "figures").glob(f"{picture}.*"):
            path.unlink()
    metrics = {name: entry for name, entry in others.items() if name not in dropped} | own
    return result | {"metrics": {name: metrics[name] for name in METRICS if name in metrics}}


def _check_runs(folders: Sequence[Path]) -> None:
    """Refuses runs that are not seeds of one condition."""
    configs = [load_config(folder) for folder in folders]
    by_seed = {}
    for folder, config in zip(folders, configs, strict=True):
        before, now = dataclasses.asdict(configs[0]), dataclasses.asdict(config)
        different = [
            f"--{name} is {before[name]} and {now[name]}"
            for name in now
            if name not in RUN_ONLY - {"epochs"} | {"seed"} and before[name] != now[name]
        ]
        if different:
            raise UsageError(
                f"{folders[0]} and {folder} are not seeds of one condition: {'; '.join(different)}."
            )
        if (other := by_seed.setdefault(config.seed, folder)) is not folder:
            raise UsageError(
                f"{other} and {folder} have the same --seed={config.seed}: a standard error needs "
                "runs of different seeds."
            )


def _check_epochs(subjects: Sequence[Subject]) -> None:
    """Refuses the mean over runs of which some are not as far as the others."""
    reached = {str(subject.folder): subject.epoch for subject in subjects}
    if len(set(reached.values())) > 1:
        shown = ", ".join(f"{folder} is at epoch {epoch}" for folder, epoch in reached.items())
        raise UsageError(f"{shown}: choose one that all have with --epoch=N.")


def _restore(folder: Path, epoch: int, metrics: Sequence[str]) -> Subject:
    config, model = restore_run(folder, epoch or None)
    reached = epochs_behind(folder, config, model)
    kept = [number for number in Checkpoints(model, folder).kept_epochs() if number < reached]
    if "epochs" not in metrics:  # of dreams, only the first is compared
        kept = kept[:1] if set(OF_DREAMS) & set(metrics) else []
    earlier = {}
    for number in kept:
        try:
            earlier[number] = restore_run(folder, number)[1]
        except Interrupted:
            raise
        except RunError as error:  # the model that is measured can be read
            _say(f"{error} It is left out.")
    return Subject(folder, config, model, reached, earlier)


def _export(folder: Path, metrics: Sequence[str]) -> Subject:
    if not folder.is_dir():
        raise UsageError(f"--export={folder} is not an existing folder.")
    of_dreams = [name for name in OF_DREAMS if name in metrics]
    if of_dreams and (folder / "encoder.keras").is_file() and not (folder / "generator").is_dir():
        raise UsageError(
            f"{folder} has no generator, which {', '.join(of_dreams)} need: choose other --metrics."
        )
    config, model = restore_export(folder, generator=bool(of_dreams))
    # Exports of earlier versions do not say how many epochs they have behind them.
    epoch = json.loads((folder / "metadata.json").read_text()).get("epochs", config.epochs)
    return Subject(folder, config, model, epoch, earlier={})


def _header(
    subject: Subject, dataset: str, test_set: ImageSet, features: FeatureExtractor | None
) -> dict:
    labels = test_set.labels
    header = {
        "name": subject.folder.resolve().name,
        "dataset": dataset,
        "class_names": list(test_set.class_names),
        "chance": None if labels is None else float(np.bincount(labels).max() / len(labels)),
        "image_size": subject.config.image_size,
        "condition": subject.config.condition,
        "trained_on": subject.config.dataset,
        "epochs": subject.epoch,
        "planned_epochs": subject.config.epochs,
        "step": int(subject.model.step.numpy()),
        "training_seed": subject.config.seed,
        "weights": joblib.hash(subject.model.encoder.get_weights()),
        "precision": subject.config.precision,
        "differences": differences(subject.config, subject.epoch),
        "versions": versions(),
    }
    if features is not None:
        told = {"name": features.name, "test_accuracy": features.accuracy}
        header["features"] = told | {"weights": features.weights}
    return header
