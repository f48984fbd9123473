"""What `throughput.py` measures, each function in a process of its own.

Every function sends its figures, in SI units, through the connection it is given. Those that go
in rounds send one dictionary when they are ready and another after each number of seconds that
they receive.
"""

import contextlib
import functools
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from unittest import mock

import keras
import numpy as np
import tensorflow as tf
from processes import peak_bytes

from ad_keras import data
from ad_keras.runs.build import build_model
from ad_keras.runs.config import Config
from ad_keras.runs.training import train

_WARM_UP = 10  # steps
_SIDE = 2048  # of the square matrices whose product sets the scale
_CLASSES = 10


def train_rounds(connection: Connection, precision: str, images: int, **settings) -> None:
    """Trains in rounds, by `training.train` with all its callbacks, on images of noise."""
    with _throw_away(precision=precision, epochs=10**6, **settings) as config, _noise(images):
        train(config, [_Rounds(connection)])


def product_rounds(connection: Connection) -> None:
    """Products of large square matrices in both precisions, in rounds: the scale for the rest."""
    products = {}
    for precision in ("float32", "bfloat16"):
        factor = tf.cast(tf.random.normal((_SIDE, _SIDE)), precision)
        product = tf.function(tf.linalg.matmul)
        products[precision] = functools.partial(product, factor, factor)
        products[precision]()
    connection.send({})
    while True:
        seconds = connection.recv()
        times = _times(products, seconds)
        connection.send({name: 2 * _SIDE**3 / time for name, time in times.items()})


def work(connection: Connection, **settings) -> None:
    """Floating-point operations of the three phases for one image."""
    connection.send(phase_operations(build_model(Config(**settings))))


def scale(connection: Connection, images: int, epochs: int, **settings) -> None:
    """Time and memory of a whole training, by `training.train`, on images of noise."""
    watch = _Watch(images // settings["batch_size"])
    with _throw_away(epochs=epochs, **settings) as config, _noise(images, _CLASSES):
        before = _resident()
        started = time.perf_counter()
        train(config, [watch])
        seconds = time.perf_counter() - started
    connection.send(
        {
            "seconds": seconds,
            "steps_seconds": watch.seconds,
            "bytes_before": before,
            "bytes_at_tenth": watch.at_tenth,
            "bytes_at_end": watch.at_end,
            # The kernel counts threads' pages late, so its peak can lie below what was read.
            "peak_bytes": max(peak_bytes(), before, watch.at_tenth, watch.at_end),
        }
    )


def phase_operations(model: keras.Model) -> dict[str, float]:
    """Floating-point operations a phase needs for one image: those of products and convolutions.

    A product costs two operations for each weight and position, once forwards, once for the
    gradient of its weights and once for that of its inputs, where a phase needs these.

    Args:
        model: a PAD with the paper's phases.
    """
    encoder, generator = _products(model.encoder), _products(model.generator)
    first, project = encoder["trunk_0"], generator["project"]
    perceive = sum(encoder.values())
    latent = perceive - encoder["external_head"]  # what leads to the latent alone
    external = perceive - encoder["latent_head"]
    generate = sum(generator.values())
    return {
        "wake": 3.0 * perceive - first + 3.0 * generate,
        "nrem": generate + 3.0 * latent - first,
        "rem": 3.0 * external + 3.0 * generate - project,
    }


class _Rounds(keras.callbacks.Callback):
    """Holds training between rounds, and measures the steps in between."""

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self._connection = connection
        self._first, self._used, self._started, self._end = _WARM_UP, 0.0, 0.0, 0.0

    def on_train_batch_end(self, batch, logs=None) -> None:
        now = time.perf_counter()
        if now < self._end or (step := int(self.model.step.numpy())) < self._first:
            return
        self._connection.send(
            {
                "steps": step - self._first,
                "seconds": now - self._started,
                "processor_seconds": time.process_time() - self._used,
                "peak_bytes": peak_bytes(),
            }
        )
        duration = self._connection.recv()
        self._first, self._used, self._started = step, time.process_time(), time.perf_counter()
        self._end = self._started + duration


class _Watch(keras.callbacks.Callback):
    """Time of the steps of all epochs, and the process's memory a tenth in and at their end."""

    def __init__(self, steps_per_epoch: int) -> None:
        super().__init__()
        self._tenth = math.ceil(steps_per_epoch / 10)
        self._steps_per_epoch = steps_per_epoch
        self._seen, self.seconds, self.at_tenth, self.at_end = 0, 0.0, 0, 0

    def on_epoch_begin(self, epoch, logs=None) -> None:
        self._started = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None) -> None:
        before, self._seen = self._seen, int(self.model.step.numpy())
        if before < self._tenth <= self._seen:
            self.at_tenth = _resident()
        if self._seen % self._steps_per_epoch == 0:
            self.seconds += time.perf_counter() - self._started
            self.at_end = _resident()


def _products(network: keras.Model) -> dict[str, float]:
    """Floating-point operations of each layer's forward product for one image."""
    operations = {}
    for layer in network.layers:
        if not layer.weights:
            continue
        positions = 1
        if isinstance(layer, keras.layers.Conv2DTranspose):
            positions = math.prod(layer.input.shape[1:3])
        elif isinstance(layer, keras.layers.Conv2D):
            positions = math.prod(layer.output.shape[1:3])
        operations[layer.name] = 2.0 * math.prod(layer.kernel.shape) * positions
    return operations


def _times(functions: dict[str, Callable], seconds: float) -> dict[str, float]:
    """Median seconds of each function, taking turns for so many seconds in all."""
    times = {name: [] for name in functions}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or not times[next(iter(functions))]:
        for name, function in functions.items():
            started = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - started)
    return {name: float(np.median(values)) for name, values in times.items()}


@contextlib.contextmanager
def _throw_away(**settings) -> Iterator[Config]:
    """The configuration of a run in a folder that is deleted in the end; it prints nothing."""
    with (
        tempfile.TemporaryDirectory() as folder,
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
    ):
        run, export = str(Path(folder, "run")), str(Path(folder, "export"))
        yield Config(run_dir=run, saved_model_dir=export, **settings)


def _noise(images: int, classes: int = 0) -> contextlib.AbstractContextManager:
    """Lets `train` find images of noise as its data set. No step takes longer on other images."""
    return mock.patch.object(data, "load", return_value=_noise_set(images, classes))


def _noise_set(images: int, classes: int = 0) -> data.ImageSet:
    pixels = np.random.default_rng(0).integers(0, 256, (images, 32, 32, 3), np.uint8)
    labels = np.arange(images) % classes if classes else None
    return data.ImageSet(pixels, labels, tuple(str(label) for label in range(classes)))


def _resident() -> int:
    """Memory that this process has now, in bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
