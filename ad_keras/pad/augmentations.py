"""Perturbations beside occlusion, for NREM dreams and for glimpses of waking images.

They are the usual augmentations of contrastive learning (Chen et al. 2020, arXiv 2002.05709,
appendix A). Every image of a mini-batch has draws of its own, functions of the key alone: the same
with any number of replicas, with and without XLA.
"""

import inspect
import math
from collections.abc import Sequence

import keras
import tensorflow as tf

from ad_keras.compute import draws, replicas
from ad_keras.pad.parts import Part, Perturbation, require


class _Augmentation(Part):
    """What these have in common: their draws, and that what they return is in [-1, 1]."""

    def __call__(self, images: tf.Tensor, key: tf.Tensor) -> tf.Tensor:
        """Perturbs images [B, H, W, C] in [-1, 1]; the key, integer [2], is of the draws."""
        count = tf.shape(images)[0] * replicas.count()
        numbers = len(inspect.signature(self.perturb).parameters) - 1
        drawn = replicas.own(draws.uniform([count, numbers], key))
        return self.perturb(tf.cast(images, tf.float32), *tf.unstack(drawn, axis=1))

    def perturb(self, images: tf.Tensor, *drawn: tf.Tensor) -> tf.Tensor:
        """Perturbs by numbers [B] in [0, 1), as many as it names: one kind of augmentation each."""
        raise NotImplementedError


@keras.saving.register_keras_serializable("ad_keras")
class Crop(_Augmentation):
    """A part of the image, enlarged to its whole size.

    Args:
        area_range: smallest and largest share of the image's area, above 0 and at most 1; it is
            uniform between them.
        aspect_range: lowest and highest ratio of width to height, above 0; its logarithm is
            uniform. A side that would be longer than the image's is the image's.
    """

    def __init__(
        self,
        area_range: tuple[float, float] = (0.2, 1.0),
        aspect_range: tuple[float, float] = (3 / 4, 4 / 3),
    ) -> None:
        self.area_range = tuple(area_range)
        self.aspect_range = tuple(aspect_range)
        low, high = self.area_range
        allowed = "two ascending numbers above 0 and at most 1"
        require(0 < low <= high <= 1, "area_range", self.area_range, allowed)
        low, high = self.aspect_range
        require(0 < low <= high, "aspect_range", self.aspect_range, "two ascending numbers above 0")

    def perturb(self, images, area, aspect, top, left) -> tf.Tensor:
        """Crops by four uniform numbers [B] in [0, 1): of area, aspect and place."""
        area = _between(area, *self.area_range)
        aspect = tf.exp(_between(aspect, *map(math.log, self.aspect_range)))
        height = tf.minimum(tf.sqrt(area / aspect), 1.0)
        width = tf.minimum(tf.sqrt(area * aspect), 1.0)
        rows, columns = (
            ((start * (1.0 - share))[:, None] + share[:, None] * _centres(size)) * size - 0.5
            for start, share, size in zip(
                (top, left), (height, width), images.shape[1:3], strict=True
            )
        )
        return _resample(images, rows[:, :, None], columns[:, None, :])


@keras.saving.register_keras_serializable("ad_keras")
class Shift(_Augmentation):
    """The image moved by whole pixels; its border fills what becomes free.

    Args:
        share: the largest shift, as a share of the image's side, in [0, 1].
    """

    def __init__(self, share: float = 0.125) -> None:
        require(0 <= share <= 1, "share", share, "between 0 and 1")
        self.share = share

    def perturb(self, images, down, right) -> tf.Tensor:
        """Shifts by two uniform numbers [B] in [0, 1)."""
        rows, columns = (
            tf.range(size, dtype=tf.float32)
            - tf.floor(_between(number, 0, 2 * int(self.share * size) + 1))[:, None]
            + int(self.share * size)
            for number, size in zip((down, right), images.shape[1:3], strict=True)
        )
        return _resample(images, rows[:, :, None], columns[:, None, :])


