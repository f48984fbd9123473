"""What all command lines share: flags from a dataclass, errors as one line, a quiet TensorFlow."""

import contextlib
import dataclasses
import difflib
import os
import re
import signal
import sys
import tempfile
import textwrap
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import TypeVar

from absl import flags

from ad_keras.errors import Interrupted, RunError, UsageError, advice, first_line

Config = TypeVar("Config")


def flag(
    default, group: str, description: str, choices: Sequence[str] = (), *, repeatable: bool = False
):
    """A dataclass field that is also a flag.

    Args:
        default: of the flag; its type is the flag's, None stands for an optional text.
        group: heading under which `--help` lists the flag.
        description: what `--help` says of it.
        choices: the values that a text may take, where they are few.
        repeatable: whether a tuple is given by repeating the flag, not as a list with commas.
    """
    metadata = {"group": group, "description": description, "choices": tuple(choices)}
    return dataclasses.field(default=default, metadata={**metadata, "repeatable": repeatable})


def same_flag(config_class: type, name: str, group: str):
    """A field that is the same flag as in another command's dataclass, under another heading."""
    field = config_class.__dataclass_fields__[name]
    return dataclasses.field(default=field.default, metadata={**field.metadata, "group": group})


def require(config: object, name: str, holds: bool, allowed: str) -> None:
    """Refuses the value of a flag, by a `UsageError`, that is not what it may be."""
    if not holds:
        value = getattr(config, name)
        value = ",".join(value) if isinstance(value, tuple) else value
        raise UsageError(f"--{name}={value} is not possible: it must be {allowed}.")


def require_known(config: object, name: str, known: Collection[str]) -> None:
    """Refuses what a list has and is not known, by a `UsageError` with the nearest names."""
    for value in getattr(config, name):
        if value not in known:
            raise UsageError(f"--{name}={value} is unknown. {advice(value, known)}")


def parse(config_class: type[Config], argv: Sequence[str], program: str) -> Config:
    """Reads a command line into its dataclass.

    `--flagfile=FILE` reads flags from a file, one a line; it can be given repeatedly, and a later
    flag replaces an earlier one. A flagfile of the package needs only its name: `no_rem`.

    Args:
        config_class: a dataclass whose fields were made by `flag`. It validates itself with
            `UsageError`; its docstring is what `--help` says of the program.
        argv: the program's name and its arguments.
        program: how the program is called, for `--help`.

    Raises:
        UsageError: naming the flag and what it may be.
        SystemExit: after `--help`.
    """
    values = flags.FlagValues()
    for field in dataclasses.fields(config_class):
        _define(field, values)
    arguments = list(argv)
    if any(argument in ("--help", "-help", "-h", "--h") for argument in arguments[1:]):
        print(_help(config_class, program))
        raise SystemExit(0)
    arguments = [*arguments[:1], *_with_flagfiles(arguments[1:])]
    try:
        rest = values(arguments)
    except flags.UnrecognizedFlagError as error:
        raise UsageError(_unknown(error.flagname, values)) from None
    except (flags.Error, ValueError) as error:  # a plain one for --noflag=value
        text = str(error).replace("ERROR:: ", "").rstrip(".")
        text = re.sub("invalid literal for int.*", "it must be a whole number", text)
        text = re.sub("could not convert string to float.*", "it must be a number", text)
        raise UsageError(f"{text}.") from None
    if len(rest) > 1:
        raise UsageError(f"'{rest[1]}' is not a flag: write --name=value.")
    return config_class(**{name: _plain(values[name].value) for name in values})


def run(main: Callable[[Sequence[str]], None]) -> None:
    """Gives a program the command line, and turns what it raises into one line and an exit status.

    That is 2 for `UsageError`, 1 for `RunError`, failed writes and want of memory, 130 for an
    interruption.
    """
    try:
        main(sys.argv)
    except (UsageError, RunError) as error:
        _fail(str(error), error.exit_status)
    except KeyboardInterrupt:
        _fail("interrupted.", 130)
    except OSError as error:
        # Disks fill up and folders are read-only: that is no fault of the program.
        where = f" {error.filename}" if error.filename else ""
        _fail(f"cannot read or write{where}: {error.strerror or error}.", 1)
    except MemoryError as error:
        _fail(f"not enough memory: {first_line(error)}.", 1)


