"""Trained networks out, as SavedModels and a Keras file; encoders in."""

import contextlib
import importlib.metadata
import json
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import keras
import tensorflow as tf

from ad_keras.compute.layers import builtin
from ad_keras.data.pixels import to_pixels
from ad_keras.errors import UsageError, first_line
from ad_keras.pad.model import PAD
from ad_keras.runs.config import Config

_PACKAGES = ("ad_keras", "tensorflow", "keras", "numpy")
_FLAG = "--saved_model_dir"
_FILES = {"encoder", "generator", "encoder.keras", "metadata.json"}  # of an export


def export_networks(model: PAD, folder: str | Path, metadata: dict | None = None) -> None:
    """Exports encoder and generator, in float32 whatever the precision of the training.

    With `average_weights`, these are the averages.

    `folder` then holds

    - `encoder/`, a SavedModel from `images`, uint8 [B, H, W, C], to `latent`, float32
      [B, latent_dim], and `external_probability`, float32 [B];
    - `generator/`, a SavedModel from `latent`, float32 [B, latent_dim], to `images`, uint8
      [B, H, W, C];
    - `encoder.keras`, the encoder as a trainable Keras model of built-in layers, with the inputs
      and outputs of the SavedModel;
    - `metadata.json`.

    All is written beside `folder` and then put in its place.

    Args:
        model: trained.
        folder: replaced if it holds an earlier export.
        metadata: what else `metadata.json` shall say.

    Raises:
        UsageError: if `folder` holds something else than an export.
    """
    latent = keras.Input(model.generator.inputs[0].shape[1:], name="latent")
    with model.averaged_weights():
        encoder = _raw_encoder(model.encoder)
        generator = copy_weights(model.generator, _rebuilt(model.generator, latent))
    described = {
        "image_shape": list(encoder.inputs[0].shape[1:]),
        "image_range": [0, 255],
        "latent_dim": generator.inputs[0].shape[-1],
        "step": int(model.step.numpy()),
        "versions": versions(),
    }

    def generate(latent: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"images": to_pixels(generator(latent))}

    with _replaced(Path(folder)) as partial:
        _write_saved_model(partial / "encoder", encoder, encoder)
        _write_saved_model(partial / "generator", generator, generate)
        encoder.save(partial / "encoder.keras")
        text = json.dumps({**(metadata or {}), **described}, indent=2)
        (partial / "metadata.json").write_text(text + "\n")


def versions(packages: Sequence[str] = _PACKAGES) -> dict[str, str]:
    """Of packages that figures depend on, by default of this one and the most important others."""
    found = {}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # not installed, or under another name
            found[name] = "unknown"
    return found