@keras.saving.register_keras_serializable("ad_keras")
class Rotation(_Augmentation):
    """The image turned about its centre; its border fills what becomes free.

    Args:
        degrees: the largest angle to either side, in [0, 180].
    """

    def __init__(self, degrees: float = 15.0) -> None:
        require(0 <= degrees <= 180, "degrees", degrees, "between 0 and 180")
        self.degrees = degrees

    def perturb(self, images, angle) -> tf.Tensor:
        """Turns counterclockwise by a uniform number [B] in [0, 1), from -degrees to degrees."""
        radians = _between(angle, -self.degrees, self.degrees)[:, None, None] * (math.pi / 180)
        height, width = images.shape[1:3]
        y = tf.range(height, dtype=tf.float32)[:, None] - (height - 1) / 2
        x = tf.range(width, dtype=tf.float32)[None, :] - (width - 1) / 2
        sine, cosine = tf.sin(radians), tf.cos(radians)
        rows = cosine * y + sine * x + (height - 1) / 2
        return _resample(images, rows, cosine * x - sine * y + (width - 1) / 2)


@keras.saving.register_keras_serializable("ad_keras")
class Flip(_Augmentation):
    """Left and right exchanged. Not for digits and letters.

    Args:
        probability: of an image being flipped, in [0, 1].
    """

    def __init__(self, probability: float = 0.5) -> None:
        require(0 <= probability <= 1, "probability", probability, "between 0 and 1")
        self.probability = probability

    def perturb(self, images, chance) -> tf.Tensor:
        """Flips where a uniform number [B] is below the probability."""
        return tf.where(_as_image(chance) < self.probability, images[:, :, ::-1], images)


@keras.saving.register_keras_serializable("ad_keras")
class Grey(_Augmentation):
    """Colour images without their colours.

    Args:
        probability: of an image becoming grey, in [0, 1].
    """

    def __init__(self, probability: float = 0.2) -> None:
        require(0 <= probability <= 1, "probability", probability, "between 0 and 1")
        self.probability = probability

    def perturb(self, images, chance) -> tf.Tensor:
        """Removes colours where a uniform number [B] is below the probability."""
        grey = tf.image.rgb_to_grayscale(images)
        return tf.where(_as_image(chance) < self.probability, grey, images)


@keras.saving.register_keras_serializable("ad_keras")
class Colour(_Augmentation):
    """Other brightness, contrast and saturation of colour images, in this order.

    Each is a factor, uniform between 1 - strength and 1 + strength: of the intensity (0 is black),
    of the distance from the image's mean grey, and of the distance from each pixel's grey.

    Args:
        strength: in [0, 1]; 0 changes nothing.
    """

    def __init__(self, strength: float = 0.4) -> None:
        require(0 <= strength <= 1, "strength", strength, "between 0 and 1")
        self.strength = strength

    def perturb(self, images, brightness, contrast, saturation) -> tf.Tensor:
        """Changes colours by three uniform numbers [B] in [0, 1)."""
        brightness, contrast, saturation = (
            _as_image(_between(number, 1 - self.strength, 1 + self.strength))
            for number in (brightness, contrast, saturation)
        )
        images = tf.clip_by_value((images + 1) * brightness - 1, -1.0, 1.0)
        mean = tf.reduce_mean(tf.image.rgb_to_grayscale(images), axis=(1, 2), keepdims=True)
        images = tf.clip_by_value(mean + contrast * (images - mean), -1.0, 1.0)
        grey = tf.image.rgb_to_grayscale(images)
        return tf.clip_by_value(grey + saturation * (images - grey), -1.0, 1.0)


