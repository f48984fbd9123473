"""A run's folder: whose it is, what it was told, and the states training can continue from."""

import contextlib
import dataclasses
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import tensorflow as tf

from ad_keras.runs.config import RUN_ONLY, Config
from ad_keras.errors import RunError, UsageError
from ad_keras.pad.model import PAD

FLAGS_FILE = "flags.json"


@dataclasses.dataclass(frozen=True)
class FolderKind:
    """What a folder with saved flags is, and how messages speak of it.

    Attributes:
        name: what is in it.
        flag: that names the folder.
        config_class: of the flags.
        flags_file: where they are saved.
        content: names, or patterns of names, of what else belongs to it.
        changeable: flags that may change when it is continued.
    """

    name: str
    flag: str
    config_class: type[Config]
    flags_file: str
    content: tuple[str, ...]
    changeable: frozenset[str]


RUN = FolderKind(
    "run",
    "--run_dir",
    Config,
    FLAGS_FILE,
    ("history.json", "results.json", "checkpoints", "logs", "figures"),
    RUN_ONLY,
)


@contextlib.contextmanager
def open_run(config: Config, kind: FolderKind = RUN) -> Iterator[Path]:
    """Takes a run's folder for this process, making it if need be.

    Args:
        config: of the run. With `overwrite`, what an earlier run left in the folder is deleted.
        kind: of folder, if it is not a run's.

    Yields:
        The folder, with the flags saved in it.

    Raises:
        UsageError: if another process uses the folder, it belongs to a run with other flags, or
            it is not a run's and there are runs in it.
    """
    folder = config.run_path
    if not (folder / kind.flags_file).exists() and next(folder.glob(f"*/{kind.flags_file}"), None):
        raise UsageError(
            f"{folder} is a folder of {kind.name} folders: name one in it, such as "
            f"{kind.flag}={folder / 'new'}."
        )
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                f"{folder} is in use by another process: wait for it, or choose another "
                f"{kind.flag}."
            ) from None
        saved = folder / kind.flags_file
        if config.overwrite and not saved.exists() and len(list(folder.iterdir())) > 1:
            raise UsageError(
                f"{folder} holds something that is no {kind.name}, which --overwrite would delete: "
                f"choose another {kind.flag}."
            )
        if config.overwrite:
            for name in (kind.flags_file, *kind.content):
                for path in folder.glob(name):
                    shutil.rmtree(path, ignore_errors=True)
                    path.unlink(missing_ok=True)
        if saved.exists():
            refuse_other_flags(load_config(folder, kind), config, kind)
        write_atomically(saved, config.to_json())
        yield folder


def load_config(folder: Path, kind: FolderKind = RUN) -> Config:
    """The flags of an existing run.

    Args:
        folder: of the run.
        kind: of folder, if it is not a run's.

    Raises:
        UsageError: if the folder is not a run's.
    """
    file = folder / kind.flags_file
    try:
        return kind.config_class.from_json(file.read_text())
    except FileNotFoundError:
        raise UsageError(
            f"{folder} is not the folder of a {kind.name}: it has no {file.name}."
        ) from None
    except ValueError as error:
        raise UsageError(
            f"{file} cannot be read ({error}): delete the folder, or start again with --overwrite."
        ) from None


@contextlib.contextmanager
def failures_explained(folder: Path) -> Iterator[None]:
    """Says in one line where a disk that is full or read-only ended a run.

    Args:
        folder: of the run.

    Raises:
        RunError: in place of what TensorFlow raises, and of errors that do not say where.
    """
    try:
        yield
    except (tf.errors.OpError, OSError) as error:
        if isinstance(error, OSError) and error.filename:
            raise
        raise RunError(
            f"the run in {folder} failed: {_one_line(error)}. Is the disk full or read-only? What "
            "was saved is kept, and the same command continues."
        ) from error


def refuse_other_flags(saved: Config, wanted: Config, kind: FolderKind = RUN) -> None:
    """Refuses to continue a run as another one.

    Args:
        saved: the flags that the run was started with.
        wanted: those to continue it with.
        kind: of folder, if it is not a run's.

    Raises:
        UsageError: naming the flags that differ, if weights depend on them.
    """
    before, now = dataclasses.asdict(saved), dataclasses.asdict(wanted)
    different = [
        f"--{name} was {before[name]} and is {now[name]}"
        for name in now
        if name not in kind.changeable and before[name] != now[name]
    ]
    if different:
        raise UsageError(
            f"{wanted.run_path} holds a {kind.name} with other flags: {'; '.join(different)}. Use "
            f"these again to continue it, another {kind.flag} for a new {kind.name}, or "
            "--overwrite to delete it."
        )


def completed_epochs(folder: Path) -> int:
    """How many epochs a run has behind it.

    Args:
        folder: of the run.

    Raises:
        UsageError: if the record of its epochs is damaged.
    """
    history = folder / "history.json"
    try:
        return max(map(int, json.loads(history.read_text())), default=0)
    except FileNotFoundError:
        return 0
    except (ValueError, TypeError) as error:
        raise UsageError(f"{history} cannot be read ({error}): train the run again.") from error


def newest_step(folder: Path) -> int:
    """The step of a run's newest checkpoint; 0 if there is none.

    Args:
        folder: of the run.
    """
    files = (folder / "checkpoints" / "recent").glob("step-*.index")
    return max((int(file.stem.removeprefix("step-")) for file in files), default=0)