@contextlib.contextmanager
def quiet_start() -> Iterator[None]:
    """Keeps back what TensorFlow prints while it loads and looks for devices.

    It is shown if that fails, unless in one of the ways that `run` tells of.

    Environment variables do not reach these messages: they are written before logging starts.
    """
    # A lost worker is told in one line of our own; TensorFlow's would stand before it.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3" if "TF_CONFIG" in os.environ else "2")
    # TensorFlow leaves oneDNN's convolutions off on processors without AVX-512, where they are
    # faster, too.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    sys.stderr.flush()
    with tempfile.TemporaryFile() as held, os.fdopen(os.dup(2), "wb", buffering=0) as stderr:
        os.dup2(held.fileno(), 2)
        try:
            yield
            import tensorflow as tf

            tf.config.list_logical_devices()
        except (UsageError, RunError, KeyboardInterrupt):
            raise
        except BaseException:
            held.seek(0)
            stderr.write(held.read())
            raise
        finally:
            os.dup2(stderr.fileno(), 2)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Makes SIGINT and SIGTERM end with a message; training, within, has its own way to end."""

    def end(number: int, _frame) -> None:
        raise Interrupted(
            f"{signal.Signals(number).name}: what is finished is kept. The same command, without "
            "--overwrite, continues.",
            128 + number,
        )

    with on_signals(end):
        yield


@contextlib.contextmanager
def on_signals(handle: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Has SIGINT and SIGTERM call a function, except in threads, where Python does not allow it."""
    main = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGINT, signal.SIGTERM) if main else ()
    handlers = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _fail(message: str, status: int) -> None:
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(status)


def _define(field: dataclasses.Field, values: flags.FlagValues) -> None:
    description, choices = field.metadata["description"], field.metadata["choices"]
    if choices:
        flags.DEFINE_enum(field.name, field.default, choices, description, values)
        return
    define = {
        bool: flags.DEFINE_bool,
        int: flags.DEFINE_integer,
        float: flags.DEFINE_float,
        tuple: flags.DEFINE_multi_string if field.metadata["repeatable"] else flags.DEFINE_list,
    }.get(type(field.default), flags.DEFINE_string)
    default = list(field.default) if isinstance(field.default, tuple) else field.default
    define(field.name, default, description, flag_values=values)


def _with_flagfiles(arguments: Sequence[str], opened: tuple[Path, ...] = ()) -> Iterator[str]:
    """The arguments with the lines of flagfiles in their place, and of those that these name."""
    rest = iter(arguments)
    for argument in rest:
        name, equals, value = argument.partition("=")
        if name not in ("--flagfile", "-flagfile"):
            yield argument
            continue
        file = _flagfile(value if equals else next(rest, ""))
        if file in opened:
            raise UsageError(f"--flagfile={file} names itself, or a file that names it.")
        lines = [line.strip() for line in file.read_text(errors="replace").splitlines()]
        lines = [line for line in lines if line and not line.startswith(("#", "//"))]
        yield from _with_flagfiles(lines, (*opened, file))


def _flagfile(value: str) -> Path:
    """The file as given, or else that of the package: of a clone, or beside what is installed."""
    file, package = Path(value).expanduser(), Path(__file__).parent
    if file.is_file():
        return file
    folders = (package / "flags", package.parent / "flags")
    known = {path.stem: path for folder in folders for path in sorted(folder.glob("*.flags"))}
    if str(file.parent) in (".", "flags") and file.name.removesuffix(".flags") in known:
        return known[file.name.removesuffix(".flags")]
    raise UsageError(
        f"--flagfile={value} is not a file, nor one of the package's: {', '.join(known)}."
    )


def _plain(value):
    if isinstance(value, list):
        return tuple(_plain(item.strip()) for item in value)
    # Shells leave a ~ after a = alone.
    return os.path.expanduser(value) if isinstance(value, str) else value


def _unknown(name: str, values: flags.FlagValues) -> str:
    near = " or ".join(f"--{match}" for match in difflib.get_close_matches(name, list(values)))
    told = f"Did you mean {near}?" if near else "--help lists them."
    return f"--{name} is not a flag of this program. {told}"


def _help(config_class: type, program: str) -> str:
    lines = [f"{program} [flags]", ""]
    lines += textwrap.wrap(config_class.__doc__.split("\n\n")[0], 88)
    group = None
    for field in dataclasses.fields(config_class):
        if field.metadata["group"] != group:
            group = field.metadata["group"]
            lines += ["", f"{group}:"]
        lines += _help_of_flag(field)
    lines += [
        "",
        "--flagfile=FILE reads flags from a file, one a line; repeat it to combine files.",
        "A file of the package needs only its name, as in --flagfile=no_rem.",
    ]
    return "\n".join(lines)


def _help_of_flag(field: dataclasses.Field) -> list[str]:
    default = field.default
    if isinstance(default, bool):
        head = f"--{field.name}"
    else:
        shown = ",".join(default) if isinstance(default, tuple) else default
        head = f"--{field.name}=" + ("..." if shown in (None, "") else str(shown))
    text = field.metadata["description"]
    if field.metadata["choices"]:
        text += f" ({', '.join(field.metadata['choices'])})"
    indent = " " * 34
    wrapped = textwrap.wrap(text, 96, initial_indent=indent, subsequent_indent=indent)
    if len(head) < 31:
        return [f"  {head:<32}{wrapped[0].strip()}", *wrapped[1:]]
    return [f"  {head}", *wrapped]
