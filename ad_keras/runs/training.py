"""A training run: what can be refused, its folder, and `fit` from its first step to its last."""

import contextlib
import dataclasses
import functools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from tensorboard.plugins.hparams import api as hparams

from ad_keras import data
from ad_keras.cli import on_signals
from ad_keras.compute.cluster import Cluster, connect
from ad_keras.errors import RunError, UsageError
from ad_keras.pad.model import PAD
from ad_keras.runs.build import build_model
from ad_keras.runs.callbacks import Guard, LossLog, Progress, Steps
from ad_keras.runs.checkpoints import Checkpoints, newest_step
from ad_keras.runs.config import RUN_ONLY, Config
from ad_keras.runs.export import check_export_folder, export_networks
from ad_keras.runs.folder import (
    FLAGS_FILE,
    RUN,
    FolderKind,
    digest,
    failures_explained,
    load_config,
    open_run,
    read_record,
    refuse_other_flags,
)
from ad_keras.runs.parts import describe_model, difference
from ad_keras.runs.reports import Gallery, Probe, Reports
from ad_keras.runs.restore import export_metadata


@dataclasses.dataclass(frozen=True)
class TrainingResult:
    """What a finished run leaves.

    Attributes:
        run_folder: checkpoints, logs and pictures.
        export_folder: the networks, as `export_networks` writes them; None if that was not wanted.
        history: by epoch (as text; "0" is the untrained model), losses and the probe's accuracy.
        notes: what a person should know, such as flags without effect, or damaged checkpoints.
    """

    run_folder: Path
    export_folder: Path | None
    history: dict[str, dict[str, float]]
    notes: list[str]


def train(
    config: Config,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    *,
    build: Callable[[Config], PAD] = build_model,
    export: bool = True,
    split_seed: int | None = None,
) -> TrainingResult | None:
    """Trains, or continues to train, a run to its last epoch, and exports its networks.

    Args:
        config: of the run.
        callbacks: to call after the run's own, which add the scores of probes to the `logs` of
            an epoch's end. They see one training, and may stop it (`model.stop_training`): the
            run then ends in order, and calling again continues it.
        build: makes the compiled model of the configuration. A run is continued with the same.
        export: whether to export the networks.
        split_seed: of the choice of the tenth of the training images that scores the probes, if
            it is not to depend on the configuration's seed. A run is continued with the same.

    Returns:
        What the run leaves; None in a worker other than the chief, which writes nothing.

    Raises:
        UsageError: if the data, the model or the run's folder are not as they must be.
        RunError: if training fails, here or in another worker; the last good checkpoint stays.
        Interrupted: after SIGINT or SIGTERM; calling again continues.
    """
    cluster = connect(config.strategy)
    if config.deterministic:
        tf.config.experimental.enable_op_determinism()
    # All that can be refused is refused before anything is written or, with --overwrite, deleted.
    if config.batch_size % cluster.replicas:
        raise UsageError(
            f"--batch_size={config.batch_size} cannot be shared equally by {cluster.replicas} "
            "replicas: it must be a multiple of their number."
        )
    begun = (config.run_path / FLAGS_FILE).exists() and not config.overwrite
    if begun:
        refuse_other_flags(load_config(config.run_path), config)
    with cluster.chief_first():  # which may have to download or generate them
        whole = data.load(
            config.dataset, "train", data_dir=config.data_dir, image_size=config.image_size
        )
    split_seed = config.seed if split_seed is None else split_seed
    train_set, images = chosen_images(config, whole, split_seed)
    steps_per_epoch = len(images) // config.batch_size
    records = {"data.json": describe_images(images)}
    if begun:
        refuse_other_images(config, records["data.json"])
        _refuse_shorter(config, steps_per_epoch)
    named = bool(config.saved_model_dir)
    replaced = []
    if export:
        check_export_folder(config.export_path, config.run_path, named=named)
        if config.export_path.exists() and not begun and not config.overwrite:
            replaced = [
                f"{config.export_path} holds an export of another training, which this one "
                "replaces at its end: to keep it, name another folder."
            ]
    with failures_explained(config.run_path), cluster.strategy.scope():
        model = build(config)
    if model.steps_per_execution > 1:
        raise UsageError(
            f"`build` compiled with steps_per_execution={model.steps_per_execution}, but a run "
            "counts, saves and reports every step: leave it at 1."
        )
    records["model.json"] = describe_model(model)
    if begun:
        _refuse_other_model(config, records["model.json"])
    schedule = _schedule(config, steps_per_epoch)
    # A checkpoint has the rates of its step.
    optimizers = (model.encoder_optimizer, model.generator_optimizer)
    rates = [(each, float(each.learning_rate.numpy())) for each in optimizers]
    with _run_folder(config, cluster, records) as folder, failures_explained(folder):
        checkpoints = Checkpoints(model, folder)
        notes = [*config.without_effect, *replaced, *checkpoints.restore()]
        for note in notes:
            print(note, flush=True)
        first = int(model.step.numpy())
        if not cluster.agree(first):
            raise RunError(
                f"{cluster} would continue from step {first}, but another one from another step: "
                f"{folder} must be on a disk that all workers share."
            )
        steps = Steps(first, steps_per_epoch, config.batch_size)
        counted = [steps, _learning_rates(steps, rates, schedule)] if schedule else [steps]
        guard = Guard(checkpoints, config.checkpoint_every, steps, saves=cluster.is_chief)
        if not cluster.is_chief:
            _fit(config, cluster, model, images, steps, guard, [*counted, guard, *callbacks])
            cluster.wait()  # for the chief, which exports
            return None
        with contextlib.closing(tf.summary.create_file_writer(str(folder / "logs"))) as writer:
            gallery = Gallery(train_set, folder, split_seed)
            probe = Probe(train_set, split_seed)
            reports = Reports(folder, writer, steps, probe, gallery, config)
            reports.set_model(model)
            with writer.as_default(step=0):
                hparams.hparams(hyper_parameters(config))
            reports.report()  # of the untrained model, or what a crash prevented
            log = LossLog(writer, config.log_every, steps)
            own = [*counted, Progress(steps), log, guard, reports]
            _fit(config, cluster, model, images, steps, guard, [*own, *callbacks])
            with model.averaged_weights():
                gallery.embed(model)
        if export:  # another run may have exported to this folder meanwhile
            check_export_folder(config.export_path, config.run_path, named=named)
            export_networks(model, config.export_path, export_metadata(config, model))
        cluster.wait()  # only now may the others leave
    exported = config.export_path if export else None
    return TrainingResult(folder, exported, reports.history, notes)


