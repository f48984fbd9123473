"""What is looked at between epochs: losses, pictures, latents and the linear probes."""

import json
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from PIL import Image
from tensorboard.plugins import projector

from ad_keras.data import ImageSet, validation_split
from ad_keras.errors import RunError
from ad_keras.measures.latents import encode
from ad_keras.measures.probe import linear_probe, ridge_probe
from ad_keras.pad.model import PAD
from ad_keras.runs import pictures
from ad_keras.runs.callbacks import Steps
from ad_keras.runs.config import Config
from ad_keras.runs.folder import read_history, write_atomically

_PROBES = {"probe": linear_probe, "ridge_probe": ridge_probe}
_PICTURES = 12  # columns of a sheet
_WALKS = 6
_EMBEDDED = 1000  # images in TensorBoard's projector


class Reports(keras.callbacks.Callback):
    """Keeps `history.json`, and has probes made and pictures drawn when it is time.

    Epoch 0 is the untrained model. What was reported stands in `history.json`, so that a
    continued run neither repeats nor misses a report. The same figures go to TensorBoard, by
    step, and to the callbacks that come after this one, which can stop training by them. An epoch
    that a callback stopped within is reported once it is complete.

    Args:
        folder: of the run.
        writer: of TensorBoard's events.
        steps: the count.
        probe: of the latents.
        gallery: of the pictures.
        config: says which epoch is the last, and how often there are pictures and probes.
    """

    def __init__(
        self,
        folder: Path,
        writer: tf.summary.SummaryWriter,
        steps: Steps,
        probe: "Probe",
        gallery: "Gallery",
        config: Config,
    ) -> None:
        super().__init__()
        self._folder = folder
        self._writer = writer
        self._steps = steps
        self._probe = probe
        self._gallery = gallery
        self._config = config
        self.history = read_history(folder)

    def on_epoch_end(self, epoch, logs=None) -> None:
        """Reports on the epoch that ended."""
        self.report(logs)

    def on_train_end(self, logs=None) -> None:
        """Reports on the end, if a callback stopped training before its last epoch."""
        if self._steps.step < self._config.epochs * self._steps.per_epoch:
            self.report(stopped=True)

    def report(self, logs: dict | None = None, *, stopped: bool = False) -> None:
        """Reports on the model as it is now, unless that was done or it is within an epoch.

        Args:
            logs: losses of the epoch, to which scores of probes are added.
            stopped: whether training ends here, before its time.
        """
        if self._steps.within_epoch:
            return
        epoch = self._steps.step // self._steps.per_epoch
        key, last = str(epoch), stopped or epoch >= self._config.epochs
        new = key not in self.history
        if logs is None:
            logs = self.model.get_metrics_result() if epoch else {}
        entry = {name: float(value) for name, value in logs.items()} if new else {}
        entry |= self.history.get(key, {})
        with self._writer.as_default(step=self._steps.step), self.model.averaged_weights():
            if self._shows(epoch, new, last, stopped):
                self._gallery.draw(self.model)
            unknown = "probe/validation_accuracy" not in entry
            every = self._config.probe_every
            due = epoch == 0 or last or (every and epoch % every == 0)
            if self._probe.possible and unknown and due:
                scores = self._probe(self.model)
                entry |= scores
                logs.update(scores)
                for name, score in scores.items():
                    tf.summary.scalar(name, score)
        self._writer.flush()
        # Sorted, since the names come in another order after a crash.
        self.history[key] = dict(sorted(entry.items()))
        write_atomically(self._folder / "history.json", json.dumps(self.history, indent=1) + "\n")

    def _shows(self, epoch: int, new: bool, last: bool, stopped: bool) -> bool:
        every = self._config.dream_every
        if not every:
            return False
        drawn = epoch % every == 0
        lost = last and not (self._folder / "figures" / "dreams.png").is_file()
        return (new and (last or drawn)) or (stopped and not drawn) or lost


class Probe:
    """The linear probes on held-out training images.

    `probe/validation_accuracy` is the paper's probe. Its high learning rate makes it noisy, above
    all early in training, so `ridge_probe/validation_accuracy` stands beside it: a ridge classifier
    of standardised latents, solved exactly.

    Args:
        train: the training images, of which a seeded tenth scores the probes that are fitted on
            the others.
        seed: of the split and the paper's probe.

    Attributes:
        possible: whether there are labels of several classes.
    """

    def __init__(self, train: ImageSet, seed: int) -> None:
        self._train = train
        self._seed = seed
        self._split = validation_split(len(train), seed)
        self.possible = (
            train.labels is not None and len(np.unique(train.labels[self._split[0]])) > 1
        )

    def __call__(self, model: PAD) -> dict[str, float]:
        """The accuracy, in [0, 1], of each probe of a model's latents.

        Raises:
            RunError: if latents are not finite.
        """
        latents, labels = encode(model.encoder, self._train.images), self._train.labels
        if not np.isfinite(latents).all():
            raise RunError(
                "the latents became infinite or NaN: lower --encoder_learning_rate and "
                "--generator_learning_rate in a new run."
            )
        parts = [part[rows] for rows in self._split for part in (latents, labels)]
        options = {"num_classes": len(self._train.class_names), "seed": self._seed}
        return {
            f"{name}/validation_accuracy": probe(*parts, **options).accuracy
            for name, probe in _PROBES.items()
        }


class Gallery:
    """Pictures and latents of held-out training images, for `figures/` and TensorBoard.

    Args:
        train: the training images.
        folder: of the run.
        seed: of the split, the choice of pictures and their noise.
    """

    def __init__(self, train: ImageSet, folder: Path, seed: int) -> None:
        self._train = train
        self._folder = folder
        self._seed = seed
        self._held_out = validation_split(len(train), seed)[1]

    def draw(self, model: PAD) -> None:
        """Draws what a model makes of some images, and the histogram of their latents."""
        chosen = np.random.default_rng([self._seed, 0]).permutation(self._held_out)
        images, partners = self._train.images[np.resize(chosen, (2, _PICTURES))]
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
        latents = encode(model.encoder, self._train.images[chosen[:_EMBEDDED]])
        tf.summary.histogram("latents", latents)

    def embed(self, model: PAD) -> None:
        """Writes a model's latents, labels and thumbnails for TensorBoard's projector."""
        logs = self._folder / "logs"
        shown = self._held_out[:_EMBEDDED]
        images = self._train.images[shown]
        latents = encode(model.encoder, images)
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
