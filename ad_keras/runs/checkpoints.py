"""The states of a run that training can continue from."""

from pathlib import Path

import keras
import tensorflow as tf

from ad_keras.errors import RunError, UsageError, first_line
from ad_keras.pad.model import PAD
from ad_keras.runs.folder import disk_question

_UNREADABLE = (tf.errors.OpError, ValueError, IndexError, AssertionError)


def newest_step(folder: Path) -> int:
    """The step of the newest checkpoint in the folder of a run; 0 if there is none."""
    return max(_saved(folder / "checkpoints" / "recent"), default=0)


class Checkpoints:
    """Saves and restores the whole state of training: networks, optimizers, memory and step.

    Averages of the networks' weights, if they are kept, are part of it.

    `checkpoints/recent` holds the newest three states, by step; `checkpoints/epochs` keeps the
    ends of epochs 1, 2, 5, 10, 20, 50, ... for looking back.

    Args:
        model: compiled, so that its optimizers have their state.
        run_folder: of the run.
    """

    def __init__(self, model: PAD, run_folder: Path) -> None:
        self._model = model
        averages = [average.value for _, average in model.averaged]
        networks = (model.encoder, model.generator, *model.parts_with_weights.values())
        weights = {id(weight) for network in networks for weight in network.weights}
        # Such as the state of a dropout layer's random numbers.
        others = [v.value for each in networks for v in each.variables if id(v) not in weights]
        # One by one, because Keras adds a metric of its own to a model, which only all workers
        # together could read.
        state = tf.train.Checkpoint(
            encoder=model.encoder,
            generator=model.generator,
            step=model.step,
            **model.parts_with_weights,
            **({"averages": averages} if averages else {}),
            **({"others": others} if others else {}),
            encoder_optimizer=model.encoder_optimizer,
            generator_optimizer=model.generator_optimizer,
        )
        # The losses since the epoch's start too: a report that a crash prevented needs them.
        means = [variable.value for variable in model.metrics_variables]
        self._checkpoint = tf.train.Checkpoint(model=state, means=means)
        root = run_folder / "checkpoints"
        self._recent = tf.train.CheckpointManager(
            self._checkpoint, str(root / "recent"), max_to_keep=3, checkpoint_name="step"
        )
        self._epochs = tf.train.CheckpointManager(
            self._checkpoint, str(root / "epochs"), max_to_keep=None, checkpoint_name="epoch"
        )

    def save(self, epoch: int | None = None) -> None:
        """Saves the present state; at the end of an epoch, `epoch` says how many are completed.

        Raises:
            RunError: if a weight is not finite (nothing is saved then), or the disk refuses.
        """
        step = int(self._model.step.numpy())
        # Losses can be finite one step after the weights no longer are.
        broken = [w.path for w in self._model.weights if not keras.ops.all(keras.ops.isfinite(w))]
        if broken:
            raise RunError(
                f"the weights {broken[0]} became NaN or infinite at step {step}. {self.advice()}"
            )
        try:
            if epoch and str(epoch).rstrip("0") in ("1", "2", "5"):
                self._epochs.save(checkpoint_number=epoch)
            # Last, because this is what a run continues from: nothing before it is missed then.
            self._recent.save(checkpoint_number=step)
        except (tf.errors.OpError, OSError) as error:
            raise RunError(
                f"cannot save a checkpoint at step {step} in {self._recent.directory}: "
                f"{first_line(error)}.{disk_question(error)} {self._newest()}"
            ) from error

    def restore(self) -> list[str]:
        """Restores the newest state that can be read, if any was saved.

        Returns:
            A line for each newer checkpoint that is damaged.

        Raises:
            RunError: if there are checkpoints and all are damaged.
        """
        damaged = []
        for path in self._recent_paths():
            try:
                self._checkpoint.restore(str(path)).assert_existing_objects_matched()
                return damaged
            except _UNREADABLE as error:
                reason = first_line(error)
                damaged.append(f"{path} is damaged ({reason}): continuing from the one before.")
        if damaged:
            raise RunError(
                f"none of the {len(damaged)} checkpoints in {self._recent.directory} can be read "
                f"({reason}): start again with --overwrite."
            )
        return []

    def kept_epochs(self) -> list[int]:
        """The epochs whose ends are kept, in order."""
        return _saved(Path(self._epochs.directory))

    def restore_epoch(self, epoch: int) -> None:
        """Restores the end of an epoch, one of `kept_epochs`.

        Raises:
            UsageError: if it is not kept.
            RunError: if it is damaged.
        """
        path = Path(self._epochs.directory) / f"epoch-{epoch}"
        if epoch not in self.kept_epochs():
            kept = ", ".join(map(str, self.kept_epochs())) or "none"
            raise UsageError(f"{path} does not exist; the epochs kept are: {kept}.")
        try:
            self._checkpoint.restore(str(path)).assert_existing_objects_matched()
        except _UNREADABLE as error:
            raise RunError(f"{path} is damaged ({first_line(error)}).") from error

    def advice(self) -> str:
        """What to say when training diverged."""
        rates = "--encoder_learning_rate and --generator_learning_rate"
        return f"{self._newest()} Lower {rates} in a new run."

    def _newest(self) -> str:
        for path in self._recent_paths():
            return f"The last good checkpoint is {path}."
        return "There is no checkpoint yet."

    def _recent_paths(self) -> list[Path]:
        folder = Path(self._recent.directory)
        return [folder / f"step-{step}" for step in reversed(_saved(folder))]


def _saved(folder: Path) -> list[int]:
    """Numbers of the states in a folder, by their files: the list kept of them may be lost."""
    return sorted(int(file.stem.rpartition("-")[2]) for file in folder.glob("*-[0-9]*.index"))