def _schedule(
    config: Config, steps_per_epoch: int
) -> keras.optimizers.schedules.LearningRateSchedule | None:
    """What the learning rates are multiplied by, of the step; None if they do not change."""
    if config.schedule == "constant" and not config.warmup_epochs:
        return None
    warm_up = round(config.warmup_epochs * steps_per_epoch)
    return keras.optimizers.schedules.CosineDecay(
        0.0 if warm_up else 1.0,
        max(1, config.epochs * steps_per_epoch - warm_up),
        alpha=1.0 if config.schedule == "constant" else 0.0,  # where the cosine ends
        warmup_target=1.0 if warm_up else None,
        warmup_steps=warm_up,
    )


def _learning_rates(steps: Steps, rates: Sequence[tuple], schedule) -> keras.callbacks.Callback:
    """Sets the rate of each optimizer before each step, as a schedule of the steps so far says.

    In an optimizer, a schedule would count updates: the encoder has one in each phase of a step,
    the generator fewer, and the rate would change between the phases.
    """

    def set_rates(batch, logs) -> None:
        share = float(schedule(steps.step))
        for optimizer, rate in rates:
            optimizer.learning_rate = rate * share

    return keras.callbacks.LambdaCallback(on_train_batch_begin=set_rates)


def chosen_images(
    config: Config, whole: data.ImageSet, split_seed: int
) -> tuple[data.ImageSet, np.ndarray]:
    """The training images of a run, and those among them that its weights may depend on.

    Args:
        config: of the run.
        whole: the training images of its data set.
        split_seed: of the choice of those that are held out.

    Raises:
        UsageError: if there are fewer than the run needs.
    """
    if config.train_examples > len(whole):
        raise UsageError(
            f"--train_examples={config.train_examples} is more than the {len(whole)} training "
            f"images of {config.dataset}."
        )
    train_set = whole.take(config.train_examples or len(whole))
    images = train_set.images
    if config.hold_out:
        images = images[data.validation_split(len(train_set), split_seed)[0]]
    if config.batch_size > len(images):
        raise UsageError(
            f"--batch_size={config.batch_size} is more than the {len(images)} training images."
        )
    return train_set, images


def describe_images(images: np.ndarray) -> dict:
    """The images that a run is trained on, as `data.json` has them."""
    return {"images": len(images), "image_shape": [*images.shape[1:]], "sha256": digest(images)}


def refuse_other_images(config: Config, now: dict, kind: FolderKind = RUN) -> None:
    """Refuses to continue on other images, of which an epoch would be another one.

    Args:
        config: of the run.
        now: the images, from `describe_images`.
        kind: as messages speak of the run's folder.

    Raises:
        UsageError: if they are not those that the run was begun with.
    """
    before = read_record(config.run_path, "data.json", kind)
    if before == now:
        return
    counts = before.get("images"), now["images"]
    change = f"there are {counts[1]}" if counts[0] != counts[1] else "they are not the same"
    raise UsageError(
        f"the run in {config.run_path} was begun with {counts[0]} images of {config.dataset}, but "
        f"now {change}: use those again to continue it, another {kind.flag} for a new run, or "
        f"{kind.renewal}."
    )