def write_atomically(path: Path, text: str) -> None:
    """Writes a file such that at any moment either the old or the new one is there, whole."""
    beside = path.with_name(f".{path.name}.partial")
    try:
        beside.write_text(text)
        os.replace(beside, path)
    except OSError as error:  # errors of writing do not say where
        raise OSError(error.errno, error.strerror, str(path)) from error


class Checkpoints:
    """Saves and restores the whole state of training: networks, optimizers, memory and step.

    `checkpoints/recent` holds the newest three states, by step; `checkpoints/epochs` keeps the
    ends of epochs 1, 2, 5, 10, 20, 50, ... for looking back.

    Args:
        model: compiled, so that its optimizers have their state.
        run_folder: of the run.
    """

    def __init__(self, model: PAD, run_folder: Path) -> None:
        self._model = model
        # One by one, because Keras adds a metric of its own to a model, which only all workers
        # together could read.
        state = tf.train.Checkpoint(
            encoder=model.encoder,
            generator=model.generator,
            step=model.step,
            **model.parts_with_weights,
            encoder_optimizer=model.encoder_optimizer,
            generator_optimizer=model.generator_optimizer,
        )
        # The losses since the epoch's start too: a report that a crash prevented needs them.
        means = [variable.value for metric in model.metrics for variable in metric.variables]
        self._checkpoint = tf.train.Checkpoint(model=state, means=means)
        root = run_folder / "checkpoints"
        self._recent = tf.train.CheckpointManager(
            self._checkpoint, str(root / "recent"), max_to_keep=3, checkpoint_name="step"
        )
        self._epochs = tf.train.CheckpointManager(
            self._checkpoint, str(root / "epochs"), max_to_keep=None, checkpoint_name="epoch"
        )

    def save(self, epoch: int | None = None) -> None:
        """Saves the present state.

        Args:
            epoch: how many epochs are completed, at the end of one.

        Raises:
            RunError: if a weight is not finite (nothing is saved then), or the disk refuses.
        """
        step = int(self._model.step.numpy())
        # Losses can be finite one step after the weights no longer are.
        broken = [weight.path for weight in self._model.weights if not _is_finite(weight.value)]
        if broken:
            raise RunError(
                f"the weights {broken[0]} became NaN or infinite at step {step}. {self.advice()}"
            )
        try:
            if epoch is not None and _is_kept(epoch):
                self._epochs.save(checkpoint_number=epoch)
            # Last, because this is what a run continues from: nothing before it is missed then.
            self._recent.save(checkpoint_number=step)
        except (tf.errors.OpError, OSError) as error:
            raise RunError(
                f"cannot save a checkpoint at step {step} in {self._recent.directory} (is the "
                f"disk full or read-only?): {_one_line(error)}. {self._newest()}"
            ) from error

    def restore(self) -> list[str]:
        """Restores the newest state that can be read, if any was saved.

        Returns:
            A line for each newer checkpoint that is damaged.

        Raises:
            RunError: if there are checkpoints and all are damaged.
        """
        damaged = []
        for path in self._saved():
            try:
                self._checkpoint.restore(str(path)).assert_existing_objects_matched()
                return damaged
            except (tf.errors.OpError, ValueError, IndexError, AssertionError) as error:
                reason = _one_line(error)
                damaged.append(f"{path} is damaged ({reason}): continuing from the one before.")
        if damaged:
            raise RunError(
                f"none of the {len(damaged)} checkpoints in {self._recent.directory} can be read "
                f"({reason}): start again with --overwrite."
            )
        return []

    def kept_epochs(self) -> list[int]:
        """The epochs whose ends are kept, in order."""
        files = Path(self._epochs.directory).glob("epoch-*.index")
        return sorted(int(path.stem.removeprefix("epoch-")) for path in files)

    def restore_epoch(self, epoch: int) -> None:
        """Restores the end of an epoch.

        Args:
            epoch: one of `kept_epochs`.

        Raises:
            RunError: if it is not kept, or is damaged.
        """
        path = Path(self._epochs.directory) / f"epoch-{epoch}"
        if epoch not in self.kept_epochs():
            kept = ", ".join(map(str, self.kept_epochs())) or "none"
            raise RunError(f"{path} does not exist; the epochs kept are: {kept}.")
        try:
            self._checkpoint.restore(str(path)).assert_existing_objects_matched()
        except (tf.errors.OpError, ValueError, IndexError, AssertionError) as error:
            raise RunError(f"{path} is damaged ({_one_line(error)}).") from error

    def advice(self) -> str:
        """What to say when training diverged."""
        return f"{self._newest()} Lower --encoder_learning_rate and --generator_learning_rate."

    def _newest(self) -> str:
        saved = self._saved()
        return (
            f"The last good checkpoint is {saved[0]}." if saved else "There is no checkpoint yet."
        )

    def _saved(self) -> list[Path]:
        """Newest first. Found by their files, since the list that is kept of them may be lost."""
        files = Path(self._recent.directory).glob("step-*.index")
        paths = [path.with_suffix("") for path in files]
        return sorted(paths, key=lambda path: int(path.name.removeprefix("step-")), reverse=True)


def _is_finite(value: tf.Tensor) -> bool:
    if not value.dtype.is_floating:
        return True
    return bool(tf.reduce_all(tf.math.is_finite(value)))


def _is_kept(epoch: int) -> bool:
    return epoch > 0 and str(epoch).rstrip("0") in ("1", "2", "5")


def _one_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
