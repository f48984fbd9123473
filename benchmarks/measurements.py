"""What `throughput.py` measures, each function in a process of its own.

Every function sends its figures, in SI units, through the connection it is given. Those that go
in rounds send one dictionary when they are ready and another after each number of seconds that
they receive.
"""

import contextlib
import functools
import math
import os
import subprocess
import sys
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

from ad_keras import data, load_encoder
from ad_keras.measures.probe import linear_probe, ridge_probe
from ad_keras.runs.build import build_model
from ad_keras.runs.config import Config
from ad_keras.runs.export import export_networks
from ad_keras.runs.training import train

_WARM_UP = 10  # steps
_SIDE = 2048  # of the square matrices whose product sets the scale
_PATIENCE = 900.0  # seconds until a training that does not start is given up
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


def phases(connection: Connection, precision: str, seconds: float, **settings) -> None:
    """Median seconds of wake, NREM and REM on a fixed mini-batch."""
    config = Config(precision=precision, **settings)
    model = build_model(config)
    images = tf.random.uniform((config.batch_size, 32, 32, 3), -1.0, 1.0)
    latents = tf.random.normal((config.batch_size, config.latent_dim))

    def compiled(phase: Callable, *inputs: tf.Tensor) -> Callable:
        function = tf.function(phase, jit_compile=bool(model.jit_compile))
        return functools.partial(function, *inputs)

    functions = {
        "wake": compiled(model.wake, images),
        "nrem": compiled(model.nrem, latents, latents),
        "rem": compiled(model.rem, latents, latents),
    }
    for _ in range(_WARM_UP):
        for function in functions.values():
            function()
    connection.send(_times(functions, seconds))


def pipeline(connection: Connection, images: int, batch_size: int, seconds: float) -> None:
    """Images a second of the input pipeline alone."""
    pool = _noise_set(images).images
    batches = iter(data.batches(pool, batch_size, seed=0, first=0, last=10**9))
    for _ in range(_WARM_UP):
        next(batches)
    steps, started = 0, time.perf_counter()
    while time.perf_counter() < started + seconds:
        next(batches)
        steps += 1
    connection.send({"images_per_second": steps * batch_size / (time.perf_counter() - started)})


def probe(connection: Connection, images: int, latent_dim: int) -> None:
    """Seconds of both linear probes, with a fifth as many test as training examples."""
    rng = np.random.default_rng(0)
    count = images + max(2, images // 5)
    latents = rng.standard_normal((count, latent_dim), np.float32)
    labels = np.arange(count) % _CLASSES
    parts = (latents[:images], labels[:images], latents[images:], labels[images:])
    seconds = {}
    for function in (linear_probe, ridge_probe):
        started = time.perf_counter()
        function(*parts, num_classes=_CLASSES)
        seconds[function.__name__] = time.perf_counter() - started
    connection.send(seconds)


def encoding(connection: Connection, seconds: float, **settings) -> None:
    """Images a second of the exported encoder, both ways to load it, by size of the batch."""
    with _throw_away(**settings) as config:
        folder = config.export_path
        export_networks(build_model(config), folder)
        loaded = load_encoder(folder)
        served = tf.saved_model.load(str(folder / "encoder"))
    functions = {}
    for size in (1, 64, 1024):
        images = tf.constant(_noise_set(size).images)
        functions["load_encoder", size] = functools.partial(loaded, images)
        functions["SavedModel", size] = functools.partial(
            served.signatures["serving_default"], images=images
        )
    for function in functions.values():
        function()
    # One after the other: a large batch would empty the caches before a small one.
    for (way, size), function in functions.items():
        median = _times({way: function}, seconds / len(functions))[way]
        connection.send({"way": way, "batch": size, "images_per_second": size / median})
    connection.send(None)


def startup(connection: Connection, dataset: str, data_dir: str | None, **settings) -> None:
    """Seconds of `python -m ad_keras.train` to its help, and to its first step.

    The first step counts as done when its checkpoint is there. Before it, a run loads its data,
    and probes and pictures the untrained model. The data set is prepared before.
    """
    train_set = data.load(dataset, "train", data_dir=data_dir)
    program = [sys.executable, "-m", "ad_keras.train"]
    started = time.perf_counter()
    subprocess.run([*program, "--help"], check=True, stdout=subprocess.DEVNULL)
    helped = time.perf_counter() - started
    with _throw_away(dataset=dataset, data_dir=data_dir, checkpoint_every=1, **settings) as config:
        names = ("dataset", "data_dir", "checkpoint_every", "run_dir", "saved_model_dir", *settings)
        told = {name: getattr(config, name) for name in names}
        flags = [f"--{name}={value}" for name, value in told.items() if value is not None]
        started = time.perf_counter()
        process = subprocess.Popen([*program, *flags], stdout=subprocess.DEVNULL)
        try:
            while not list(config.run_path.rglob("*.index")):
                waited = time.perf_counter() - started
                if process.poll() is not None or waited > _PATIENCE:
                    raise RuntimeError(f"{' '.join([*program, *flags])} made no step")
                time.sleep(0.01)
            first = time.perf_counter() - started
        finally:
            process.kill()
            process.wait()
    connection.send({"help": helped, "first_step": first, "images": len(train_set)})


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
            "peak_bytes": peak_bytes(),
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
