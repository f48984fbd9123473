"""Trained models back from what runs leave: checkpoints and exports."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import tensorflow as tf

from ad_keras.errors import UsageError, first_line
from ad_keras.pad.model import PAD
from ad_keras.runs.build import build_model
from ad_keras.runs.checkpoints import Checkpoints
from ad_keras.runs.config import Config
from ad_keras.runs.export import copy_weights, load_encoder
from ad_keras.runs.folder import load_config, read_record
from ad_keras.runs.parts import describe_model, difference

READOUTS = {"probe": "mean_of_seeds", "logistic_probe": "accuracy", "ridge_probe": "accuracy"}
"""The probes, and the figure of each that stands for it."""


def restore_run(
    folder: str | Path, epoch: int | None = None, build: Callable[[Config], PAD] = build_model
) -> tuple[Config, PAD]:
    """The model of an existing run, in float32 whatever the precision of its training.

    With `average_weights`, its networks have the averages.

    Args:
        folder: of the run. If it was copied or moved, the configuration names this folder, and
            the default export of this folder.
        epoch: whose end to restore, of those that `Checkpoints` keeps; None for the newest state.
        build: makes the compiled model of a configuration, as it did for `train`.

    Raises:
        UsageError: if the folder is no run's, the run has no checkpoint yet, or `build` gives a
            model of other parts.
        RunError: if no checkpoint can be read, or that of the epoch cannot.
    """
    folder = Path(folder)
    config, described = load_config(folder), read_record(folder, "model.json")
    if folder.resolve() != config.run_path.resolve():
        config = dataclasses.replace(config, run_dir=str(folder), saved_model_dir=None)
    model = _rebuilt(config, build, described, f"the run in {folder}", "restore_run(folder")
    checkpoints = Checkpoints(model, folder)
    if epoch is None:
        for note in checkpoints.restore():
            print(note, flush=True)
    else:
        checkpoints.restore_epoch(epoch)
    if not model.step.numpy():
        raise UsageError(f"the run in {folder} has no checkpoint yet: continue its training.")
    for weight, average in model.averaged:
        weight.assign(average)
    return config, model


def restore_export(
    folder: str | Path, build: Callable[[Config], PAD] = build_model, *, generator: bool = True
) -> tuple[Config, PAD]:
    """The model of a run, from the networks that it exported.

    Args:
        folder: the export.
        build: makes the compiled model of a configuration, as it did for `train`.
        generator: whether it is restored; False leaves it untrained, and the export may lack it.

    Raises:
        UsageError: if the folder is no export of a run, a part of it cannot be read, or `build`
            gives a model of other parts.
    """
    folder = Path(folder)
    encoder = load_encoder(folder)
    try:
        metadata = json.loads((folder / "metadata.json").read_text())
        config, described = Config.from_json(json.dumps(metadata["flags"])), metadata["model"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _not_whole(folder, error) from error
    model = _rebuilt(config, build, described, f"the export {folder}", "restore_export(folder")
    try:
        copy_weights(encoder, model.encoder)
        if generator:
            variables = tf.saved_model.load(str(folder / "generator")).variables
            exported = {variable.name.partition(":")[0]: variable for variable in variables}
            for weight in model.generator.weights:
                weight.assign(exported[weight.path].numpy())
        for weight, average in model.averaged:
            average.assign(weight)
        model.step.assign(metadata["step"])
    except (OSError, ValueError, KeyError, TypeError, tf.errors.OpError) as error:
        raise _not_whole(folder, error) from error
    return config, model


def epochs_behind(folder: Path, config: Config, model: PAD) -> float:
    """How many epochs the model of a run has behind it, by its step; an int at an epoch's end."""
    # Not by the run's history, which a damaged checkpoint leaves behind.
    steps_per_epoch = read_record(folder, "data.json")["images"] // config.batch_size
    whole, more = divmod(int(model.step.numpy()), steps_per_epoch)
    return round(whole + more / steps_per_epoch, 5) if more else whole


def export_metadata(config: Config, model: PAD) -> dict:
    """What an export says of the run it comes from.

    `test_accuracy` is that of its probes by metric, and empty if this state was not evaluated.
    """
    return {
        "dataset": config.dataset,
        "condition": config.condition,
        "seed": config.seed,
        "run": config.run_path.name,
        "epochs": epochs_behind(config.run_path, config, model),
        "test_accuracy": _accuracies(config.run_path, int(model.step.numpy())),
        "flags": dataclasses.asdict(config),
        "model": read_record(config.run_path, "model.json"),
    }


def of_test_images(results: dict) -> bool:
    """Whether `results.json` is of the test images of the data that were trained on."""
    return results["dataset"] == results["trained_on"] and "held_out" not in results


def _accuracies(folder: Path, step: int) -> dict[str, float]:
    """What the run's evaluation says of its probes, if it was of this step."""
    try:
        results = json.loads((folder / "results.json").read_text())
        if results["step"] != step or not of_test_images(results):
            return {}
        metrics = results["metrics"]
        return {
            name: metrics[name]["values"]["trained"][figure]
            for name, figure in READOUTS.items()
            if name in metrics
        }
    except (OSError, ValueError, KeyError, TypeError):  # none, or a damaged file
        return {}


def _rebuilt(
    config: Config, build: Callable[[Config], PAD], described: dict, what: str, call: str
) -> PAD:
    model = build(dataclasses.replace(config, precision="float32"))
    different = difference(described, describe_model(model))
    if different and build is build_model:
        raise UsageError(
            f"{what} has parts of its own ({different}): restore it in Python, with "
            f"{call}, build=...)."
        )
    if different:
        raise UsageError(f"`build` gives another model than that of {what}: {different}.")
    return model


def _not_whole(folder: Path, error: Exception) -> UsageError:
    reason = f"{error.args[0]} is missing" if isinstance(error, KeyError) else first_line(error)
    return UsageError(f"{folder} is not the whole export of a run ({reason}): export it again.")
