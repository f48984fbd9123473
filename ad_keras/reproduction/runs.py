"""Trains what is missing, measures it, and says beforehand how long that takes."""

import contextlib
import dataclasses
import functools
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import joblib
import keras
import numpy as np

from ad_keras import data
from ad_keras.cli import interruptible
from ad_keras.compute.cluster import refuse_workers
from ad_keras.data import ImageSet
from ad_keras.errors import Interrupted, RunError, UsageError
from ad_keras.evaluation.features import FeatureExtractor, inception_features
from ad_keras.evaluation.runs import evaluate
from ad_keras.evaluation.suite import Suite, check
from ad_keras.reproduction.config import ReproduceConfig
from ad_keras.reproduction.report import read_runs, write_report
from ad_keras.runs.build import build_model
from ad_keras.runs.checkpoints import newest_step
from ad_keras.runs.config import RUN_ONLY, Config
from ad_keras.runs.export import check_export_folder, versions
from ad_keras.runs.folder import (
    RUN,
    load_config,
    read_history,
    read_record,
    refuse_other_flags,
    write_atomically,
)
from ad_keras.runs.training import chosen_images, describe_images, refuse_other_images, train

_WARM_UP_STEPS, _TIMED_STEPS = 4, 10
_TIMED_IMAGES = 2000  # that measuring is timed on
_PACKAGES = ("ad_keras", "tensorflow", "keras", "numpy", "scipy", "scikit-learn")
_PLACES = ("data_dir", "cache_dir")  # on which no result depends
_RECORD = "measured.json"
_RUN = dataclasses.replace(RUN, flag="--runs_dir", renewal="delete its folder")


class Run(NamedTuple):
    """A training run, the epochs it has behind it, and whether it is trained and exported."""

    config: Config
    completed: int
    finished: bool

    @property
    def state(self) -> str:
        """What is to be done with it."""
        if self.finished:
            return "finished"
        if self.completed == self.config.epochs:
            return "trained, to be exported"
        return f"continues from epoch {self.completed}" if self.completed else "new"


def reproduce(flags: ReproduceConfig, command: str) -> Path:
    """Trains the missing runs, measures each as soon as it is trained, and writes the report.

    Args:
        flags: of the command line.
        command: the command line itself, which the report names.

    Returns:
        The folder of the report.

    Raises:
        UsageError: if the data, or a run that exists, are not as they must be.
        RunError: at the end, if training or measuring of some runs failed; the report is of the
            others.
        Interrupted: after SIGINT or SIGTERM; what is done is kept, and calling again continues.
    """
    if flags.results_dir:
        found = (file.parent for file in Path(flags.results_dir).glob("*/flags.json"))
        folders = sorted(folder for folder in found if not (folder / "control.json").exists())
        if not folders:
            raise UsageError(
                f"--results_dir={flags.results_dir} holds no runs: it is a folder of folders that "
                "have flags.json, history.json and results.json."
            )
        write_report(read_runs(folders), flags.report_path, command)
        return flags.report_path
    refuse_workers(
        "a reproduction is one process: train its runs by ad_keras.train, into the folders that "
        "--dry_run names, then unset TF_CONFIG, and they are reused."
    )
    with interruptible():
        runs = plan(flags)
        content = joblib.hash(_check_data(flags, runs))
        if flags.features == "inception":  # which may not be reached
            inception_features(Path(flags.cache_dir).expanduser(), flags.inception_weights)
        features: dict[Config, str] = {}
        failed: dict[Config, str] = {}

        def attempt(config: Config, finished: bool) -> None:
            try:
                if not finished:
                    train(config)
                features[config] = _measured(flags, config, content)
            except Interrupted:
                raise
            except (RunError, UsageError) as error:
                features.pop(config, None)
                failed[config] = f"{config.run_path} failed: {error}"
                print(failed[config], flush=True)

        for number, run in enumerate(runs, start=1):
            print(f"[{number}/{len(runs)}] {run.config.run_path}: {run.state}", flush=True)
            attempt(run.config, run.finished)
        # Dreams are only compared in the features of the same weights, which a lost cache changes.
        records = {config: config.run_path / _RECORD for config in features}
        newest = max(records, key=lambda config: records[config].stat().st_mtime, default=None)
        for config in [each for each in features if features[each] != features[newest]]:
            records[config].unlink()
            attempt(config, finished=True)
        if not features:
            raise RunError("; ".join(failed.values()))
        measured = read_runs([config.run_path for config in features])
        write_report(measured, flags.report_path, command, [*failed.values()])
    if failed:
        raise RunError(
            f"{'; '.join(failed.values())} The report in {flags.report_path} is of the others."
        )
    return flags.report_path


