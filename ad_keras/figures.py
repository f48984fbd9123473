"""Sheets of pictures: what the model perceives, replays and dreams."""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf
from PIL import Image, ImageDraw, ImageFont

from ad_keras.model import PAD, as_signed, to_pixels
from ad_keras.occlusion import occlude, occlusion_mask, sample_occlusion

_PIXELS = 64  # side of a picture on a sheet
_GAP = 4
_MARGIN = 118  # room for the names of the rows

Rows = Sequence[tuple[str, np.ndarray]]


def wake_rows(model: PAD, images: np.ndarray) -> Rows:
    """External images and their reconstructions.

    Args:
        model: a PAD model.
        images: uint8 [N, H, W, 3].

    Returns:
        Named rows of images, each [N, H, W, 3].
    """
    return [("image", images), ("reconstruction", _generate(model, _encode(model, images)))]


def nrem_rows(model: PAD, images: np.ndarray, seed: int) -> Rows:
    """NREM dreams: replayed memories, the same occluded, and what the encoder makes of them.

    Args:
        model: a PAD model.
        images: uint8 [N, H, W, 3], whose latents are replayed.
        seed: of the occlusions, one for each image, drawn as in training.

    Returns:
        Named rows of images, each [N, H, W, 3].
    """
    settings = model.get_config()
    dreams = model.generator(_encode(model, images))
    probabilities, tiles = sample_occlusion(
        [seed, 0], len(images), settings["occlusion_range"], settings["tile_range"]
    )
    mask = occlusion_mask([seed, 1], probabilities, tiles, *images.shape[1:3])
    occluded = occlude(dreams, mask)
    recovered = model.encoder(occluded)["latent"]
    return [
        ("image", images),
        ("replayed", to_pixels(dreams).numpy()),
        ("occluded", to_pixels(occluded).numpy()),
        ("recovered", _generate(model, recovered)),
    ]


def rem_rows(model: PAD, images: np.ndarray, partners: np.ndarray, seed: int) -> Rows:
    """REM dreams below the two memories that each of them mixes.

    Args:
        model: a PAD model.
        images: uint8 [N, H, W, 3], the newer memories.
        partners: uint8 [N, H, W, 3], the older memories.
        seed: of the noise.

    Returns:
        Named rows of images, each [N, H, W, 3].
    """
    mixed = model.mix(_encode(model, images), _encode(model, partners), [seed, 2])
    return [
        ("newer memory", images),
        ("older memory", partners),
        ("dream", _generate(model, mixed)),
    ]


def traversal_rows(model: PAD, starts: np.ndarray, ends: np.ndarray, steps: int) -> Rows:
    """Walks in a straight line from the latent of one memory to that of another.

    Args:
        model: a PAD model.
        starts: uint8 [N, H, W, 3].
        ends: uint8 [N, H, W, 3].
        steps: images of a walk, the reconstructions of both memories included.

    Returns:
        N named rows of images, each [steps + 2, H, W, 3]: the walk between its two memories.
    """
    share = tf.linspace(0.0, 1.0, steps)[:, None]
    rows = []
    first, last = _encode(model, starts), _encode(model, ends)
    for index in range(len(starts)):
        walk = _generate(model, (1 - share) * first[index] + share * last[index])
        rows.append((f"walk {index + 1}", np.stack([starts[index], *walk, ends[index]])))
    return rows


def sheet(rows: Rows) -> np.ndarray:
    """Draws rows of images with their names at the left.

    Args:
        rows: names and images [N, H, W, 3], uint8, with the same N in each row.

    Returns:
        uint8 [height, width, 3], on white.
    """
    cell = _PIXELS + _GAP
    columns = len(rows[0][1])
    page = Image.new("RGB", (_MARGIN + columns * cell, _GAP + len(rows) * cell), "white")
    draw = ImageDraw.Draw(page)
    font = ImageFont.load_default(size=14)
    for row, (name, images) in enumerate(rows):
        top = _GAP + row * cell
        draw.text((_GAP, top + _PIXELS // 2), name, fill="black", font=font, anchor="lm")
        for column, image in enumerate(images):
            picture = Image.fromarray(image).resize((_PIXELS, _PIXELS), Image.NEAREST)
            page.paste(picture, (_MARGIN + column * cell, top))
    return np.asarray(page)


def _encode(model: PAD, images: np.ndarray) -> tf.Tensor:
    return model.encoder(as_signed(images))["latent"]


def _generate(model: PAD, latents: tf.Tensor) -> np.ndarray:
    return to_pixels(model.generator(latents)).numpy()
