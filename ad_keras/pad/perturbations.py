"""Occlusion of images by grey square tiles: the perturbation of NREM dreams.

Drawing how much to occlude, drawing the mask and applying it are three functions, so that
evaluation can fix what training draws, and tests can hand in a mask of their own.
"""

import tensorflow as tf


def sample_occlusion(
    seed: tf.Tensor,
    count: int | tf.Tensor,
    probability_range: tuple[float, float] = (0.0, 1.0),
    tile_range: tuple[int, int] = (1, 8),
) -> tuple[tf.Tensor, tf.Tensor]:
    """Draws how strongly to occlude: a probability and a tile size for each of `count` masks.

    Args:
        seed: integer [2], the key of a stateless draw.
        count: number of independent masks.
        probability_range: the probability of occluding a tile is uniform between these two.
        tile_range: the tile's side in pixels is uniform over these integers, ends included.

    Returns:
        Probabilities, float32 [count], and tile sizes in pixels, int32 [count].
    """
    seeds = tf.random.split(seed, 2, alg="philox")
    low, high = probability_range
    probabilities = low + (high - low) * tf.random.stateless_uniform(
        [count], seeds[0], alg="philox"
    )
    tiles = tf.random.stateless_uniform(
        [count],
        seeds[1],
        minval=tile_range[0],
        maxval=tile_range[1] + 1,
        dtype=tf.int32,
        alg="philox",
    )
    return probabilities, tiles


def occlusion_mask(
    seed: tf.Tensor, probabilities: tf.Tensor, tiles: tf.Tensor, height: int, width: int
) -> tf.Tensor:
    """Draws which tiles are visible. Tiles start at the upper left; the border cuts the last ones.

    Args:
        seed: integer [2], the key of a stateless draw.
        probabilities: float32 [N], the probability that a tile of mask n is occluded.
        tiles: int32 [N], the side of the tiles of mask n in pixels.
        height: of the images, in pixels.
        width: of the images, in pixels.

    Returns:
        float32 [N, height, width, 1]: 1 where visible, 0 where occluded.
    """
    count = tf.shape(probabilities)[0]
    # One number for each pixel is enough for tiles of any size: tile (a, b) reads number (a, b).
    draws = tf.random.stateless_uniform([count, height, width], seed, alg="philox")
    rows = tf.range(height) // tiles[:, None]  # [N, height]
    columns = tf.range(width) // tiles[:, None]  # [N, width]
    draws = tf.gather(draws, rows, axis=1, batch_dims=1)
    draws = tf.gather(draws, columns, axis=2, batch_dims=1)
    visible = draws >= probabilities[:, None, None]
    return tf.cast(visible, tf.float32)[..., None]


def occlude(images: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    """Sets what the mask hides to 0, mid-grey.

    Args:
        images: [B, H, W, C], in [-1, 1].
        mask: [B, H, W, 1], or [1, H, W, 1] for one mask for all; 1 visible, 0 occluded.

    Returns:
        [B, H, W, C], in [-1, 1].
    """
    return images * tf.cast(mask, images.dtype)
