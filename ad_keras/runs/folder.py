"""A run's folder: whose it is, what it was told, and what it was begun with."""

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import tensorflow as tf

from ad_keras.errors import RunError, UsageError, first_line
from ad_keras.runs.config import RUN_ONLY, Config

FLAGS_FILE = "flags.json"

_OF_DISKS = [
    os.strerror(number)
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EACCES)
]


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
        renewal: how one deletes it, in words that follow "or".
    """

    name: str
    flag: str
    config_class: type[Config]
    flags_file: str
    content: tuple[str, ...]
    changeable: frozenset[str]
    renewal: str = "--overwrite to delete it"


RUN = FolderKind(
    "run",
    "--run_dir",
    Config,
    FLAGS_FILE,
    content=(
        *("model.json", "data.json", "history.json", "results.json", "results.csv"),
        *("checkpoints", "logs", "figures", "held_out"),
    ),
    changeable=RUN_ONLY,
)


def digest(images: np.ndarray) -> str:
    """SHA-256 of images, by which `data.json` tells those that a run is trained on from others."""
    return hashlib.sha256(np.ascontiguousarray(images)).hexdigest()


@contextlib.contextmanager
def open_run(
    config: Config, kind: FolderKind = RUN, records: Mapping[str, dict] | None = None
) -> Iterator[Path]:
    """Takes a run's folder for this process, making it if need be.

    Args:
        config: of the run. With `overwrite`, what an earlier run left in the folder is deleted.
        kind: of folder, if it is not a run's.
        records: by the names of their files, what is saved beside the flags of a new run.

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
        if config.overwrite:
            if not saved.exists() and len(list(folder.iterdir())) > 1:
                raise UsageError(
                    f"{folder} holds something that is no {kind.name}, which --overwrite would "
                    f"delete: choose another {kind.flag}."
                )
            for name in (*kind.content, kind.flags_file):  # last: it makes a run of the folder
                for path in folder.glob(name):
                    shutil.rmtree(path, ignore_errors=True)
                    path.unlink(missing_ok=True)
        if saved.exists():
            refuse_other_flags(load_config(folder, kind), config, kind)
        elif own := [name for name in kind.content if (folder / name).is_dir()]:
            raise UsageError(
                f"{folder} has no {saved.name}, but {own[0]}/, which would be mixed with that of a "
                f"new {kind.name}: choose another {kind.flag}, or move it away."
            )
        else:  # the flags last, because they make a run of the folder
            for name, record in (records or {}).items():
                write_atomically(folder / name, json.dumps(record, indent=1) + "\n")
        write_atomically(saved, config.to_json())
        yield folder


def load_config(folder: Path, kind: FolderKind = RUN) -> Config:
    """The flags saved in the folder of an existing run, or in one of another kind.

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
            f"{file} cannot be read ({first_line(error)}): choose another {kind.flag}, or "
            f"{kind.renewal}."
        ) from None


def read_record(folder: Path, name: str, kind: FolderKind = RUN) -> dict:
    """What a run was begun with, from a file in its folder, as `open_run` saved it.

    Raises:
        UsageError: if it is not there, as in runs of earlier versions, or is damaged.
    """
    try:
        return json.loads((folder / name).read_text())
    except FileNotFoundError:
        reason = "an earlier version of ad_keras began it"
    except ValueError as error:
        reason = first_line(error)
    raise UsageError(
        f"the run in {folder} has no readable {name} ({reason}): use another {kind.flag}, or "
        f"{kind.renewal}."
    )


def refuse_other_flags(saved: Config, wanted: Config, kind: FolderKind = RUN) -> None:
    """Refuses to continue a run, begun with the saved flags, as another one, with those wanted.

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
            f"{kind.renewal}."
        )


@contextlib.contextmanager
def failures_explained(folder: Path) -> Iterator[None]:
    """Says in one line what ended the run in a folder: the disk, or what TensorFlow could not do.

    Raises:
        RunError: in place of what TensorFlow raises, and of errors that do not say where.
    """
    try:
        yield
    except (tf.errors.OpError, OSError, MemoryError) as error:
        if isinstance(error, OSError) and error.filename:
            raise
        raise RunError(
            f"the run in {folder} failed: {first_line(error)}.{disk_question(error)} What was "
            "saved is kept. The same command, without --overwrite, continues."
        ) from error


def disk_question(error: Exception) -> str:
    """What to ask a person about an error, if it is one of files."""
    of_disks = isinstance(error, OSError) or any(text in str(error) for text in _OF_DISKS)
    return " Is the disk full or read-only?" if of_disks else ""


def read_history(folder: Path) -> dict[str, dict[str, float]]:
    """What was reported of the run in a folder: by epoch (as text), losses and probes.

    Epoch "0" is the untrained model. If there is no readable history, there is nothing: what can
    be, is then reported anew.
    """
    try:
        history = json.loads((folder / "history.json").read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return history if isinstance(history, dict) else {}


def write_atomically(path: Path, text: str) -> None:
    """Writes a file such that at any moment either the old or the new one is there, whole."""
    beside = path.with_name(f".{path.name}.partial")
    try:
        beside.write_text(text)
        os.replace(beside, path)
    except OSError as error:  # errors of writing do not say where
        raise OSError(error.errno, error.strerror, str(path)) from error
