"""A training run from its flags to its export."""

import contextlib
import dataclasses
import functools
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from tensorboard.plugins.hparams import api as hparams

from ad_keras import data
from ad_keras.runs.callbacks import Guard, LossLog, Progress, Reports
from ad_keras.runs.checkpoints import (
    Checkpoints,
    failures_explained,
    load_config,
    newest_step,
    open_run,
    refuse_other_flags,
)
from ad_keras.compute.cluster import Cluster, connect
from ad_keras.runs.config import RUN_ONLY, Config
from ad_keras.errors import RunError, UsageError
from ad_keras.pad.hippocampus import Hippocampus
from ad_keras.pad.mixing import Mixing
from ad_keras.pad.model import PAD
from ad_keras.pad.networks import build_encoder, build_generator
from ad_keras.pad.perturbations import Occlusion
from ad_keras.compute.optimizers import FusedAdam
from ad_keras.runs.export import check_export_folder, export_networks, load_encoder


@dataclasses.dataclass(frozen=True)
class TrainingResult:
    """What a finished run leaves.

    Attributes:
        run_folder: checkpoints, logs and pictures.
        export_folder: the networks, as `export_networks` writes them; None if that was not wanted.
        history: by epoch (as text; "0" is the untrained model), losses and the probe's accuracy.
        notes: what a person should know, such as damaged checkpoints.
    """

    run_folder: Path
    export_folder: Path | None
    history: dict[str, dict[str, float]]
    notes: list[str]


def build_model(config: Config, **parts) -> PAD:
    """The model that a configuration describes, compiled and untrained.

    Args:
        config: of a run.
        **parts: of `PAD`, in place of those that the configuration describes.
    """
    shape = {
        "image_size": config.image_size,
        "latent_dim": config.latent_dim,
        "base_filters": config.base_filters,
        "seed": config.seed,
        "dtype": config.precision,
    }
    described = {
        "hippocampus": Hippocampus(config.batch_size),
        "mixing": Mixing(config.mix_recent, config.mix_memories),
        "perturbation": Occlusion(
            (config.occlusion_min, config.occlusion_max),
            (config.tile_min, config.tile_max),
            per_image=config.mask_per == "image",
        ),
    }
    model = PAD(
        build_encoder(**shape),
        build_generator(**shape),
        phases=config.phases,
        reconstruction_weight=config.reconstruction_weight,
        kl_weight=config.kl_weight,
        external_weight=config.external_weight,
        recovery_weight=config.recovery_weight,
        internal_weight=config.internal_weight,
        wake_noise_variance=config.wake_noise_variance,
        nrem_memories=config.nrem_memories,
        seed=config.seed,
        **{**described, **parts},
    )
    encoder_optimizer, generator_optimizer = (
        FusedAdam(rate, beta_1=config.beta_1, beta_2=config.beta_2, epsilon=1e-8)
        for rate in (config.encoder_learning_rate, config.generator_learning_rate)
    )
    model.compile(encoder_optimizer, generator_optimizer)
    return model


