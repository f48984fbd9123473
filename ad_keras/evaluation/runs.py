"""Evaluates finished runs and exports: from their folders to their results."""

import dataclasses
import importlib.metadata
from collections.abc import Sequence
from pathlib import Path

import tensorflow as tf

from ad_keras import data
from ad_keras.data import ImageSet
from ad_keras.errors import RunError, UsageError
from ad_keras.evaluation import report
from ad_keras.evaluation.config import EvaluateConfig
from ad_keras.evaluation.features import (
    FeatureExtractor,
    classifier_features,
    data_key,
    inception_features,
    short_name,
)
from ad_keras.evaluation.published import differences
from ad_keras.evaluation.suite import OF_DREAMS, Suite, check
from ad_keras.pad.model import PAD
from ad_keras.runs.build import build_model
from ad_keras.runs.checkpoints import Checkpoints
from ad_keras.runs.config import RUN_ONLY, Config
from ad_keras.runs.folder import completed_epochs, load_config
from ad_keras.runs.restore import restore_export, restore_run

_PACKAGES = ("ad_keras", "tensorflow", "keras", "numpy")


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
    """A trained model to be measured.

    Attributes:
        folder: of the run or the export.
        config: of its training.
        model: trained.
        early: the model after the first epoch, if that is kept and training went on.
    """

    folder: Path
    config: Config
    model: PAD
    early: PAD | None


def evaluate(flags: EvaluateConfig) -> tuple[dict, Path]:
    """Measures what the flags name and writes results, pictures and TensorBoard entries.

    Args:
        flags: of the command line.

    Returns:
        What `results.json` says, and the folder that it is in. For several runs, each one's own
        results are in its folder too.

    Raises:
        UsageError: if runs, data or metrics are not as they must be.
        RunError: if a checkpoint cannot be read, or an encoder has collapsed.
    """
    # As in training: a rewriting of graphs that gives up with an alarming message.
    tf.config.optimizer.set_experimental_options({"remapping": False})
    folders = [Path(folder) for folder in flags.run_dir]
    _check_runs(folders)
    # What does not fit is refused before the first of several models is measured.
    subjects = [_restore(folder) for folder in folders] or [_export(Path(flags.encoder))]
    config, metrics = subjects[0].config, flags.chosen_metrics
    dataset = flags.dataset or config.dataset
    train_set, test_set = (
        data.load(
            dataset,
            split,
            data_dir=flags.data_dir or config.data_dir,
            image_size=config.image_size,
        )
        for split in ("train", "test")
    )
    check(metrics, train_set, test_set, flags.images)
    cache = Path(flags.cache_dir).expanduser() / data_key(dataset, train_set)
    features = None
    if set(OF_DREAMS) & set(metrics):
        features = _features(flags, train_set, test_set, cache)

    results = []
    for subject in subjects:
        suite = Suite(
            subject.model,
            train_set,
            test_set,
            cache,
            untrained=_untrained(subject.config),
            early=subject.early,
            features=features,
            images=flags.images,
            probe_seeds=flags.probe_seeds,
            seed=flags.seed,
        )
        try:
            measured = suite.measure(metrics)
        except ValueError as error:
            if isinstance(error, UsageError):
                raise
            raise RunError(f"{subject.folder} cannot be measured: {error}.") from error
        result = _header(subject, dataset, test_set, features) | {"metrics": measured}
        folder = subject.folder
        if flags.output_dir and len(subjects) == 1:
            folder = Path(flags.output_dir)
        report.write(result, folder, suite.maps, test_set.labels)
        report.log(result, (subject.folder if flags.run_dir else folder) / "logs" / "evaluation")
        results.append(result)
    if len(results) == 1:
        return results[0], folder
    beside = folders[0].resolve().parent / f"evaluation-{short_name(dataset)}-{config.condition}"
    folder = Path(flags.output_dir) if flags.output_dir else beside
    combined = report.combine(results)
    report.write(combined, folder)
    return combined, folder


def _check_runs(folders: Sequence[Path]) -> None:
    """Refuses runs that are not finished, or are not seeds of one condition."""
    configs = [load_config(folder) for folder in folders]
    for folder, config in zip(folders, configs, strict=True):
        epochs = completed_epochs(folder)
        if epochs < config.epochs:
            raise UsageError(
                f"the run in {folder} is at epoch {epochs} of {config.epochs}: finish it first, "
                "with the command that started it."
            )
    for folder, config in zip(folders[1:], configs[1:], strict=True):
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
    seeds = [config.seed for config in configs]
    for number, seed in enumerate(seeds):
        if seed in seeds[:number]:
            raise UsageError(
                f"{folders[seeds.index(seed)]} and {folders[number]} have the same --seed={seed}: "
                "a standard error needs runs of different seeds."
            )


def _restore(folder: Path) -> Subject:
    config, model = restore_run(folder)
    early = None
    if config.epochs > 1 and 1 in Checkpoints(model, folder).kept_epochs():
        _, early = restore_run(folder, epoch=1)
    return Subject(folder, config, model, early)


def _export(folder: Path) -> Subject:
    if not folder.is_dir():
        raise UsageError(f"--encoder={folder} is not an existing folder.")
    return Subject(folder, *restore_export(folder), early=None)


def _untrained(config: Config):
    return build_model(dataclasses.replace(config, precision="float32")).encoder


def _features(
    flags: EvaluateConfig, train_set: ImageSet, test_set: ImageSet, cache: Path
) -> FeatureExtractor:
    if flags.features == "inception":
        return inception_features(cache, flags.inception_weights)
    # Not of --seed: all evaluations of a data set share the classifier.
    return classifier_features(train_set, test_set, cache)


def _header(
    subject: Subject, dataset: str, test_set: ImageSet, features: FeatureExtractor | None
) -> dict:
    header = {
        "name": subject.folder.resolve().name,
        "dataset": dataset,
        "class_names": list(test_set.class_names),
        "image_size": subject.config.image_size,
        "condition": subject.config.condition,
        "trained_on": subject.config.dataset,
        "epochs": subject.config.epochs,
        "step": int(subject.model.step.numpy()),
        "training_seed": subject.config.seed,
        "differences": differences(subject.config),
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
    }
    if features is not None:
        header["features"] = {
            "name": features.name,
            "test_accuracy": features.accuracy,
            "weights": features.weights,
        }
    return header
