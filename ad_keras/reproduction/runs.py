"""Trains what is missing, measures it, and says beforehand how long that takes."""

import dataclasses
import json
import time
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from ad_keras import data
from ad_keras.cli import interruptible
from ad_keras.compute.cluster import refuse_workers
from ad_keras.errors import UsageError
from ad_keras.evaluation.config import EvaluateConfig
from ad_keras.evaluation.runs import evaluate
from ad_keras.evaluation.suite import check
from ad_keras.reproduction.config import ReproduceConfig
from ad_keras.reproduction.findings import Measurements
from ad_keras.reproduction.report import write_report
from ad_keras.runs.build import build_model
from ad_keras.runs.config import Config
from ad_keras.runs.folder import completed_epochs, load_config, refuse_other_flags
from ad_keras.runs.training import train

_WARM_UP_STEPS, _MEASURED_STEPS = 4, 10


@dataclasses.dataclass(frozen=True)
class Run:
    """A training run of the reproduction.

    Attributes:
        condition: of `ad_keras.runs.config.CONDITIONS`.
        config: of its training.
        completed: how many epochs it has behind it.
        finished: whether nothing is left to train or to export.
    """

    condition: str
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
    """Trains the missing runs, measures all, and writes the report.

    Args:
        flags: of the command line.
        command: the command line itself, which the report names.

    Returns:
        The folder of the report.

    Raises:
        UsageError: if the data, or a run that exists, are not as they must be.
        RunError: if training or measuring fails.
        Interrupted: after SIGINT or SIGTERM; what is done is kept, and calling again continues.
    """
    refuse_workers(
        "a reproduction is one process: train its runs by ad_keras.train, into the folders that "
        "--dry_run names, then unset TF_CONFIG, and they are reused."
    )
    with interruptible():
        runs = plan(flags)
        _check_data(flags)
        for number, run in enumerate(runs, start=1):
            folder = run.config.run_path
            print(f"[{number}/{len(runs)}] {folder}: {run.state}", flush=True)
            if not run.finished:
                train(run.config)
        measurements = Measurements({}, {})
        for number, run in enumerate(runs, start=1):
            folder, wanted = run.config.run_path, flags.evaluate_config(str(run.config.run_path))
            results = _earlier_results(folder, wanted, flags.epochs)
            known = "measured" if results else "measuring"
            print(f"[{number}/{len(runs)}] {folder}: {known}", flush=True)
            if not results:
                evaluate(wanted)
                results = _read_json(folder / "results.json")
            measurements.results.setdefault(run.condition, []).append(results)
            history = _read_json(folder / "history.json")
            measurements.histories.setdefault(run.condition, []).append(history)
        shown = next((run for run in runs if run.condition == "full"), runs[0])
        folders: dict[str, Path] = {}
        for run in runs:
            folders.setdefault(run.condition, run.config.run_path)
        write_report(flags, measurements, shown.config, folders, command)
    return flags.report_path


def estimate(flags: ReproduceConfig) -> str:
    """What would be trained, and how long that would take here.

    Nothing is written, except that a data set which is not there yet is prepared.

    Args:
        flags: of the command line.

    Raises:
        UsageError: as `reproduce` would.
    """
    runs = plan(flags)
    steps_per_epoch = _check_data(flags) // flags.batch_size
    lines = [("run", "condition", "seed", "state", "steps", "time")]
    speeds, total_steps, total_seconds = {}, 0, 0.0
    for run in runs:
        steps = 0 if run.finished else (flags.epochs - run.completed) * steps_per_epoch
        if steps and run.condition not in speeds:
            speeds[run.condition] = seconds_per_step(run.config)
        seconds = steps * speeds[run.condition] if steps else 0.0
        total_steps, total_seconds = total_steps + steps, total_seconds + seconds
        who = (str(run.config.run_path), run.condition, str(run.config.seed), run.state)
        lines.append((*who, f"{steps:,}", _duration(seconds)))
    lines.append(("total", "", "", "", f"{total_steps:,}", _duration(total_seconds)))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        [
            *("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines),
            "",
            f"Times are those of training steps, at the speed of {_MEASURED_STEPS} steps measured "
            "now on this machine. Probes, pictures and the final measurements come on top.",
        ]
    )


