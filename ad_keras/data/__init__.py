"""Images in, mini-batches out.

`load` brings a whole split into memory as uint8; `batches` makes a `tf.data` pipeline of it in
which every mini-batch is a function of (seed, step) alone.
"""

import contextlib
import dataclasses
import importlib
import io
import logging
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, UnidentifiedImageError

from ad_keras.errors import Interrupted, RunError, UsageError, advice, first_line

if TYPE_CHECKING:
    import tensorflow as tf

DATASETS = {
    "svhn": "svhn_cropped",
    "cifar10": "cifar10",
    "mnist": "mnist",
    "fashion_mnist": "fashion_mnist",
    "synth_digits": "synth_digits",
}
"""Names that `load` knows, and what TensorFlow Datasets calls them."""

SPLITS = ("train", "test")

_SOURCES = {
    "svhn": "http://ufldl.stanford.edu",
    "cifar10": "https://www.cs.toronto.edu",
    "mnist": "https://storage.googleapis.com",
    "fashion_mnist": "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
}
_SUFFIXES = {".png", ".jpg", ".jpeg"}
_SECONDS_TO_CONNECT = 5.0


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """A split in memory.

    Attributes:
        images: uint8 [N, image_size, image_size, 3].
        labels: int64 [N], or None where there are none.
        class_names: by label; empty without labels.
    """

    images: np.ndarray
    labels: np.ndarray | None
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)

    def take(self, rows: int | np.ndarray) -> "ImageSet":
        """The first `rows` images, or those at these indices."""
        chosen = slice(rows) if isinstance(rows, int) else rows
        labels = None if self.labels is None else self.labels[chosen]
        return dataclasses.replace(self, images=self.images[chosen], labels=labels)


def resolve(dataset: str) -> Path | None:
    """Checks the name of a data set.

    Args:
        dataset: one of `DATASETS`, `synth_digits/<size>`, or the path of a folder of images.

    Returns:
        The folder, or None for one of `DATASETS`.

    Raises:
        UsageError: if it is neither, with the nearest names.
    """
    name, slash, _ = dataset.partition("/")
    if name in DATASETS and (not slash or name == "synth_digits"):
        return None
    folder = Path(dataset).expanduser()
    if dataset and folder.is_dir():
        return folder
    told = f"--dataset={dataset} is neither a data set nor an existing folder"
    raise UsageError(f"{told}. {advice(name.lower(), DATASETS)}")


def short_name(dataset: str) -> str:
    """A data set's name for folders and headings: a folder's own, or such as synth_digits_50k."""
    if dataset in DATASETS or dataset.startswith("synth_digits/"):
        return dataset.replace("/", "_")
    return Path(dataset).expanduser().resolve().name


def load(
    dataset: str, split: str, *, data_dir: str | None = None, image_size: int = 32
) -> ImageSet:
    """Loads a split into memory, in an order that is always the same.

    Grey images get three equal channels; images of another size are resized.

    Args:
        dataset: one of `DATASETS`, `synth_digits/<size>`, or a folder as `tfds.ImageFolder` has
            it, `<folder>/<split>/<class>/*.png` or `.jpg`. Images that lie in `<folder>/<split>`
            itself have no labels.
        split: "train" or "test".
        data_dir: where TensorFlow Datasets are prepared; None for its own default.
        image_size: side of the images in pixels.

    Raises:
        UsageError: if the data set is unknown, or is neither prepared nor can be.
        RunError: if its files are damaged; the message names them.
    """
    folder = resolve(dataset)
    if folder is not None:
        return _load_folder(folder, split, image_size)
    return _load_prepared(dataset, split, data_dir, image_size)