def estimate(flags: ReproduceConfig) -> str:
    """What would be trained and measured, and how long that would take here.

    Nothing is written, except that a data set which is not there yet is prepared.

    Raises:
        UsageError: as `reproduce` would, except for Inception's weights, which it would download.
    """
    runs = plan(flags)
    train_set, test_set = _check_data(flags, runs)
    content = joblib.hash((train_set, test_set))
    steps_per_epoch = (flags.train_examples or len(train_set)) // flags.batch_size
    speed = functools.cache(lambda condition: seconds_per_step(flags.run_config(condition, 0)))
    measuring = functools.cache(lambda: seconds_of_measuring(flags, train_set, test_set))
    lines = []
    for run in runs:
        steps = 0 if run.finished else (run.config.epochs - run.completed) * steps_per_epoch
        training = steps * speed(run.config.condition) if steps else 0.0
        done = run.finished and _is_measured(flags, run.config, content)
        times = training, 0.0 if done else measuring()
        lines.append((run.config.run_path, run.config.seed, run.state, steps, *times))
    totals = [sum(column) for column in list(zip(*lines, strict=True))[3:]]
    head = ("run", "seed", "state", "steps", "training", "measuring")
    cells = [
        (str(folder), str(seed), state, f"{steps:,}", *map(_duration, seconds))
        for folder, seed, state, steps, *seconds in [*lines, ("total", "", "", *totals)]
    ]
    widths = [max(map(len, column)) for column in zip(head, *cells, strict=True)]
    rows = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in (head, *cells))
    return "\n".join([*rows, ""]) + (
        f"\nIn all {_duration(totals[1] + totals[2])}, at the speed of {_TIMED_STEPS} steps and of "
        "measuring an untrained model now on this machine. Probes and pictures during training "
        "come on top, and once for a data set the probes of its pixels and the classifier in whose "
        "features dreams are compared."
    )


def plan(flags: ReproduceConfig) -> list[Run]:
    """The runs that a reproduction consists of, and how far each of them is.

    Raises:
        UsageError: if a folder holds a run with other flags, or one trained for longer.
    """
    return [
        _look_at(flags.run_config(condition, seed))
        for condition in flags.conditions
        for seed in flags.seed_numbers
    ]


def seconds_per_step(config: Config) -> float:
    """The time of a training step of a run on this machine, measured on random images."""
    times: list[float] = []
    clock = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: times.append(time.perf_counter())
    )
    shape = (config.batch_size, config.image_size, config.image_size, 3)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    steps = _WARM_UP_STEPS + _TIMED_STEPS
    batches = data.batches(images, config.batch_size, config.seed, 0, steps)
    build_model(config).fit(batches, callbacks=[clock], shuffle=False, verbose=0)
    return (times[-1] - times[-1 - _TIMED_STEPS]) / _TIMED_STEPS


def seconds_of_measuring(flags: ReproduceConfig, train_set: ImageSet, test_set: ImageSet) -> float:
    """The time that measuring a run takes here, from an untrained model and some of the images."""
    wanted = flags.evaluate_config("timed")
    model = build_model(dataclasses.replace(flags.run_config("full", 0), precision="float32"))
    network = keras.Model(model.encoder.input, model.encoder.output["latent"])
    parts = []
    for part in (train_set, test_set):
        some = np.random.default_rng(0).permutation(len(part))[:_TIMED_IMAGES]
        parts.append(ImageSet(part.images[some], part.labels[some], part.class_names))
    options = {"num_dreams": flags.num_dreams, "probe_seeds": flags.probe_seeds}
    options |= {"untrained": model.encoder, "earlier": {1: model}}
    with tempfile.TemporaryDirectory() as cache:
        options["features"] = FeatureExtractor("the encoder's", network, Path(cache))
        for _ in range(2):  # the first time TensorFlow compiles, and pixels are probed
            suite = Suite(model, *parts, Path(cache), **options)
            start = time.perf_counter()
            suite.measure(wanted.chosen_metrics)
            seconds = time.perf_counter() - start
    return seconds * (len(train_set) + len(test_set)) / sum(map(len, parts))