def plan(flags: ReproduceConfig) -> list[Run]:
    """The runs that a reproduction consists of, and how far each of them is.

    Args:
        flags: of the command line.

    Raises:
        UsageError: if a folder holds a run with other flags, or one trained for longer.
    """
    return [
        _look_at(condition, flags.run_config(condition, seed))
        for condition in flags.conditions
        for seed in flags.seed_numbers
    ]


def seconds_per_step(config: Config) -> float:
    """The time of a training step on this machine, measured on random images.

    Args:
        config: of the run.
    """
    tf.config.optimizer.set_experimental_options({"remapping": False})  # as in training
    model, clock = build_model(config), _Clock()
    shape = (config.batch_size, config.image_size, config.image_size, 3)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    steps = _WARM_UP_STEPS + _MEASURED_STEPS
    batches = data.batches(images, config.batch_size, config.seed, 0, steps)
    model.fit(batches, callbacks=[clock], shuffle=False, verbose=0)
    return (clock.times[-1] - clock.times[-1 - _MEASURED_STEPS]) / _MEASURED_STEPS


class _Clock(keras.callbacks.Callback):
    """Notes when each step ended."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []

    def on_train_batch_end(self, batch, logs=None) -> None:
        self.times.append(time.perf_counter())


def _look_at(condition: str, config: Config) -> Run:
    folder = config.run_path
    if not (folder / "flags.json").exists():
        return Run(condition, config, completed=0, finished=False)
    saved = load_config(folder)
    refuse_other_flags(saved, config)
    completed = completed_epochs(folder)
    if completed > config.epochs:
        raise UsageError(
            f"the run in {folder} is at epoch {completed}, beyond --epochs={config.epochs}: use "
            f"--epochs={completed}, or another --runs_dir for shorter runs."
        )
    exported = (config.export_path / "metadata.json").is_file()
    finished = completed == config.epochs == saved.epochs and exported
    return Run(condition, config, completed, finished)


def _check_data(flags: ReproduceConfig) -> int:
    """Refuses data that could not be measured, before the first run is trained.

    Returns:
        How many images a run is trained on.
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
    check(flags.evaluate_config("checked").chosen_metrics, train_set, test_set, flags.images)
    if flags.train_examples > len(train_set):
        raise UsageError(
            f"--train_examples={flags.train_examples} is more than the {len(train_set)} training "
            f"images of {flags.dataset}."
        )
    images = flags.train_examples or len(train_set)
    if flags.batch_size > images:
        raise UsageError(
            f"--batch_size={flags.batch_size} is more than the {images} training images."
        )
    return images


def _earlier_results(folder: Path, wanted: EvaluateConfig, epochs: int) -> dict | None:
    """What an earlier evaluation measured, if the same would be measured now.

    Args:
        folder: of the finished run.
        wanted: how it is to be measured.
        epochs: that it was trained for.
    """
    file = folder / "results.json"
    saved = (folder / "checkpoints" / "recent").glob("step-*.index")
    newest = max((path.stat().st_mtime for path in saved), default=0.0)
    if not file.exists() or file.stat().st_mtime < newest:
        return None
    try:
        results = _read_json(file)
        metrics = results["metrics"]
        probe, fid = metrics["probe"]["protocol"], metrics["fid"]["protocol"]
        most = min(probe["train_images"], probe["test_images"])
        same = (
            results["dataset"] == wanted.dataset
            and results["epochs"] == epochs
            and set(wanted.chosen_metrics) <= set(metrics)
            and all(entry["protocol"]["seed"] == wanted.seed for entry in metrics.values())
            and probe["probe_seeds"] == wanted.probe_seeds
            and fid["images"] == min(wanted.images, most)
            and fid["features"].startswith("Inception") == (wanted.features == "inception")
            and (folder / "figures" / "pca.png").is_file()
        )
    except (UsageError, KeyError, TypeError, AttributeError):  # of another version, or damaged
        return None
    return results if same else None


def _read_json(file: Path) -> dict:
    try:
        return json.loads(file.read_text())
    except ValueError as error:
        raise UsageError(f"{file} cannot be read ({error}): delete it.") from error


def _duration(seconds: float) -> str:
    if not seconds:
        return "-"
    hours, minutes = divmod(round(seconds / 60), 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min" if minutes else "under 1 min"
