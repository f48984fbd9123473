"""Networks whose features the distances between real and generated images are taken in.

`classifier_features` needs no download: a small classifier of the same data set.
`inception_features` are the field's usual ones. Values in the features of one network cannot be
compared with those in another's.
"""

import dataclasses
import math
import os
import warnings
from pathlib import Path

import joblib
import keras
import numpy as np
import tensorflow as tf
from sklearn.utils import gen_batches
from tqdm import tqdm

from ad_keras.data import ImageSet, batches, reachable
from ad_keras.errors import Interrupted, RunError, UsageError

_SEED = 0  # of the classifier's weights, dropout and order
_VERSION = 1  # of the classifier; a change of its layers or training needs a new number
_WIDTH = 256  # of its features
_BATCH = 128
_LEARNING_RATE = 1e-3
_IMAGES_TRAINED_ON = 200_000  # in all epochs together
_EPOCHS = (5, 50)  # at least and at most
_MOST_HELD_OUT = 10_000  # the paper's number of real images

_INCEPTION_SIZE = 299
_INCEPTION_ADDRESS = (
    "https://storage.googleapis.com/tensorflow/keras-applications/inception_v3/"
    "inception_v3_weights_tf_dim_ordering_tf_kernels_notop.h5"
)
_WEIGHTS_FILE = _INCEPTION_ADDRESS.rpartition("/")[2]


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureExtractor:
    """A network that turns images into feature vectors.

    Attributes:
        name: what the features are, for people.
        network: from uint8 images [B, H, W, 3] to features [B, D].
        folder: of the cache in which features of real images are kept.
        accuracy: on the test images, if the network is a classifier of the data set.
    """

    name: str
    network: keras.Model
    folder: Path
    accuracy: float | None = None

    @property
    def weights(self) -> str:
        """A digest of the network's weights: only values in the same features can be compared."""
        return joblib.hash(self.network.get_weights())

    def __call__(self, images: np.ndarray, label: str = "features") -> np.ndarray:
        """Features, float32 [N, D], of images, uint8 [N, H, W, 3]; a progress bar has the label."""
        bar = tqdm([*gen_batches(len(images), _BATCH)], desc=label, disable=None, leave=False)
        found = [np.asarray(self.network(images[rows], training=False)) for rows in bar]
        return np.concatenate(found)

    def of_reference(self, images: np.ndarray) -> np.ndarray:
        """Features of real images, from the cache if they were computed before."""
        kept = joblib.Memory(self.folder, verbose=0).cache(_kept, ignore=["extractor"])
        return kept(self, self.weights, images)