@keras.saving.register_keras_serializable("ad_keras")
class Blur(_Augmentation):
    """A Gaussian blur. At the border, the weights of the pixels that there are sum to 1.

    Args:
        deviation_range: smallest and largest standard deviation in pixels, above 0; it is uniform
            between them.
    """

    def __init__(self, deviation_range: tuple[float, float] = (0.1, 1.5)) -> None:
        self.deviation_range = tuple(deviation_range)
        low, high = self.deviation_range
        allowed = "two ascending numbers above 0"
        require(0 < low <= high, "deviation_range", self.deviation_range, allowed)

    def perturb(self, images, deviation) -> tf.Tensor:
        """Blurs by a uniform number [B] in [0, 1)."""
        deviation = _between(deviation, *self.deviation_range)[:, None, None]
        down, across = (
            tf.nn.softmax(-0.5 * tf.square((pixels[:, None] - pixels) / deviation))
            for pixels in (tf.range(size, dtype=tf.float32) for size in images.shape[1:3])
        )
        images = tf.einsum("bij,bjwc->biwc", down, images)
        return tf.einsum("bij,bhjc->bhic", across, images)


@keras.saving.register_keras_serializable("ad_keras")
class Noise(Part):
    """Gaussian noise on each pixel, cut off at the ends of the range.

    Args:
        deviation: its standard deviation; images span 2, from -1 to 1.
    """

    def __init__(self, deviation: float = 0.1) -> None:
        require(deviation >= 0, "deviation", deviation, "0 or more")
        self.deviation = deviation

    def __call__(self, images: tf.Tensor, key: tf.Tensor) -> tf.Tensor:
        """Adds noise to images [B, H, W, C] in [-1, 1]; the key makes the draw repeatable."""
        images = tf.cast(images, tf.float32)
        flat = tf.reshape(images, [-1, math.prod(images.shape[1:])])
        noise = tf.reshape(replicas.normal(flat, key), tf.shape(images))
        return tf.clip_by_value(images + self.deviation * noise, -1.0, 1.0)


@keras.saving.register_keras_serializable("ad_keras")
class Chain(Part):
    """Perturbations one after the other.

    Args:
        perturbations: any, `Occlusion` and your own included, but no layers: their weights would
            be neither trained nor saved.
    """

    def __init__(self, perturbations: Sequence[Perturbation]) -> None:
        self.perturbations = list(perturbations)
        for part in self.perturbations:
            layer = isinstance(part, keras.layers.Layer)
            require(not layer, "perturbations", part, "no layer: give it to PAD alone")

    def __call__(self, images: tf.Tensor, key: tf.Tensor) -> tf.Tensor:
        """Perturbs images [B, H, W, C] in [-1, 1]; each perturbation has a key of its own."""
        for number, perturbation in enumerate(self.perturbations):
            images = perturbation(images, draws.fold_in(key, number))
        return images


def _between(number: tf.Tensor, low: float, high: float) -> tf.Tensor:
    return low + (high - low) * number


def _as_image(number: tf.Tensor) -> tf.Tensor:
    return number[:, None, None, None]


def _centres(size: int) -> tf.Tensor:
    """Where the pixels of a side of length 1 have their centres."""
    return (tf.range(size, dtype=tf.float32) + 0.5) / size


def _resample(images: tf.Tensor, rows: tf.Tensor, columns: tf.Tensor) -> tf.Tensor:
    """The images, [B, H, W, C], at other places, by linear interpolation; beyond the border, its.

    Rows and columns are [B, H, W], or broadcast to that, in pixels from the first one's centre.
    """
    height, width = images.shape[1:3]
    rows = tf.clip_by_value(rows, 0.0, height - 1.0)
    columns = tf.clip_by_value(columns, 0.0, width - 1.0)
    top, left = tf.floor(rows), tf.floor(columns)
    down, right = (rows - top)[..., None], (columns - left)[..., None]

    def pixels(row: tf.Tensor, column: tf.Tensor) -> tf.Tensor:
        row = tf.cast(tf.minimum(row, height - 1.0), tf.int32)
        column = tf.cast(tf.minimum(column, width - 1.0), tf.int32)
        places = row * width + column  # [B, H, W]
        flat = tf.reshape(images, [-1, height * width, images.shape[-1]])
        return tf.gather(flat, places, axis=1, batch_dims=1)

    upper = (1 - right) * pixels(top, left) + right * pixels(top, left + 1)
    lower = (1 - right) * pixels(top + 1, left) + right * pixels(top + 1, left + 1)
    return (1 - down) * upper + down * lower
