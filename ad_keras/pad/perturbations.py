"""What NREM does to dreams before the encoder sees them.

Drawing a mask and applying it are two functions, so that evaluation can fix what training draws,
and tests can hand in a mask of their own.
"""

import functools

import keras
import tensorflow as tf

from ad_keras.compute import draws, replicas
from ad_keras.pad.parts import Part, Perturbation, require


@keras.saving.register_keras_serializable("ad_keras")
class Occlusion(Part):
    """Occlusion by grey square tiles, as in Deperrois et al. (eLife 2022;11:e76384), Methods.

    For each mask a probability and a tile size are drawn, then each tile is occluded with that
    probability. The published results use one mask for the whole mini-batch.

    Args:
        probability_range: lowest and highest probability of occluding a tile, in [0, 1]; it is
            uniform between them.
        tile_range: smallest and largest side of a tile in pixels, at least 1; it is uniform over
            these integers.
        per_image: whether each image of a mini-batch has a mask of its own.
    """

    def __init__(
        self,
        probability_range: tuple[float, float] = (0.0, 1.0),
        tile_range: tuple[int, int] = (1, 8),
        per_image: bool = False,
    ) -> None:
        self.probability_range = tuple(probability_range)
        self.tile_range = tuple(tile_range)
        self.per_image = per_image
        low, high = self.probability_range
        allowed = "two ascending numbers between 0 and 1"
        require(0 <= low <= high <= 1, "probability_range", self.probability_range, allowed)
        smallest, largest = self.tile_range
        whole = smallest == int(smallest) and largest == int(largest)
        allowed = "two ascending whole numbers of pixels from 1"
        require(whole and 1 <= smallest <= largest, "tile_range", self.tile_range, allowed)

    def __call__(self, images: tf.Tensor, key: tf.Tensor) -> tf.Tensor:
        """Occludes images [B, H, W, C] in [-1, 1]; the key, integer [2], is of the masks' draws."""
        count = tf.shape(images)[0] * replicas.count() if self.per_image else 1
        mask = self.sample(key, count, *images.shape[1:3])
        return occlude(images, replicas.own(mask) if self.per_image else mask)

    def sample(self, key: tf.Tensor, count: int | tf.Tensor, height: int, width: int) -> tf.Tensor:
        """Draws independent masks for images of a height and width in pixels.

        Returns:
            float32 [count, height, width, 1]: 1 where visible, 0 where occluded.
        """
        keys = draws.split(key, 2)
        return occlusion_mask(keys[1], *self.strengths(keys[0], count), height, width)

    def strengths(self, key: tf.Tensor, count: int | tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Draws how strongly independent masks occlude.

        Returns:
            Probabilities, float32 [count], and tile sizes in pixels, int32 [count].
        """
        keys = draws.split(key, 2)
        low, high = self.probability_range
        probabilities = low + (high - low) * draws.uniform([count], keys[0])
        return probabilities, draws.integers([count], keys[1], *self.tile_range)


def occlusion_mask(
    key: tf.Tensor, probabilities: tf.Tensor, tiles: tf.Tensor, height: int, width: int
) -> tf.Tensor:
    """Draws which tiles are visible. Tiles start at the upper left; the border cuts the last ones.

    Args:
        key: integer [2], of the stateless draw.
        probabilities: float32 [N], the probability that a tile of mask n is occluded.
        tiles: int32 [N], the side of the tiles of mask n in pixels.
        height: of the images, in pixels.
        width: of the images, in pixels.

    Returns:
        float32 [N, height, width, 1]: 1 where visible, 0 where occluded.
    """
    count = tf.shape(probabilities)[0]
    # One number for each pixel is enough for tiles of any size: tile (a, b) reads number (a, b).
    numbers = draws.uniform([count, height, width], key)
    rows = tf.range(height) // tiles[:, None]  # [N, height]
    columns = tf.range(width) // tiles[:, None]  # [N, width]
    numbers = tf.gather(numbers, rows, axis=1, batch_dims=1)
    numbers = tf.gather(numbers, columns, axis=2, batch_dims=1)
    visible = numbers >= probabilities[:, None, None]
    return tf.cast(visible, tf.float32)[..., None]


def occlude(images: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    """Sets what the mask hides of images [B, H, W, C] in [-1, 1] to 0, mid-grey.

    The mask is [B, H, W, 1], or [1, H, W, 1] for one mask for all; 1 visible, 0 occluded.
    """
    return images * tf.cast(mask, images.dtype)


def perturb_each(perturbation: Perturbation, images: tf.Tensor, key: tf.Tensor) -> tf.Tensor:
    """Perturbs each image by a draw of its own, whatever training shares within a mini-batch.

    Args:
        perturbation: of a model.
        images: [B, H, W, C], in [-1, 1].
        key: integer [2], of the stateless draws.

    Returns:
        [B, H, W, C].
    """
    images = tf.convert_to_tensor(images)
    perturb_all = _for_each(perturbation, tuple(images.shape[1:]), images.dtype)
    return perturb_all(images, tf.cast(key, tf.int64))


@functools.lru_cache(maxsize=8)  # a graph for each of the perturbations in use
def _for_each(perturbation: Perturbation, shape: tuple, dtype: tf.DType) -> Perturbation:
    signature = tf.TensorSpec([None, *shape], dtype), tf.TensorSpec([2], tf.int64)

    @tf.function(input_signature=signature)  # a loop over thousands of images is slow outside it
    def perturb_all(images: tf.Tensor, key: tf.Tensor) -> tf.Tensor:
        def perturb(number: tf.Tensor) -> tf.Tensor:
            return perturbation(images[number][None], draws.fold_in(key, number))[0]

        numbers = tf.range(tf.shape(images, tf.int64)[0])
        return tf.map_fn(perturb, numbers, fn_output_signature=tf.TensorSpec(shape, dtype))

    return perturb_all