def _refuse_other_model(config: Config, now: dict) -> None:
    different = difference(read_record(config.run_path, "model.json"), now)
    if different:
        raise UsageError(
            f"the run in {config.run_path} was begun with another model: {different}. Use the same "
            "`build` again, another --run_dir for a new run, or --overwrite to delete this one."
        )


def _refuse_shorter(config: Config, steps_per_epoch: int) -> None:
    """Refuses to end a run before the state that it is in, which would then pass for that end."""
    step = newest_step(config.run_path)
    if step > config.epochs * steps_per_epoch:
        epochs = -(-step // steps_per_epoch)
        raise UsageError(
            f"the run in {config.run_path} is in epoch {epochs} (step {step}), beyond "
            f"--epochs={config.epochs}: use --epochs={epochs} or more, another --run_dir for a "
            "shorter run, or --overwrite to delete this one."
        )


@contextlib.contextmanager
def _run_folder(config: Config, cluster: Cluster, records: Mapping[str, dict]) -> Iterator[Path]:
    """The run's folder, which the chief makes and the other workers find."""
    if cluster.is_chief:
        with open_run(config, records=records) as folder:
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
    refuse_other_images(config, records["data.json"])
    _refuse_other_model(config, records["model.json"])
    yield config.run_path


class _OneTraining(keras.callbacks.CallbackList):
    """Makes one training, for callbacks, of the two `fit` that continue a run within an epoch.

    `means` are the metrics' variables in the epoch that is continued, which `fit` resets.
    """

    def __init__(self, callbacks: Sequence, means: Sequence[np.ndarray], **options) -> None:
        super().__init__(list(callbacks), **options)
        self._means = means
        self._begun, self._last_logs = False, None

    def on_train_begin(self, logs=None) -> None:
        """Tells of the first begin."""
        if not self._begun:
            super().on_train_begin(logs)
        self._begun = True

    def on_epoch_begin(self, epoch, logs=None) -> None:
        """Puts the means of the epoch that is continued back."""
        if self._means:
            for variable, value in zip(self.model.metrics_variables, self._means, strict=True):
                variable.assign(value)
        self._means = ()
        super().on_epoch_begin(epoch, logs)

    def on_train_end(self, logs=None) -> None:
        """Waits for `finish`."""
        self._last_logs = logs

    def finish(self) -> None:
        """Tells of the end."""
        super().on_train_end(self._last_logs)


def _fit(
    config: Config,
    cluster: Cluster,
    model: PAD,
    images: np.ndarray,
    steps: Steps,
    guard: Guard,
    callbacks: Sequence[keras.callbacks.Callback],
) -> None:
    begin, last = steps.step, config.epochs * steps.per_epoch
    if begin == last:
        return
    whole = -(-begin // steps.per_epoch) * steps.per_epoch  # where the next whole epoch begins
    # Once for all epochs: a copy for each would stay until Python looks for cycles of references.
    with tf.device("CPU"):
        pool = tf.convert_to_tensor(images)
    means = [variable.numpy() for variable in model.metrics_variables] if begin < whole else []
    training = _OneTraining(callbacks, means, add_history=True, model=model)
    verbose = 1 if sys.stdout.isatty() else 2  # a bar for people, a line an epoch for files
    with on_signals(guard.note), cluster.failures_explained():
        # A continued run finishes its epoch first.
        for first, end in ((begin, whole), (whole, last)):
            if first == end or model.stop_training:
                continue
            of_epoch = min(end - first, steps.per_epoch)
            training.set_params({"epochs": config.epochs, "steps": of_epoch, "verbose": verbose})
            arguments = (pool, config.batch_size, config.seed, first, end)
            model.fit(
                cluster.batches(functools.partial(data.batches, *arguments)),
                initial_epoch=first // steps.per_epoch,
                epochs=end // steps.per_epoch,
                # Several replicas would take a step more, without images, to notice the end.
                steps_per_epoch=of_epoch,
                callbacks=training,
                shuffle=False,
            )
        training.finish()
        guard.stop_if_asked()  # while the last epoch was reported on


def hyper_parameters(config: Config) -> dict[str, bool | int | float | str]:
    """What TensorBoard's HParams say of a run."""
    told = {
        name: ",".join(value) if isinstance(value, tuple) else value
        for name, value in dataclasses.asdict(config).items()
        if name not in RUN_ONLY
    }
    return {**told, "condition": config.condition, "epochs": config.epochs}