def train(
    config: Config,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    *,
    export: bool = True,
) -> TrainingResult | None:
    """Trains, or continues to train, a run to its last epoch, and exports its networks.

    Args:
        config: of the run.
        callbacks: to call after the run's own.
        export: whether to export the networks.

    Returns:
        What the run leaves; None in a worker other than the chief, which writes nothing.

    Raises:
        UsageError: if the data or the run's folder are not as they must be.
        RunError: if training fails, here or in another worker; the last good checkpoint stays.
        Interrupted: after SIGINT or SIGTERM; calling again continues.
    """
    cluster = connect(config.strategy)
    # All that can be refused is refused before anything is written or, with --overwrite, deleted.
    if config.batch_size % cluster.replicas:
        raise UsageError(
            f"--batch_size={config.batch_size} cannot be shared equally by {cluster.replicas} "
            "replicas: it must be a multiple of their number."
        )
    with cluster.chief_first():  # which may have to download or generate them
        train_set = _training_images(config)
    images = _trained_on(config, train_set)
    steps_per_epoch = len(images) // config.batch_size
    _refuse_shorter(config, steps_per_epoch)
    if export:
        check_export_folder(config.export_path, config.run_path)
    with _run_folder(config, cluster) as folder, failures_explained(folder):
        with cluster.strategy.scope():
            model = build_model(config)
        checkpoints = Checkpoints(model, folder)
        notes = checkpoints.restore()
        for note in notes:
            print(note, flush=True)
        first = int(model.step.numpy())
        if not cluster.agree(first):
            raise RunError(
                f"{cluster} would continue from step {first}, but another one from another step: "
                f"{folder} must be on a disk that all workers share."
            )
        guard = Guard(
            checkpoints, config.checkpoint_every, steps_per_epoch, first, saves=cluster.is_chief
        )
        if not cluster.is_chief:
            with guard:
                _fit(config, cluster, model, images, [guard, *callbacks])
            cluster.wait()  # for the chief, which exports
            return None
        writer = tf.summary.create_file_writer(str(folder / "logs"))
        reports = Reports(
            train_set,
            folder,
            writer,
            epochs=config.epochs,
            dream_every=config.dream_every,
            probe_every=config.probe_every,
            seed=config.seed,
        )
        reports.set_model(model)
        with writer.as_default(step=0):
            hparams.hparams(hyper_parameters(config))
        log = LossLog(writer, config.log_every, config.batch_size, first)
        if first % steps_per_epoch == 0:
            reports.report(first // steps_per_epoch)
        with guard:
            own = [Progress(config.batch_size), log, guard, reports]
            _fit(config, cluster, model, images, [*own, *callbacks])
        reports.embed()
        writer.close()
        if export:
            export_networks(model, config.export_path, export_metadata(config))
        cluster.wait()  # only now may the others leave
    exported = config.export_path if export else None
    return TrainingResult(folder, exported, reports.history, notes)


def restore_run(folder: Path, epoch: int | None = None) -> tuple[Config, PAD]:
    """The model of an existing run, in float32 whatever the precision of its training.

    Args:
        folder: of the run.
        epoch: whose end to restore, of those that `Checkpoints` keeps; None for the newest state.

    Raises:
        UsageError: if the folder is no run's, or the run has no checkpoint yet.
        RunError: if no checkpoint can be read, or that of the epoch cannot.
    """
    config = load_config(folder)
    model = build_model(dataclasses.replace(config, precision="float32"))
    checkpoints = Checkpoints(model, folder)
    if epoch is None:
        for note in checkpoints.restore():
            print(note, flush=True)
    else:
        checkpoints.restore_epoch(epoch)
    if not model.step.numpy():
        raise UsageError(f"the run in {folder} has no checkpoint yet: continue its training.")
    return config, model


def restore_export(folder: Path) -> tuple[Config, PAD]:
    """The model of a run, from the networks that it exported.

    Args:
        folder: the export.

    Raises:
        UsageError: if the folder is no export of a run, or a part of it cannot be read.
    """
    encoder = load_encoder(folder)
    try:
        metadata = json.loads((folder / "metadata.json").read_text())
        config = Config.from_json(json.dumps(metadata["flags"]))
        model = build_model(dataclasses.replace(config, precision="float32"))
        model.encoder.set_weights(encoder.get_weights())
        generator = tf.saved_model.load(str(folder / "generator"))
        model.generator.set_weights([variable.numpy() for variable in generator.variables])
        model.step.assign(metadata["step"])
    except (OSError, ValueError, KeyError, TypeError, tf.errors.OpError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise UsageError(
            f"{folder} is not the whole export of a run ({reason}): export it again."
        ) from error
    return config, model


def export_metadata(config: Config) -> dict:
    """What an export says of the run it comes from."""
    return {
        "dataset": config.dataset,
        "condition": config.condition,
        "seed": config.seed,
        "run": config.run_path.name,
        "flags": dataclasses.asdict(config),
    }


def _training_images(config: Config) -> data.ImageSet:
    train_set = data.load(
        config.dataset, "train", data_dir=config.data_dir, image_size=config.image_size
    )
    if config.train_examples > len(train_set):
        raise UsageError(
            f"--train_examples={config.train_examples} is more than the {len(train_set)} training "
            f"images of {config.dataset}."
        )
    if config.train_examples:
        train_set = train_set.take(config.train_examples)
    return train_set


def _trained_on(config: Config, train_set: data.ImageSet) -> np.ndarray:
    """The images among them that the weights may depend on."""
    images = train_set.images
    if config.hold_out:
        images = images[data.validation_split(len(train_set), config.seed)[0]]
    if config.batch_size > len(images):
        raise UsageError(
            f"--batch_size={config.batch_size} is more than the {len(images)} training images."
        )
    return images


def _refuse_shorter(config: Config, steps_per_epoch: int) -> None:
    """Refuses to end a run before the state that it is in, which would then pass for that end."""
    step = 0 if config.overwrite else newest_step(config.run_path)
    if step > config.epochs * steps_per_epoch:
        epochs = -(-step // steps_per_epoch)
        raise UsageError(
            f"the run in {config.run_path} is in epoch {epochs} (step {step}), beyond "
            f"--epochs={config.epochs}: use --epochs={epochs} or more, another --run_dir for a "
            "shorter run, or --overwrite to delete this one."
        )


@contextlib.contextmanager
def _run_folder(config: Config, cluster: Cluster) -> Iterator[Path]:
    """The run's folder, which the chief makes and the other workers find."""
    if cluster.is_chief:
        with open_run(config) as folder:
            cluster.wait()
            yield folder
        return
    cluster.wait()
    if not config.run_path.is_dir():
        raise UsageError(
            f"{cluster} does not find the run that the chief opened in {config.run_path}: the "
            "folder must be on a disk that all workers share."
        )
    refuse_other_flags(load_config(config.run_path), config)
    yield config.run_path


def _fit(
    config: Config,
    cluster: Cluster,
    model: PAD,
    images: np.ndarray,
    callbacks: Sequence[keras.callbacks.Callback],
) -> None:
    first = int(model.step.numpy())
    steps_per_epoch = len(images) // config.batch_size
    verbose = 1 if sys.stdout.isatty() else 2  # a bar for people, a line an epoch for files
    # Once for all epochs: a copy for each would stay until Python looks for cycles of references.
    with tf.device("CPU"):
        pool = tf.convert_to_tensor(images)
    # A continued run finishes its epoch first; each epoch has a pipeline of its own.
    for epoch in range(first // steps_per_epoch, config.epochs):
        end = (epoch + 1) * steps_per_epoch
        batches = cluster.batches(
            functools.partial(data.batches, pool, config.batch_size, config.seed, first, end)
        )
        with cluster.failures_explained():
            model.fit(
                batches,
                epochs=epoch + 1,
                initial_epoch=epoch,
                # Several replicas would take a step more, without images, to notice the end.
                steps_per_epoch=end - first,
                callbacks=keras.callbacks.CallbackList(
                    list(callbacks),
                    add_history=True,
                    model=model,
                    epochs=config.epochs,
                    steps=end - first,
                    verbose=verbose,
                ),
                shuffle=False,
            )
        first = end


def hyper_parameters(config: Config) -> dict[str, bool | int | float | str]:
    """What TensorBoard's HParams say of a run."""
    flat = {**dataclasses.asdict(config), "phases": ",".join(config.phases)}
    told = {name: value for name, value in flat.items() if name not in RUN_ONLY}
    return {**told, "condition": config.condition, "epochs": config.epochs}
