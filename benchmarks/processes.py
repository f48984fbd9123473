"""Measurements in processes of their own."""

import contextlib
import importlib
import importlib.util
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

from ad_keras.cli import quiet_start
from ad_keras.errors import RunError, UsageError


class Worker:
    """A function in a process of its own, and what it sends.

    Args:
        module: beside this file, such as "measurements".
        function: its name there. It gets a connection and `settings`.
        settings: keyword arguments.
    """

    def __init__(self, module: str, function: str, **settings) -> None:
        # A new process, not a copy of this one: neither library survives being copied.
        context = multiprocessing.get_context("spawn")
        self._name = f"{module}.{function}"
        self._pipe, theirs = context.Pipe()
        # This process deletes the other's temporary files, since that one is killed.
        self._folder = tempfile.TemporaryDirectory()
        arguments = (module, function, theirs, self._folder.name, settings)
        self._process = context.Process(target=_work, args=arguments, daemon=True)
        self._process.start()
        theirs.close()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_) -> None:
        self._process.kill()
        self._process.join()
        self._folder.cleanup()

    def receive(self):
        """Waits for what the function sends next."""
        try:
            answer = self._pipe.recv()
        except EOFError:
            raise RunError(f"{self._name} ended before it had measured anything.") from None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def round(self, seconds: float) -> dict:
        """Lets the function work for so long.

        Returns:
            What it sends, and as `others` the share of all cores that other processes used.
        """
        busy, started = _busy_seconds(), time.perf_counter()
        self._pipe.send(seconds)
        answer = self.receive()
        passed = (time.perf_counter() - started) * os.cpu_count()
        foreign = _busy_seconds() - busy - answer.get("processor_seconds", 0.0)
        return {**answer, "others": max(0.0, foreign / passed)}


def _work(module: str, function: str, connection, folder: str, settings: dict) -> None:
    tempfile.tempdir = folder
    with quiet_start() if module == "measurements" else contextlib.nullcontext():
        measure = getattr(importlib.import_module(module), function)
    try:
        measure(connection, **settings)
    except (UsageError, RunError) as error:
        connection.send(error)


def require_torch(otherwise: str) -> None:
    """Refuses what needs PyTorch where it is not installed.

    Args:
        otherwise: what else a person can do, such as "or leave out --peer".

    Raises:
        UsageError: if it is not.
    """
    if importlib.util.find_spec("torch") is None:
        raise UsageError(f'PyTorch is not installed: pip install -e ".[benchmark]", {otherwise}.')


def pin_to_processor() -> None:
    """Hides GPUs from TensorFlow, which then computes where PyTorch's implementation does.

    It takes effect in this process before TensorFlow starts, and in those that it starts.
    """
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"


def peak_bytes() -> int:
    """The most memory this process had so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _busy_seconds() -> float:
    """How long the cores of this machine were at work, all together; 0 where nothing tells."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    except OSError:
        return 0.0
    ticks = [int(field) for field in fields]
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")  # all but idle and waiting