def _look_at(config: Config) -> Run:
    folder, exported, written = config.run_path, None, 0.0
    if config.export_path.exists():
        check_export_folder(config.export_path, folder, named=False, flag="--saved_models_dir")
        with contextlib.suppress(OSError, ValueError, KeyError):
            metadata = config.export_path / "metadata.json"
            exported, written = json.loads(metadata.read_text())["epochs"], metadata.stat().st_mtime
    if not (folder / "flags.json").exists():
        return Run(config, completed=0, finished=False)
    saved = load_config(folder, _RUN)
    refuse_other_flags(saved, config, _RUN)
    images, step = read_record(folder, "data.json", _RUN)["images"], newest_step(folder)
    if step > config.epochs * (images // config.batch_size):
        raise UsageError(
            f"the run in {folder} is at step {step}, beyond the {config.epochs} epochs that are "
            "wanted: use a higher --epochs, or another --runs_dir for shorter runs."
        )
    completed = max(map(int, read_history(folder)), default=0)
    # An export that is older than the state is of a run that is gone, of the same name.
    states = folder.glob(f"checkpoints/recent/step-{step}.*")
    current = written >= max((file.stat().st_mtime for file in states), default=0.0)
    finished = completed == config.epochs == saved.epochs == exported and current
    return Run(config, completed, finished)


def _check_data(flags: ReproduceConfig, runs: Sequence[Run]) -> tuple[ImageSet, ImageSet]:
    """Training and test images; refuses those that could not be trained on or measured.

    Those that a run was begun with must be the same, even if it is finished.
    """
    train_set, test_set = (
        data.load(flags.dataset, split, data_dir=flags.data_dir, image_size=flags.image_size)
        for split in ("train", "test")
    )
    if train_set.labels is None or test_set.labels is None:
        raise UsageError(
            f"--dataset={flags.dataset} has no labels, which the paper's measurements need: "
            "sort the images into a folder for each class."
        )
    check(flags.evaluate_config("checked").chosen_metrics, train_set, test_set, flags.num_dreams)
    for config, *_ in runs:
        images = chosen_images(config, train_set, config.seed)[1]
        if (config.run_path / "flags.json").exists():
            refuse_other_images(config, describe_images(images), _RUN)
    return train_set, test_set


def _measured(flags: ReproduceConfig, config: Config, content: str) -> str:
    """Measures a run, unless that is done; the digest of the weights of its features."""
    folder = config.run_path
    if not _is_measured(flags, config, content):
        print(f"{folder}: measuring", flush=True)
        results, _ = evaluate(wanted := flags.evaluate_config(str(folder)))
        if results["data"] != content:
            raise UsageError(
                f"{folder} was measured on the images in its own --data_dir, which are not those "
                "that are wanted: name that folder by --data_dir."
            )
        if results["epochs"] < config.epochs:  # the newest checkpoint is damaged
            train(config)
            evaluate(wanted)
        record = json.dumps(_digests(flags, config, content))
        write_atomically(folder / _RECORD, record + "\n")
    return str(json.loads((folder / "results.json").read_text())["features"].get("weights"))


def _is_measured(flags: ReproduceConfig, config: Config, content: str) -> bool:
    """Whether the run's results are those of its present weights, these settings and these data."""
    folder = config.run_path
    try:
        return json.loads((folder / _RECORD).read_text()) == _digests(flags, config, content)
    except (OSError, ValueError):  # not measured, or a damaged record
        return False


def _digests(flags: ReproduceConfig, config: Config, content: str) -> dict[str, str]:
    """Of all that a run's results depend on, except the features' weights, and of the results."""
    wanted = dataclasses.asdict(flags.evaluate_config("measured"))
    files = [*config.run_path.glob(f"checkpoints/recent/step-{newest_step(config.run_path)}.*")]
    if flags.inception_weights:
        files.append(Path(flags.inception_weights))
    origin = (
        {name: value for name, value in wanted.items() if name not in _PLACES},
        {n: v for n, v in dataclasses.asdict(config).items() if n not in RUN_ONLY - {"epochs"}},
        versions(_PACKAGES),
        content,
        [file.read_bytes() for file in sorted(files)],
        (config.run_path / "figures" / "pca.csv").exists(),  # which the report shows
    )
    results = (config.run_path / "results.json").read_bytes()
    return {"of": joblib.hash(origin), "results": joblib.hash(results)}


def _duration(seconds: float) -> str:
    if not seconds:
        return "-"
    hours, minutes = divmod(round(seconds / 60), 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min" if minutes else "under 1 min"
