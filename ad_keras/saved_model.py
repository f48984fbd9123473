"""Trained networks out, as SavedModels and a Keras file; encoders in."""

import contextlib
import importlib.metadata
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import keras
import tensorflow as tf

from ad_keras.errors import UsageError
from ad_keras.model import PAD, to_pixels

_PACKAGES = ("ad_keras", "tensorflow", "keras", "numpy")


def export_networks(model: PAD, folder: str | Path, metadata: dict | None = None) -> None:
    """Exports encoder and generator, in float32 whatever the precision of the training.

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
        folder: replaced if it exists.
        metadata: what else `metadata.json` shall say.
    """
    encoder, generator = _raw_encoder(model.encoder), _float32(model.generator)
    described = {
        "image_shape": list(encoder.inputs[0].shape[1:]),
        "image_range": [0, 255],
        "latent_dim": generator.inputs[0].shape[-1],
        "step": int(model.step.numpy()),
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
    }

    def generate(latent: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"images": to_pixels(generator({"latent": latent}))}

    with _replaced(Path(folder)) as partial:
        _write_saved_model(partial / "encoder", encoder, lambda images: encoder({"images": images}))
        _write_saved_model(partial / "generator", generator, generate)
        encoder.save(partial / "encoder.keras")
        text = json.dumps({**(metadata or {}), **described}, indent=2)
        (partial / "metadata.json").write_text(text + "\n")


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
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(f"{file} cannot be read ({error}): export it again.") from error


def _raw_encoder(encoder: keras.Model) -> keras.Model:
    """The encoder with pixels at its input and a probability at its output."""
    shape = encoder.inputs[0].shape[1:]
    images = keras.Input(shape, dtype="uint8", name="images")
    signed = keras.layers.Rescaling(1 / 127.5, -1.0, dtype="float32", name="rescale")(images)
    outputs = _float32(encoder)({"images": signed})
    probability = keras.layers.Activation("sigmoid", name="external_probability")(
        outputs["external_logit"]
    )
    return keras.Model(
        {"images": images},
        {"latent": outputs["latent"], "external_probability": probability},
        name="encoder",
    )


def _float32(network: keras.Model) -> keras.Model:
    copy = keras.models.clone_model(
        network,
        clone_function=lambda layer: type(layer).from_config(
            {**layer.get_config(), "dtype": "float32"}
        ),
    )
    copy.set_weights(network.get_weights())
    return copy


def _write_saved_model(folder: Path, network: keras.Model, serve) -> None:
    signature = network.inputs[0]
    spec = tf.TensorSpec((None, *signature.shape[1:]), signature.dtype, name=signature.name)
    archive = keras.export.ExportArchive()
    archive.track(network)
    archive.add_endpoint("serve", serve, input_signature=[spec])
    archive.write_out(str(folder), verbose=False)


@contextlib.contextmanager
def _replaced(folder: Path) -> Iterator[Path]:
    """Yields an empty folder that takes the place of `folder` in the end.

    If the process is killed between the last two renames, the earlier content is whole in
    `<folder>.previous`, from where the next export brings it back first.
    """
    partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    previous = folder.with_name(f"{folder.name}.previous")
    if previous.exists() and not folder.exists():
        previous.rename(folder)
    shutil.rmtree(previous, ignore_errors=True)
    for leftover in folder.parent.glob(f".{folder.name}.partial-*"):
        shutil.rmtree(leftover)
    partial.mkdir(parents=True)
    try:
        yield partial
        if folder.exists():
            folder.rename(previous)
        partial.rename(folder)
        shutil.rmtree(previous, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
