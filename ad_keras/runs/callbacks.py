"""What happens beside the training steps: the count of steps, progress, logs and checkpoints."""

import collections
import signal
import time

import keras
import numpy as np
import tensorflow as tf

from ad_keras.errors import Interrupted, RunError
from ad_keras.runs.checkpoints import Checkpoints

_TIMED = 50  # steps that the rate is a mean of
_SHOWN = {
    "wake/reconstruction_loss": "wake",
    "wake/kl_loss": "kl",
    "nrem/recovery_loss": "nrem",
    "rem/internal_loss": "rem",
}  # what the progress bar shows, and its names for them


class Steps(keras.callbacks.Callback):
    """Counts the steps, for the other callbacks, which come after it.

    Args:
        step: how many steps the model was trained; the attribute of this name counts on.
        per_epoch: mini-batches of an epoch, an attribute too.
        batch_size: images of a step.
    """

    def __init__(self, step: int, per_epoch: int, batch_size: int) -> None:
        super().__init__()
        self.step, self.per_epoch = step, per_epoch
        self._batch_size = batch_size
        self._times = collections.deque(maxlen=_TIMED + 1)

    @property
    def within_epoch(self) -> bool:
        """Whether the present epoch is begun and not complete."""
        return self.step % self.per_epoch != 0

    @property
    def rate(self) -> float:
        """Images per second, over the last steps of the epoch."""
        seconds = self._times[-1] - self._times[0]
        return (len(self._times) - 1) * self._batch_size / max(seconds, 1e-9)

    def on_epoch_begin(self, epoch, logs=None) -> None:
        """Leaves what happens between epochs out of the rate."""
        self._times.clear()
        self._times.append(time.perf_counter())

    def on_train_batch_end(self, batch, logs=None) -> None:
        """Counts a step."""
        self.step += 1
        self._times.append(time.perf_counter())


class Progress(keras.callbacks.ProgbarLogger):
    """Keras's progress bar with the rate in images/s and one loss for each phase.

    All the metrics would not fit a line, and a bar that wraps cannot be redrawn.
    """

    def __init__(self, steps: Steps):
        super().__init__()
        self._steps = steps

    def on_train_batch_end(self, batch, logs=None) -> None:
        """Moves the bar."""
        super().on_train_batch_end(batch, self._line(logs))

    def on_epoch_end(self, epoch, logs=None) -> None:
        """Finishes the bar."""
        super().on_epoch_end(epoch, self._line(logs))

    def _line(self, logs: dict) -> dict:
        shown = {short: logs[name] for name, short in _SHOWN.items() if name in logs}
        return {"images/s": round(self._steps.rate), **shown}


class LossLog(keras.callbacks.Callback):
    """Writes the losses since the epoch's start, and rates, to TensorBoard, by step.

    `epoch` is how many epochs the model was trained at that step, such as 1.5.

    Args:
        writer: of TensorBoard's events.
        every: steps between entries; every epoch's end has one too.
        steps: the count.
    """

    def __init__(self, writer: tf.summary.SummaryWriter, every: int, steps: Steps) -> None:
        super().__init__()
        self._writer = writer
        self._every = every
        self._steps = steps

    def on_train_batch_end(self, batch, logs=None) -> None:
        """Writes every so many steps, and at the end of an epoch."""
        step = self._steps.step
        if step % self._every and self._steps.within_epoch:
            return
        with self._writer.as_default(step=step):
            for name, value in logs.items():
                tf.summary.scalar(name, value)
            tf.summary.scalar("images_per_second", self._steps.rate)
            tf.summary.scalar("epoch", step / self._steps.per_epoch)
            for name in ("encoder", "generator"):
                rate = getattr(self.model, f"{name}_optimizer").learning_rate
                # Of a variable on several devices, Keras makes no float.
                tf.summary.scalar(f"{name}_learning_rate", keras.ops.convert_to_numpy(rate))


class Guard(keras.callbacks.Callback):
    """Saves checkpoints, and ends training in order: when interrupted, or when a loss diverges.

    After SIGINT or SIGTERM, which `note` handles, training ends after the present step. A second
    signal ends the process at once, leaving the last checkpoint.

    Args:
        checkpoints: where to save.
        every: steps between checkpoints; every epoch's end is saved too.
        steps: the count.
        saves: whether this process is the one that writes checkpoints.
    """

    def __init__(
        self, checkpoints: Checkpoints, every: int, steps: Steps, *, saves: bool = True
    ) -> None:
        super().__init__()
        self._checkpoints = checkpoints
        self._every = every
        self._steps = steps
        self._saves = saves
        self._signal = None

    def on_train_batch_end(self, batch, logs=None) -> None:
        """Looks at the losses, then at the time to save."""
        step = self._steps.step
        for name, value in logs.items():
            if not np.isfinite(value):
                epoch = -(-step // self._steps.per_epoch)
                raise RunError(
                    f"{name} became {value} at step {step} (epoch {epoch}). "
                    f"{self._checkpoints.advice()}"
                )
        if not self._steps.within_epoch:
            return  # saved at the epoch's end
        if self._saves and (step % self._every == 0 or self._signal is not None):
            self._checkpoints.save()
        self.stop_if_asked()

    def on_epoch_end(self, epoch, logs=None) -> None:
        """Saves every epoch's end, or where within the epoch another callback stopped."""
        if self._saves:
            self._checkpoints.save(None if self._steps.within_epoch else epoch + 1)
        self.stop_if_asked()

    def stop_if_asked(self) -> None:
        """Ends training if there was a signal."""
        if self._signal is None:
            return
        told = (
            "the state is saved. The same command, without --overwrite, continues from here."
            if self._saves
            else "this worker stops, and with it the others. Starting all of them again, "
            "without --overwrite, continues from the chief's last checkpoint."
        )
        raise Interrupted(
            f"{signal.Signals(self._signal).name} at step {self._steps.step}: {told}",
            128 + self._signal,
        )

    def note(self, number: int, _frame) -> None:
        """Handles a signal, as `signal.signal` calls it."""
        self._signal = number
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_DFL)