def validation_split(examples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Splits the training set for choices that must not see the test set.

    Args:
        examples: size of the training set.
        seed: of the split.

    Returns:
        Sorted indices of the 90 % to fit on, and of the 10 % to score on.
    """
    order = np.random.default_rng([seed, examples]).permutation(examples)
    held_out = max(1, round(0.1 * examples))
    return np.sort(order[held_out:]), np.sort(order[:held_out])


def batches(
    images: "np.ndarray | tf.Tensor",
    batch_size: int,
    seed: int,
    first: int,
    last: int,
    parts: range = range(1),
    of: int = 1,
) -> "tf.data.Dataset":
    """The mini-batches of training steps `first` to `last` - 1.

    Every epoch visits the images in a random order of its own, `np.random.default_rng([seed,
    epoch]).permutation(N)`, and drops the incomplete mini-batch. A step's images depend on the
    seed and on the step, not on the steps before.

    Args:
        images: uint8 [N, H, W, C]. An array is copied.
        batch_size: at most N.
        seed: of the order, 0 or more.
        first: step to begin with; the epoch is `first // (N // batch_size)`.
        last: step to end before.
        parts: which parts of every mini-batch to give, one after the other.
        of: how many equal parts a mini-batch has.

    Returns:
        A `tf.data.Dataset` of uint8 [batch_size / of, H, W, C].
    """
    import tensorflow as tf

    count = len(images)
    steps_per_epoch = count // batch_size
    # A captured NumPy array would be copied into the graph; a tensor is referred to.
    pool = tf.convert_to_tensor(images)

    def order(epoch: np.int64) -> np.ndarray:
        return np.random.default_rng([seed, int(epoch)]).permutation(count)

    def mini_batches(epoch: tf.Tensor) -> tf.data.Dataset:
        indices = tf.ensure_shape(tf.numpy_function(order, [epoch], tf.int64), [count])
        indices = tf.reshape(indices[: steps_per_epoch * batch_size], [-1, of, batch_size // of])
        own = tf.reshape(indices[:, parts.start : parts.stop], [-1, batch_size // of])
        return tf.data.Dataset.from_tensor_slices(own)

    first_epoch, last_epoch = first // steps_per_epoch, -(-last // steps_per_epoch)
    begin = (first - first_epoch * steps_per_epoch) * len(parts)
    size = (last - first) * len(parts)
    chosen = tf.data.Dataset.range(first_epoch, last_epoch).flat_map(mini_batches)
    steps = chosen.skip(begin).take(size).apply(tf.data.experimental.assert_cardinality(size))
    options = tf.data.Options()
    # They would rewrite the graph, and to that end copy what it refers to: all images.
    options.experimental_optimization.apply_default_optimizations = False
    steps = steps.map(
        lambda indices: tf.gather(pool, indices), num_parallel_calls=2, deterministic=True
    )
    return steps.prefetch(4).with_options(options)


def reachable(address: str) -> bool:
    """Whether the web server at an address answers, which is known within seconds."""
    answered = threading.Event()

    def connect() -> None:
        request = urllib.request.Request(address, method="HEAD")
        try:
            urllib.request.urlopen(request, timeout=_SECONDS_TO_CONNECT).close()
        except urllib.error.HTTPError:
            pass  # an answer, if not a friendly one
        except OSError:
            return
        answered.set()

    # Looking up a host's name heeds no time-out, so it may outlive the wait for it.
    lookup = threading.Thread(target=connect, daemon=True)
    lookup.start()
    lookup.join(_SECONDS_TO_CONNECT + 2)
    return answered.is_set()


def _load_prepared(dataset: str, split: str, data_dir: str | None, image_size: int) -> ImageSet:
    import tensorflow as tf
    import tensorflow_datasets as tfds

    # Its notes on folders without a description would stand between our own lines.
    logging.getLogger("absl").setLevel(logging.ERROR)
    name, _, config = dataset.partition("/")
    if name == "synth_digits":
        importlib.import_module("ad_keras.data.synth_digits")  # registers the builder
        sizes = tfds.builder_cls(name).builder_configs
        if config and config not in sizes:
            raise UsageError(
                f"--dataset={dataset} does not exist; the sizes are {', '.join(sizes)}."
            )
    full_name = DATASETS[name] + (f"/{config}" if config else "")
    where = Path(data_dir).expanduser() if data_dir else Path(tfds.core.constants.DATA_DIR)
    try:
        builder = tfds.builder(full_name, data_dir=str(where))
    except Exception as error:  # anything a damaged description can raise
        raise RunError(_damaged(dataset, where / DATASETS[name], error)) from error
    if not builder.is_prepared():
        _prepare(builder, dataset, where)
        builder = tfds.builder(full_name, data_dir=str(where))  # reads what is there now
    try:
        expected = builder.info.splits[split].num_examples
        images = np.empty((expected, image_size, image_size, 3), np.uint8)
        labels = np.empty(expected, np.int64)
        read = 0
        examples = builder.as_dataset(
            split=split,
            as_supervised=True,
            # Read once: a cache would hold the images a second time, and complains when reading
            # ends early at a damaged file.
            read_config=tfds.ReadConfig(try_autocache=False),
        )
        for pictures, classes in tfds.as_numpy(examples.batch(256).prefetch(4)):
            images[read : read + len(classes)] = _fit(pictures, image_size)
            labels[read : read + len(classes)] = classes
            read += len(classes)
        if read != expected:
            raise ValueError(f"{read} of {expected} images of '{split}' are there")
    except (tf.errors.OpError, OSError, ValueError, KeyError) as error:
        raise RunError(_damaged(dataset, builder.data_dir, error)) from error
    return ImageSet(images, labels, tuple(builder.info.features["label"].names))


def _prepare(builder, dataset: str, where: Path) -> None:
    """Downloads, or generates, what is not there yet."""
    source = _SOURCES.get(dataset)
    if source is None:
        print(f"Generating {builder.name} in {where}", flush=True)
    elif not reachable(source):
        raise UsageError(_missing(dataset, where, f"{source} cannot be reached"))
    try:
        # TensorFlow Datasets tells of a download, and of sizes that it does not know.
        with contextlib.nullcontext() if source else contextlib.redirect_stdout(None):
            builder.download_and_prepare()
    except Interrupted:
        raise
    except Exception as error:  # the many ways in which a download fails
        if builder.is_prepared():  # by another process meanwhile
            return
        if source:
            raise UsageError(_missing(dataset, where, first_line(error))) from error
        raise RunError(f"{dataset} cannot be generated in {where}: {first_line(error)}.") from error


def _missing(dataset: str, where: Path, reason: str) -> str:
    name = DATASETS[dataset]
    return (
        f"--dataset={dataset} is not prepared in {where / name} and {reason}. Prepare it on a "
        f"connected machine (tfds build {name} --data_dir=DIR) and copy DIR here, point "
        "--data_dir to a folder that has it, or use --dataset=synth_digits, which is generated."
    )


def _damaged(dataset: str, where: str | Path, error: Exception) -> str:
    return (
        f"--dataset={dataset} in {where} is damaged or incomplete: {first_line(error)}. "
        "Delete that folder and prepare the data set again."
    )


def _load_folder(folder: Path, split: str, image_size: int) -> ImageSet:
    root = folder / split
    if not root.is_dir():
        raise UsageError(
            f"{folder} has no folder '{split}': images belong into "
            f"{root}/<class>/, or into {root} where there are no classes."
        )
    # Those of all splits together, so that a label means the same class in each.
    splits = SPLITS if split in SPLITS else (split,)
    entries = (entry for each in splits for entry in (folder / each).glob("[!.]*"))
    class_names = tuple(sorted({entry.name for entry in entries if entry.is_dir()}))
    loose = _pictures(root)
    if not any((root / name).is_dir() for name in class_names):
        class_names = ()
    if class_names and loose:
        raise UsageError(f"{root} has both folders of classes and images beside them: {loose[0]}.")
    files = sorted(  # classes take turns, so that the first images are of all classes
        (number, label, path)
        for label, folder in enumerate([root / name for name in class_names] or [root])
        if folder.is_dir()
        for number, path in enumerate(_pictures(folder))
    )
    if not files:
        raise UsageError(f"{root} has no images ({', '.join(sorted(_SUFFIXES))}).")
    images = np.stack([_read(path, image_size) for _, _, path in files])
    labels = np.array([label for _, label, _ in files], np.int64) if class_names else None
    return ImageSet(images, labels, class_names)


def _pictures(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES)


def _read(path: Path, image_size: int) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(path.read_bytes())) as image:
            pixels = _rgb(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        # The text of this one names an object in memory.
        unknown = isinstance(error, UnidentifiedImageError)
        reason = "neither PNG nor JPEG" if unknown else first_line(error)
        raise RunError(
            f"{path} is not a readable image ({reason}): repair or remove it."
        ) from error
    height, width, _ = pixels.shape
    if height != width:
        raise RunError(
            f"{path} is {width} x {height} pixels: images must be square (they are resized to "
            f"{image_size} x {image_size}); crop it first."
        )
    return _fit(pixels[None], image_size)[0]


def _rgb(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I"):  # 16 bits, which Pillow would clip to 8
        image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
    if "transparency" in image.info:
        image = image.convert("RGBA")
    return np.asarray(image.convert("RGB"))


def _fit(images: np.ndarray, image_size: int) -> np.ndarray:
    """uint8 [N, H, W, 1 or 3] -> uint8 [N, image_size, image_size, 3]."""
    images = np.broadcast_to(images, (*images.shape[:-1], 3))
    if images.shape[1:3] == (image_size, image_size):
        return images
    size, bilinear = (image_size, image_size), Image.Resampling.BILINEAR
    return np.stack([np.asarray(Image.fromarray(image).resize(size, bilinear)) for image in images])
