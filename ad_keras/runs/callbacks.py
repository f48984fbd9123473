"""What happens beside the training steps: progress, logs, pictures, probes and checkpoints."""

import json
import signal
import time
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from PIL import Image
from tensorboard.plugins import projector

from ad_keras.runs import pictures
from ad_keras.runs.checkpoints import Checkpoints, write_atomically
from ad_keras.data import ImageSet, validation_split
from ad_keras.errors import Interrupted, RunError
from ad_keras.measures.latents import encode
from ad_keras.measures.probe import linear_probe, ridge_probe
from ad_keras.pad.model import PAD

_PICTURES = 12  # columns of a sheet
_WALKS = 6
_EMBEDDED = 1000  # images in TensorBoard's projector
_SHOWN = {
    "wake/reconstruction_loss": "wake",
    "wake/kl_loss": "kl",
    "nrem/recovery_loss": "nrem",
    "rem/internal_loss": "rem",
}  # what the progress bar shows, and its names for them


def read_history(folder: Path) -> dict[str, dict[str, float]]:
    """What was reported of a run: by epoch (as text; "0" is untrained), losses and probes.

    Args:
        folder: of the run.

    Returns:
        Nothing if there is no readable history: what can be, is then reported anew.
    """
    try:
        history = json.loads((folder / "history.json").read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return history if isinstance(history, dict) else {}


class Progress(keras.callbacks.ProgbarLogger):
    """Keras's progress bar with the rate in images/s and one loss for each phase.

    All the metrics would not fit a line, and a bar that wraps cannot be redrawn.

    Args:
        batch_size: images of a step.
    """

    def __init__(self, batch_size: int):
        super().__init__()
        self._batch_size = batch_size

    def on_epoch_begin(self, epoch, logs=None) -> None:
        """Starts a bar."""
        super().on_epoch_begin(epoch, logs)
        self._started, self._done = time.perf_counter(), 0

    def on_train_batch_end(self, batch, logs=None) -> None:
        """Moves the bar."""
        self._done += 1
        super().on_train_batch_end(batch, self._line(logs))

    def on_epoch_end(self, epoch, logs=None) -> None:
        """Finishes the bar."""
        super().on_epoch_end(epoch, self._line(logs))

    def _line(self, logs: dict) -> dict:
        rate = self._done * self._batch_size / (time.perf_counter() - self._started)
        shown = {short: logs[name] for name, short in _SHOWN.items() if name in logs}
        return {"images/s": round(rate), **shown}


class LossLog(keras.callbacks.Callback):
    """Writes the losses since the epoch's start, and the rate, to TensorBoard.

    Args:
        writer: of TensorBoard's events.
        every: steps between entries.
        batch_size: images of a step.
        first_step: number of the step before the first.
    """

    def __init__(
        self, writer: tf.summary.SummaryWriter, every: int, batch_size: int, first_step
    ) -> None:
        super().__init__()
        self._writer = writer
        self._every = every
        self._batch_size = batch_size
        self._step = first_step
        self._last = (first_step, time.perf_counter())

    def on_train_batch_end(self, batch, logs=None) -> None:
        """Writes every so many steps."""
        self._step += 1
        if self._step % self._every:
            return
        step, then = self._last
        self._last = (self._step, now) = (self._step, time.perf_counter())
        with self._writer.as_default(step=self._step):
            for name, value in logs.items():
                tf.summary.scalar(name, value)
            rate = (self._step - step) * self._batch_size / (now - then)
            tf.summary.scalar("images_per_second", rate)


class Guard(keras.callbacks.Callback):
    """Saves checkpoints, and ends training in order: when interrupted, or when a loss diverges.

    While it is in charge, SIGINT and SIGTERM end training after the present step; a second
    signal ends the process at once, leaving the last checkpoint.

    Args:
        checkpoints: where to save.
        every: steps between checkpoints; every epoch's end is saved too.
        steps_per_epoch: mini-batches of an epoch.
        first_step: number of the step before the first.
        saves: whether this process is the one that writes checkpoints.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        every: int,
        steps_per_epoch: int,
        first_step: int,
        *,
        saves: bool = True,
    ) -> None:
        super().__init__()
        self._saves = saves
        self._checkpoints = checkpoints
        self._every = every
        self._steps_per_epoch = steps_per_epoch
        self._step = first_step
        self._signal = None

    def __enter__(self) -> "Guard":
        self._handlers = {
            number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)
        }
        return self

    def __exit__(self, *_):
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def on_train_batch_end(self, batch, logs=None) -> None:
        """Looks at the losses, then at the time to save."""
        self._step += 1
        for name, value in logs.items():
            if not np.isfinite(value):
                epoch = 1 + (self._step - 1) // self._steps_per_epoch
                raise RunError(
                    f"{name} became {value} at step {self._step} (epoch {epoch}). "
                    f"{self._checkpoints.advice()}"
                )
        if self._step % self._steps_per_epoch == 0:
            return  # saved at the epoch's end
        if self._saves and (self._step % self._every == 0 or self._signal is not None):
            self._checkpoints.save()
        self._stop_if_asked()

    def on_epoch_end(self, epoch, logs=None) -> None:
        """Saves every epoch's end."""
        if self._saves:
            self._checkpoints.save(epoch + 1)
        self._stop_if_asked()

    def _stop_if_asked(self) -> None:
        if self._signal is None:
            return
        told = (
            "the state is saved. The same command, without --overwrite, continues from here."
            if self._saves
            else "this worker stops, and with it the others. Starting all of them again continues "
            "from the chief's last checkpoint."
        )
        raise Interrupted(
            f"{signal.Signals(self._signal).name} at step {self._step}: {told}",
            128 + self._signal,
        )

    def _note(self, number: int, _frame) -> None:
        self._signal = number
        signal.signal(number, signal.SIG_DFL)


class Reports(keras.callbacks.Callback):
    """What is looked at between epochs: pictures, latents and the linear probes.

    `probe/validation_accuracy` is the paper's probe. Its high learning rate makes it noisy, above
    all early in training, so `ridge_probe/validation_accuracy` stands beside it: a ridge classifier
    of standardised latents, solved exactly.

    Epoch 0 is the untrained model. What was reported stands in `history.json`, so that a
    continued run neither repeats nor misses a report. The same figures go to TensorBoard, with
    the epoch as their step.

    Args:
        train: the training images. A seeded tenth of them, which the probe is not fitted on,
            scores the probe and is what the pictures show.
        folder: of the run.
        writer: of TensorBoard's events.
        epochs: last epoch of the training.
        dream_every: epochs between pictures; 0 for none.
        probe_every: epochs between probes; 0 for the first and the last only.
        seed: of the split, the choice of pictures, their noise and the probe.
    """

    def __init__(
        self,
        train: ImageSet,
        folder: Path,
        writer: tf.summary.SummaryWriter,
        *,
        epochs: int,
        dream_every: int,
        probe_every: int,
        seed: int,
    ) -> None:
        super().__init__()
        self._train = train
        self._folder = folder
        self._writer = writer
        self._epochs = epochs
        self._dream_every = dream_every
        self._probe_every = probe_every
        self._seed = seed
        self._fitted, self._held_out = validation_split(len(train), seed)
        self._has_classes = train.labels is not None and np.ptp(train.labels[self._fitted]) > 0
        self._history_file = folder / "history.json"
        self.history = read_history(folder)

    def on_epoch_end(self, epoch, logs=None) -> None:
        """Reports on the epoch that ended."""
        self.report(epoch + 1, logs)

    def report(self, epoch: int, logs: dict | None = None) -> None:
        """Reports on the model as it is now, unless that was done.

        Args:
            epoch: how many epochs the model was trained.
            logs: losses of the epoch.
        """
        new = str(epoch) not in self.history
        losses = (logs or self.model.get_metrics_result()) if epoch else {}
        entry = {name: float(value) for name, value in losses.items()} if new else {}
        entry |= self.history.get(str(epoch), {})
        last = epoch >= self._epochs
        shown = (self._folder / "figures" / "dreams.png").is_file()
        with self._writer.as_default(step=epoch):
            if self._dream_every and (
                (new and (last or epoch % self._dream_every == 0)) or (last and not shown)
            ):
                self._show(self.model)
            if (
                self._has_classes
                and "probe/validation_accuracy" not in entry
                and (epoch == 0 or last or (self._probe_every and epoch % self._probe_every == 0))
            ):
                scores = self._probe(self.model)
                entry |= scores
                for name, score in scores.items():
                    tf.summary.scalar(name, score)
        self._writer.flush()
        self.history[str(epoch)] = entry
        write_atomically(self._history_file, json.dumps(self.history, indent=1) + "\n")

    def embed(self) -> None:
        """Writes latents, labels and thumbnails of held-out images for TensorBoard's projector."""
        logs = self._folder / "logs"
        shown = self._held_out[:_EMBEDDED]
        images = self._train.images[shown]
        latents = encode(self.model.encoder, images)
        np.savetxt(logs / "latents.tsv", latents, fmt="%.5g", delimiter="\t")
        columns = int(np.ceil(np.sqrt(len(images))))
        side = images.shape[1]
        tiles = np.zeros((columns**2, side, side, 3), np.uint8)
        tiles[: len(images)] = images
        sprite = tiles.reshape(columns, columns, side, side, 3).swapaxes(1, 2)
        Image.fromarray(sprite.reshape(columns * side, -1, 3)).save(logs / "thumbnails.png")
        config = projector.ProjectorConfig()
        embedding = config.embeddings.add(tensor_name="latents", tensor_path="latents.tsv")
        embedding.sprite.image_path = "thumbnails.png"
        embedding.sprite.single_image_dim.extend([side, side])
        if self._train.labels is not None:
            names = [self._train.class_names[label] for label in self._train.labels[shown]]
            (logs / "labels.tsv").write_text("\n".join(names) + "\n")
            embedding.metadata_path = "labels.tsv"
        projector.visualize_embeddings(str(logs), config)

    def _show(self, model: PAD) -> None:
        chosen = np.random.default_rng([self._seed, 0]).permutation(self._held_out)
        images, partners = np.resize(self._train.images[chosen], (2, _PICTURES, *self._shape))
        sheets = {
            "wake": pictures.wake_rows(model, images),
            "nrem": pictures.nrem_rows(model, images, self._seed),
            "rem": pictures.rem_rows(model, images, partners, self._seed),
            "traversal": pictures.traversal_rows(
                model, images[:_WALKS], partners[:_WALKS], _PICTURES - 2
            ),
        }
        folder = self._folder / "figures"
        folder.mkdir(exist_ok=True)
        drawn = {name: pictures.sheet(rows) for name, rows in sheets.items()}
        for name, picture in drawn.items():
            tf.summary.image(f"dreams/{name}", picture[None])
            Image.fromarray(picture).save(folder / f"{name}.png")
        Image.fromarray(np.concatenate(list(drawn.values()))).save(folder / "dreams.png")
        tf.summary.histogram(
            "latents", encode(model.encoder, self._train.images[chosen[:_EMBEDDED]])
        )

    @property
    def _shape(self) -> tuple[int, ...]:
        return self._train.images.shape[1:]

    def _probe(self, model: PAD) -> dict[str, float]:
        latents, labels = encode(model.encoder, self._train.images), self._train.labels
        if not np.isfinite(latents).all():
            raise RunError(
                "the latents became infinite or NaN: lower --encoder_learning_rate and "
                "--generator_learning_rate and start again with --overwrite."
            )
        parts = [
            part[rows] for rows in (self._fitted, self._held_out) for part in (latents, labels)
        ]
        classes = len(self._train.class_names)
        return {
            f"{name}/validation_accuracy": probe(
                *parts, num_classes=classes, seed=self._seed
            ).accuracy
            for name, probe in (("probe", linear_probe), ("ridge_probe", ridge_probe))
        }
