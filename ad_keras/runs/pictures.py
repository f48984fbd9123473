"""Sheets and loops of pictures: what the model perceives, replays and dreams."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
from PIL import Image, ImageDraw, ImageFont

from ad_keras.data.pixels import as_signed, to_pixels
from ad_keras.pad.mixing import Mixing
from ad_keras.pad.model import PAD
from ad_keras.pad.perturbations import occlude, occlusion_mask, perturb_each

_PIXELS = 64  # side of a picture on a sheet, unless its images are larger
_GAP = 4
_MARGIN = 118  # room for the names of the rows
_HEADING = 40  # room for a heading

_OCCLUSIONS = (0.0, 0.3, 0.6, 0.9)
_TILE = 4  # pixels, as in the paper's measurements of robustness
_WALKS = 4

_LOOP_PIXELS = 192
_STEP_MILLISECONDS = 60
_PAUSE_MILLISECONDS = 600

Rows = Sequence[tuple[str, np.ndarray]]
"""Names of rows, and their images: uint8 [N, H, W, 3], with the same N in each row."""


def wake_rows(model: PAD, images: np.ndarray) -> Rows:
    """External images, uint8 [N, H, W, 3], and their reconstructions."""
    return [("image", images), ("reconstruction", _generate(model, _encode(model, images)))]


def nrem_rows(model: PAD, images: np.ndarray, seed: int) -> Rows:
    """NREM dreams: replayed memories, the same perturbed, and what the encoder makes of them.

    The latents of images, uint8 [N, H, W, 3], are replayed. Each is perturbed by a draw of its own,
    which the seed determines.
    """
    dreams = model.generator(_encode(model, images))
    perturbed = perturb_each(model.perturbation, dreams, [seed, 1])
    replayed = [("image", images), ("replayed", to_pixels(dreams).numpy())]
    return replayed + _recovered_rows(model, perturbed, "perturbed")


def occlusion_rows(
    model: PAD, images: np.ndarray, probabilities: Sequence[float], tile: int, seed: int
) -> Rows:
    """NREM dreams more and more occluded, each row above what the encoder makes of it.

    A tile that is hidden in one row is hidden in all that are occluded more.

    Args:
        model: a PAD model.
        images: uint8 [N, H, W, 3], whose latents are replayed.
        probabilities: of occluding a tile, in [0, 1], one for each pair of rows.
        tile: side of the tiles in pixels.
        seed: of the occlusions, one for each image.
    """
    dreams = model.generator(_encode(model, images))
    tiles = tf.fill([len(images)], tile)
    rows = []
    for probability in probabilities:
        same = tf.fill([len(images)], float(probability))
        mask = occlusion_mask([seed, 1], same, tiles, *dreams.shape[1:3])
        rows += _recovered_rows(model, occlude(dreams, mask), f"{probability:.0%} occluded")
    return rows


def rem_rows(model: PAD, images: np.ndarray, partners: np.ndarray, seed: int) -> Rows:
    """REM dreams below the two memories that each of them mixes.

    Args:
        model: a PAD model.
        images: uint8 [N, H, W, 3], the newer memories.
        partners: uint8 [N, H, W, 3], the older memories.
        seed: of the noise.
    """
    key = tf.constant([seed, 2], tf.int64)
    mixed = model.mixing(_encode(model, images), _encode(model, partners), key)
    dreams = _generate(model, mixed)
    return [("newer memory", images), ("older memory", partners), ("dream", dreams)]


def traversal_rows(model: PAD, starts: np.ndarray, ends: np.ndarray, steps: int) -> Rows:
    """Walks from the latent of one memory to that of another; see `walk`.

    Args:
        model: a PAD model.
        starts: uint8 [N, H, W, 3].
        ends: uint8 [N, H, W, 3].
        steps: images of a walk, the reconstructions of both memories included.

    Returns:
        N named rows of images, each [steps + 2, H, W, 3]: the walk between its two memories.
    """
    rows = []
    first, last = _encode(model, starts).numpy(), _encode(model, ends).numpy()
    for index in range(len(starts)):
        dreams = _generate(model, walk(first[index], last[index], steps))
        rows.append((f"walk {index + 1}", np.stack([starts[index], *dreams, ends[index]])))
    return rows


def walk(first: np.ndarray, last: np.ndarray, steps: int) -> np.ndarray:
    """Mixes two latents [latent_dim] in shares that go from all of the first to all of the last.

    The walk is along an arc, at an even pace, and the norm goes evenly from one latent's to the
    other's. A straight line would cut through the inside of the sphere near which latents lie
    (their prior, N(0, I), has nearly all its mass at norms of about sqrt(latent_dim)): half-way
    between two unrelated memories it shrinks the norm by sqrt(2), and the images lose contrast.

    Returns:
        float32 [steps, latent_dim], both ends included.
    """
    ends = np.stack([first, last]).astype(np.float64)
    norms = np.linalg.norm(ends, axis=1)
    directions = ends / np.maximum(norms, np.finfo(np.float64).tiny)[:, None]
    turn = np.arccos(np.clip(directions[0] @ directions[1], -1.0, 1.0)) / np.pi
    later = np.linspace(0.0, 1.0, steps)
    shares = np.stack([1.0 - later, later], axis=1)  # [steps, 2]
    # sin(share * angle) / sin(angle), which without sinc is 0 / 0 for latents in one direction.
    weights = shares * np.sinc(shares * turn) / np.sinc(turn)
    return ((shares @ norms)[:, None] * (weights @ directions)).astype(np.float32)


def loop(model: PAD, images: np.ndarray, steps: int) -> np.ndarray:
    """A walk from memory to memory and back to the first.

    Args:
        model: a PAD model.
        images: uint8 [N, H, W, 3], the memories.
        steps: from one memory to the next.

    Returns:
        uint8 [N * steps, H, W, 3]. Image k * steps is the reconstruction of memory k; the step
        after the last image leads to the first.
    """
    latents = _encode(model, images).numpy()
    nexts = np.roll(latents, -1, axis=0)
    walks = [walk(*pair, steps + 1)[:-1] for pair in zip(latents, nexts, strict=True)]
    return _generate(model, np.concatenate(walks))


def overview(model: PAD, images: np.ndarray, seed: int) -> np.ndarray:
    """All that the model makes of some memories, as one sheet.

    Args:
        model: a PAD model.
        images: uint8 [N, H, W, 3], the memories; N is at least 4. Where two are needed, the
            second is the image before.
        seed: of occlusions and noise.

    Returns:
        uint8 [height, width, 3].
    """
    others = np.roll(images, 1, axis=0)  # with the next ones, many memories would meet themselves
    sections = {
        f"Wake: memories, after {int(model.step.numpy()):,} steps": wake_rows(model, images),
        f"NREM: replays, occluded by {_TILE} x {_TILE} tiles": occlusion_rows(
            model, images, _OCCLUSIONS, _TILE, seed
        ),
        f"REM: dreams of memories{_mixture(model)}": rem_rows(model, images, others, seed),
        "Walks from one memory to another": traversal_rows(
            model, images[:_WALKS], others[:_WALKS], len(images) - 2
        ),
    }
    return np.concatenate([sheet(rows, heading) for heading, rows in sections.items()])


def sheet(rows: Rows, heading: str | None = None) -> np.ndarray:
    """Draws rows under a heading, their names at the left, on white: uint8 [height, width, 3]."""
    columns, side = rows[0][1].shape[:2]
    side = max(side, _PIXELS)
    cell = side + _GAP
    start = _GAP + (_HEADING if heading else 0)
    page = Image.new("RGB", (_MARGIN + columns * cell, start + len(rows) * cell), "white")
    draw = ImageDraw.Draw(page)
    if heading:
        large = ImageFont.load_default(size=18)
        draw.text((_GAP, start - 2 * _GAP), heading, fill="black", font=large, anchor="ls")
    font = ImageFont.load_default(size=14)
    for row, (name, images) in enumerate(rows):
        top = start + row * cell
        draw.text((_GAP, top + side // 2), name, fill="black", font=font, anchor="lm")
        for column, image in enumerate(images):
            picture = Image.fromarray(image).resize((side, side), Image.NEAREST)
            page.paste(picture, (_MARGIN + column * cell, top))
    return np.asarray(page)


def save_loop(path: Path, images: np.ndarray, pause_every: int) -> None:
    """Writes images, uint8 [N, H, W, 3], as an animated GIF that repeats for ever.

    From the first on, one in every `pause_every` is shown for longer.
    """
    scale = max(1, _LOOP_PIXELS // images.shape[1])
    large = images.repeat(scale, axis=1).repeat(scale, axis=2)
    # Without dithering, whose grain would flicker from frame to frame.
    first, *others = (Image.fromarray(image).quantize(dither=Image.Dither.NONE) for image in large)
    durations = np.full(len(images), _STEP_MILLISECONDS)
    durations[::pause_every] = _PAUSE_MILLISECONDS
    first.save(path, save_all=True, append_images=others, duration=durations.tolist(), loop=0)


def _recovered_rows(model: PAD, perturbed: tf.Tensor, name: str) -> list:
    """Perturbed dreams [N, H, W, 3], and what the encoder makes of them."""
    recovered = model.encoder(perturbed)["latent"]
    return [(name, to_pixels(perturbed).numpy()), ("recovered", _generate(model, recovered))]


def _mixture(model: PAD) -> str:
    mixing = model.mixing
    if type(mixing) is not Mixing:  # those derived from it give its shares another meaning
        return f", by {getattr(mixing, '__name__', type(mixing).__name__)}"
    recent, memories = mixing.recent, mixing.memories
    shares = (memories * recent, memories * (1 - recent), 1 - memories)
    return ": {:.3g} newer + {:.3g} older + {:.3g} noise".format(*shares)


def _encode(model: PAD, images: np.ndarray) -> tf.Tensor:
    return model.encoder(as_signed(images))["latent"]


def _generate(model: PAD, latents: tf.Tensor | np.ndarray) -> np.ndarray:
    return to_pixels(model.generator(latents)).numpy()