def check_export_folder(
    folder: str | Path, run_folder: Path | None = None, *, named: bool = True, flag: str = _FLAG
) -> None:
    """Makes sure that an export can be written and would replace nothing but an earlier export.

    Args:
        folder: that `export_networks` is to write.
        run_folder: that must neither be replaced nor hold the export among its own files.
        named: whether somebody chose the folder. If not, the export of another existing run is
            not replaced either: of one of the same name, or of the one that this run is a copy of.
        flag: that names the folder, or the one it is in.

    Raises:
        UsageError: if there is something else.
        OSError: if the folder it is to be in cannot be made.
    """
    folder = Path(folder)
    if run_folder is not None and not named:
        try:
            flags = json.loads((folder / "metadata.json").read_text())["flags"]
            other = Config.from_json(json.dumps(flags)).run_path
        except (OSError, ValueError, KeyError, TypeError):
            other = run_folder
        if other.is_dir() and other.resolve() != run_folder.resolve():
            raise UsageError(
                f"{folder} is the export of another run, {other}: name a folder for that of "
                f"{run_folder} by {flag}."
            )
    if run_folder is not None:
        export, own = folder.resolve(), run_folder.resolve()
        if export in (own, *own.parents) or own in export.parents:
            raise UsageError(
                f"exporting to {folder} would replace the run in {run_folder}, or a part of it: "
                f"choose another {flag}."
            )
    if Path.cwd().is_relative_to(folder.resolve()):
        raise UsageError(
            f"exporting to {folder} would replace the working directory: choose another {flag}."
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    there = {path.name for path in folder.iterdir()} if folder.is_dir() else {folder.name}
    if folder.exists() and there and not {"metadata.json"} <= there <= _FILES:
        raise UsageError(
            f"{folder} holds something that is no export, and exporting would replace it: choose "
            f"another {flag}."
        )


def load_encoder(path: str | Path) -> keras.Model:
    """Loads an exported encoder for use or fine-tuning.

    Args:
        path: the folder that an export wrote.

    Returns:
        A trainable functional model from `images`, uint8 [B, H, W, C], to the dictionary
        `latent` [B, latent_dim] and `external_probability` [B].

    Raises:
        UsageError: if there is no encoder.
    """
    file = Path(path) / "encoder.keras"
    if not file.is_file():
        raise UsageError(f"{path} is not an export: it has no encoder.keras.")
    try:
        return keras.saving.load_model(file, compile=False)
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise UsageError(
            f"{file} cannot be read ({first_line(error)}): export it again."
        ) from error


def copy_weights(source: keras.Model, target: keras.Model) -> keras.Model:
    """Copies weights by the names of layers, whose order may differ, and returns the target.

    It has layers of the same names and shapes as the source, and maybe more.

    Raises:
        ValueError: if a layer is missing, or of another shape.
    """
    for layer in (layer for layer in source.layers if layer.weights):
        target.get_layer(layer.name).set_weights(layer.get_weights())
    return target


def _raw_encoder(encoder: keras.Model) -> keras.Model:
    """The encoder with pixels at its input and a probability at its output."""
    images = keras.Input(encoder.inputs[0].shape[1:], dtype="uint8", name="images")
    rescale = keras.layers.Rescaling(1 / 127.5, -1.0, dtype="float32", name="rescale")
    outputs = _rebuilt(encoder, images, rescale).output
    sigmoid = keras.layers.Activation("sigmoid", dtype="float32", name="external_probability")
    probability = sigmoid(outputs["external_logit"])
    outputs = {"latent": outputs["latent"], "external_probability": probability}
    return copy_weights(encoder, keras.Model(images, outputs, name="encoder"))


def _rebuilt(
    network: keras.Model, inputs: keras.KerasTensor, before: keras.layers.Layer | None = None
) -> keras.Model:
    """A copy of a functional network in float32, of built-in layers where they are this package's.

    Without this package's layers, what is saved loads without it. The copy is flat, so that a
    model of one output holds no weights of the other. Between its inputs and the layers that take
    them may be another layer, `before`.
    """

    def built_in(layer: keras.layers.Layer) -> keras.layers.Layer:
        return builtin(layer).from_config({**layer.get_config(), "dtype": "float32"})

    def call(layer: keras.layers.Layer, *arguments, **named):
        if before is not None:
            arguments = keras.tree.map_structure(
                lambda tensor: before(tensor) if tensor is inputs else tensor, arguments
            )
        return layer(*arguments, **named)

    return keras.models.clone_model(
        network, input_tensors=inputs, clone_function=built_in, call_function=call
    )


def _write_saved_model(folder: Path, network: keras.Model, serve) -> None:
    signature = network.inputs[0]
    spec = tf.TensorSpec((None, *signature.shape[1:]), signature.dtype, name=signature.name)
    # Keras's ExportArchive would write every weight twice (keras issue 23553).
    # What it wrote before has `variables` too, by which an export is restored.
    module = tf.train.Checkpoint(variables=[weight.value for weight in network.weights])
    module.serve = tf.function(serve, input_signature=[spec], autograph=False)
    signatures = dict.fromkeys(("serve", "serving_default"), module.serve)
    tf.saved_model.save(module, str(folder), signatures)


@contextlib.contextmanager
def _replaced(folder: Path) -> Iterator[Path]:
    """Yields an empty folder that takes the place of `folder` in the end.

    If the process is killed between the last two renames, the earlier content is whole in
    `.<folder>.previous`, from where the next export brings it back first.
    """
    folder = folder.resolve()  # of a link, what it leads to
    check_export_folder(folder)
    partial = folder.with_name(f".{folder.name}.partial")
    previous = folder.with_name(f".{folder.name}.previous")
    if previous.exists() and not folder.exists():
        previous.rename(folder)
    for leftover in (previous, partial):
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        if folder.exists():
            folder.rename(previous)
        partial.rename(folder)
    except BaseException:
        if previous.exists():
            previous.rename(folder)
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(previous, ignore_errors=True)
