"""Errors that are shown to people as one line, without a stack trace."""

import difflib
import re
from collections.abc import Collection

_NO_CAUSE = ("Graph execution error:", "Detected at node", 'File "', "<stack traces unavailable>")


class UsageError(ValueError):
    """What was asked for cannot be done: a wrong value, or data that are not as they must be."""

    exit_status = 2


class RunError(RuntimeError):
    """What was asked for is possible, but failed on the way."""

    exit_status = 1


class Interrupted(RunError):
    """A signal ended the run, which can be continued.

    The exit status is 128 and the signal's number, as shells have it.
    """

    def __init__(self, message: str, exit_status: int) -> None:
        super().__init__(message)
        self.exit_status = exit_status


def first_line(error: Exception) -> str:
    """The cause of an error in one line, without a full stop.

    Where in a graph TensorFlow met it, with which the text may begin, is left out.
    """
    for line in map(str.strip, str(error).splitlines()):
        if line and not line.startswith(_NO_CAUSE):
            line = re.sub(r"^\{\{.*?\}\} | \[Op:[^\]]*\].*$", "", line)
            return line.rstrip(".")
    return type(error).__name__


def advice(value: str, known: Collection[str]) -> str:
    """What to say of a name that is not among those that are known: the nearest, or else all."""
    near = " or ".join(difflib.get_close_matches(value, known, n=2, cutoff=0.5))
    return f"Did you mean {near}?" if near else f"There are {', '.join(known)}."