def reference_rows(train_set: ImageSet) -> np.ndarray:
    """Numbers of the training images that dreams are compared with, in random order.

    The feature classifier is fitted on the others. They are 10,000, or half of the images if
    these are fewer than 20,000.
    """
    count = len(train_set)
    return np.random.default_rng(_VERSION).permutation(count)[: min(_MOST_HELD_OUT, count // 2)]


def classifier_features(train_set: ImageSet, test_set: ImageSet, folder: Path) -> FeatureExtractor:
    """The last layer but one (256) of a small convolutional classifier of the same images.

    It is trained on all training images but those of `reference_rows`, and kept: only other data
    or another folder train another one.

    Args:
        train_set: with labels.
        test_set: with labels, on which its accuracy is measured.
        folder: of the cache.

    Raises:
        UsageError: if there are no labels.
    """
    if train_set.labels is None or test_set.labels is None:
        raise UsageError(
            "--features=classifier needs labels, which the data set does not have: choose "
            "--features=inception."
        )
    kept = joblib.Memory(folder, verbose=0).cache(_fitted)
    weights, accuracy = kept(train_set, test_set, _VERSION)
    classifier = _build_classifier(train_set)
    classifier.set_weights(weights)
    return FeatureExtractor(
        name=f"classifier of the same data set (last layer but one, {_WIDTH})",
        network=keras.Model(classifier.input, classifier.get_layer("features").output),
        folder=folder,
        accuracy=accuracy,
    )


def inception_features(folder: Path, weights: str | None = None) -> FeatureExtractor:
    """Inception v3's last pooling layer (pool3, 2048), trained on ImageNet.

    Images are resized to 299 x 299 (bilinear) and given to it in [-1, 1], the range it expects.
    These are the weights of `keras.applications`: values differ a little from those in the
    weights of the first publications on the Frechet distance.

    Args:
        folder: of the cache.
        weights: file of the weights without the top; None for a download, made once.

    Raises:
        UsageError: if the file cannot be read, or the network is not reached.
    """
    home = Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser()
    here = (home / "models" / _WEIGHTS_FILE).is_file()
    if weights is None and not (here or reachable(_INCEPTION_ADDRESS)):
        raise UsageError(
            f"Inception's weights are not here and {_INCEPTION_ADDRESS.rpartition('/')[0]} cannot "
            f"be reached: bring the file {_WEIGHTS_FILE} from there and name it with "
            "--inception_weights=PATH, or use --features=classifier."
        )
    images = keras.Input((None, None, 3), dtype="uint8", name="images")
    resized = keras.layers.Resizing(_INCEPTION_SIZE, _INCEPTION_SIZE, dtype="float32")(images)
    signed = keras.layers.Rescaling(1 / 127.5, -1.0, dtype="float32")(resized)
    try:
        with warnings.catch_warnings():
            # Keras only warns of layers that are left with random weights.
            warnings.filterwarnings("error", message="Skipping", category=UserWarning)
            inception = keras.applications.InceptionV3(
                include_top=False,
                pooling="avg",
                weights=weights or "imagenet",
                input_shape=(_INCEPTION_SIZE, _INCEPTION_SIZE, 3),
            )
    except Interrupted:
        raise
    except Exception as error:  # the many ways in which a download fails
        if weights is None:
            raise RunError(f"Inception's weights cannot be downloaded ({error}).") from error
        raise UsageError(
            f"--inception_weights={weights} are not the weights of Inception v3 without its top, "
            f"as keras.applications has them: {_WEIGHTS_FILE}."
        ) from error
    return FeatureExtractor(
        name="Inception v3 pool3 (2048, keras.applications)"
        + (f", weights {Path(weights).name}" if weights else ""),
        network=keras.Model(images, inception(signed)),
        folder=folder,
    )


def _fitted(
    train_set: ImageSet, test_set: ImageSet, version: int
) -> tuple[list[np.ndarray], float]:
    """Weights of the classifier and its accuracy on the test images."""
    classifier = _build_classifier(train_set)
    fitted = np.delete(np.arange(len(train_set)), reference_rows(train_set))
    _train(classifier, train_set.images[fitted], train_set.labels[fitted])
    logits = FeatureExtractor("logits", classifier, Path())
    predicted = logits(test_set.images, "testing the classifier").argmax(axis=1)
    return classifier.get_weights(), float(np.mean(predicted == test_set.labels))


def _kept(extractor: FeatureExtractor, weights: str, images: np.ndarray) -> np.ndarray:
    return extractor(images, "features of real images")


def _build_classifier(train_set: ImageSet) -> keras.Model:
    side, classes = train_set.images.shape[1], len(train_set.class_names)
    seeds = iter(np.random.SeedSequence([_SEED, _VERSION]).generate_state(64).tolist())

    def kernel() -> dict:
        return {"kernel_initializer": keras.initializers.HeNormal(seed=next(seeds))}

    images = keras.Input((side, side, 3), dtype="uint8", name="images")
    x = keras.layers.Rescaling(1 / 127.5, -1.0, dtype="float32")(images)
    for block in range(round(math.log2(side / 4))):
        filters = min(64 * 2**block, 256)
        convolution = {"strides": 2, "padding": "same", "use_bias": False, **kernel()}
        x = keras.layers.Conv2D(filters, 3, **convolution)(x)
        x = keras.layers.BatchNormalization(momentum=0.9)(x)
        x = keras.layers.ReLU()(x)
    x = keras.layers.Flatten()(x)
    x = keras.layers.Dense(_WIDTH, activation="relu", name="features", **kernel())(x)
    x = keras.layers.Dropout(0.5, seed=next(seeds))(x)
    return keras.Model(images, keras.layers.Dense(classes, name="logits", **kernel())(x))


def _train(classifier: keras.Model, images: np.ndarray, labels: np.ndarray) -> None:
    count = len(images)
    batch_size = min(_BATCH, count)
    steps_per_epoch = count // batch_size
    epochs = int(np.clip(math.ceil(_IMAGES_TRAINED_ON / count), *_EPOCHS))
    steps = epochs * steps_per_epoch
    images, labels = tf.constant(images), tf.constant(labels)
    rows = batches(np.arange(count), batch_size, _SEED, 0, steps)
    examples = rows.map(lambda row: (tf.gather(images, row), tf.gather(labels, row))).prefetch(2)
    classifier.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(_LEARNING_RATE, steps)),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    with tqdm(total=steps, desc="training the classifier", disable=None, leave=False) as bar:
        moved = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: bar.update())
        classifier.fit(examples, epochs=1, verbose=0, callbacks=[moved], shuffle=False)
