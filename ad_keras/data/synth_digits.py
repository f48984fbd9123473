"""SynthDigits: generated house-number digits, an offline stand-in for SVHN.

Importing this module registers the TFDS dataset `synth_digits`, so that
`tfds.load("synth_digits/10k")` works. Nothing is downloaded: every image is drawn from typefaces
that are installed with matplotlib and with the `font-*` packages on PyPI. An example is a function
of the data set's seed, from 0, its split, "train" or "test", and its index in the split, from 0.

The idea of training on rendered digits in place of street-view crops is from Ganin and Lempitsky,
"Unsupervised Domain Adaptation by Backpropagation", arXiv 1409.7495 (their "Syn Numbers"). The
renderer below is an independent one. The images it imitates are the cropped digits of Netzer et
al., "Reading Digits in Natural Images with Unsupervised Feature Learning" (SVHN).
"""

import dataclasses
import functools
import importlib.resources
import io
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image, ImageDraw, ImageFont

IMAGE_SIZE = 32
NUM_CLASSES = 10

_OF_SOURCE = ("Black", "BlackIt", "It", "Regular", "Semibold")
# Distribution on PyPI, its font files, and the styles that complete their names. The order is part
# of the dataset's definition: a face is drawn by its position in this table.
_FACES = (
    ("matplotlib", "DejaVuSans{}.ttf", ("-Bold", "-BoldOblique", "-Oblique", "")),
    ("matplotlib", "DejaVuSansMono{}.ttf", ("-Bold", "-BoldOblique", "")),
    ("matplotlib", "DejaVuSerif{}.ttf", ("-Bold", "-BoldItalic", "-Italic", "")),
    ("matplotlib", "STIXGeneral{}.ttf", ("", "Bol", "BolIta", "Italic")),
    ("matplotlib", "cm{}10.ttf", ("b", "r", "ss", "ti", "tt")),
    ("font-amatic-sc", "AmaticSC-{}.ttf", ("Bold",)),
    ("font-caladea", "Caladea-{}.ttf", ("Bold", "BoldItalic", "Italic", "Regular")),
    ("font-fjallaone", "FjallaOne-{}.ttf", ("Regular",)),
    ("font-fredoka-one", "FredokaOne-{}.ttf", ("Regular",)),
    ("font-hanken-grotesk", "HankenGrotesk-{}.otf", ("Bold", "BoldItalic", "Italic", "Regular")),
    ("font-intuitive", "{}.ttf", ("Intuitive",)),
    ("font-lato", "Lato-{}.ttf", ("Black", "BlackItalic", "Bold", "Italic", "Regular")),
    ("font-manrope", "Manrope-{}.ttf", ("ExtraBold", "Regular", "SemiBold")),
    ("font-rhd", "RedHatDisplay-{}.ttf", ("Black", "BlackItalic", "Bold", "Italic", "Regular")),
    ("font-source-sans-pro", "SourceSansPro-{}.ttf", _OF_SOURCE),
    ("font-source-serif-pro", "SourceSerifPro-{}.ttf", _OF_SOURCE),
)

_SPLIT_IDS = {"train": 0, "test": 1}
_IMAGE_STREAM, _LABEL_STREAM = 0, 1

# Digits are rasterised once at this height in pixels, close to their height in the supersampled
# image, pasted side by side into a strip and warped from there: this is much faster than to
# rasterise anew for every image, and neither blurs nor aliases visibly.
_GLYPH_HEIGHT = 48
_GLYPH_MARGIN = 16
_STRIP_SIZE = (288, 112)
_STRIP_ORIGIN = (128, 76)
_OUTLINE_WIDTH = 4
_SUPERSAMPLE = 2

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_ROWS, _COLUMNS = np.mgrid[0:IMAGE_SIZE, 0:IMAGE_SIZE].astype(np.float32) / (IMAGE_SIZE - 1) * 2 - 1


class Glyph(NamedTuple):
    """One digit of one typeface, about `_GLYPH_HEIGHT` pixels high.

    Attributes:
        fill: Coverage of the digit, an 8-bit greyscale image with its baseline at row
            `_STRIP_ORIGIN[1]` and its pen origin at column `_GLYPH_MARGIN`.
        outline: The same with the digit grown by `_OUTLINE_WIDTH` pixels on every side.
        advance: Distance in pixels from this pen origin to that of the next digit.
        box: Left, top, right and bottom of the inked part relative to the pen origin, in pixels.
    """

    fill: Image.Image
    outline: Image.Image
    advance: float
    box: tuple[int, ...]


@functools.cache
def glyphs() -> tuple[tuple[Glyph, ...], ...]:
    """The ten digits of each typeface, as the typefaces are numbered, rasterised once per process.

    Raises:
        FileNotFoundError: If a font file or the package that ships it is missing.
    """
    files = [(package, file.format(style)) for package, file, styles in _FACES for style in styles]
    return tuple(_rasterise_face(package, file) for package, file in files)


def _rasterise_face(package: str, file: str) -> tuple[Glyph, ...]:
    folder = "mpl-data/fonts/ttf" if package == "matplotlib" else "files"
    try:
        module = importlib.resources.files(package.replace("-", "_"))
        data = (module / folder / file).read_bytes()
    except (ModuleNotFoundError, FileNotFoundError) as error:
        raise FileNotFoundError(
            f"SynthDigits needs the typeface {file} of the package {package}; install it with: "
            f"pip install {package}"
        ) from error

    def load(size: int) -> ImageFont.FreeTypeFont:
        # The basic engine is always built in; the default one depends on an optional library.
        return ImageFont.truetype(io.BytesIO(data), size, layout_engine=ImageFont.Layout.BASIC)

    _, top, _, bottom = load(100).getbbox("0", anchor="ls")
    font = load(round(100 * _GLYPH_HEIGHT / (bottom - top)))
    return tuple(_rasterise_digit(font, digit) for digit in "0123456789")


def _rasterise_digit(font: ImageFont.FreeTypeFont, digit: str) -> Glyph:
    advance = font.getlength(digit)
    size = (math.ceil(advance) + 2 * _GLYPH_MARGIN, _STRIP_SIZE[1])

    def draw(stroke_width: int) -> Image.Image:
        mask = Image.new("L", size)
        pen = ImageDraw.Draw(mask)
        position = (_GLYPH_MARGIN, _STRIP_ORIGIN[1])
        pen.text(position, digit, fill=255, font=font, anchor="ls", stroke_width=stroke_width)
        return mask

    box = tuple(round(edge) for edge in font.getbbox(digit, anchor="ls"))
    return Glyph(draw(0), draw(_OUTLINE_WIDTH), advance, box)


def make_rng(seed: int, split: str, index: int, stream: int = _IMAGE_STREAM) -> np.random.Generator:
    """Makes the random generator of one example, independent of those of all other arguments.

    The stream separates uses of the same three numbers.
    """
    key = (stream, _SPLIT_IDS[split], index)
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=key)))


@functools.lru_cache(maxsize=16)
def _labels_of_block(seed: int, split: str, block: int) -> tuple[int, ...]:
    return tuple(make_rng(seed, split, block, _LABEL_STREAM).permutation(NUM_CLASSES).tolist())


def label_at(seed: int, split: str, index: int) -> int:
    """The label of one example, 0 to 9.

    Every ten consecutive examples, counted from 0, hold each digit once in random order. The
    classes are therefore balanced in every config, and a small config is a prefix of a larger one.
    """
    block, position = divmod(index, NUM_CLASSES)
    return _labels_of_block(seed, split, block)[position]


def example_at(seed: int, split: str, index: int) -> tuple[np.ndarray, int]:
    """Draws one example: the image, uint8 of shape (32, 32, 3), and its label, 0 to 9."""
    label = label_at(seed, split, index)
    return render(make_rng(seed, split, index), label), label


def render(rng: np.random.Generator, digit: int) -> np.ndarray:
    """Draws a crop of a house number, centred on a digit, 0 to 9: RGB, uint8 of shape (32, 32, 3).

    The generator is the source of all but the digit: typeface, neighbours, geometry, colours,
    background and image quality.
    """
    fill, outline = _draw_masks(rng, digit)
    background, ink, contrast = _draw_colours(rng)

    if rng.random() < 0.3:
        shift = rng.integers(-2, 3, size=2)
        shadow = np.roll(fill, shift, axis=(0, 1)) * rng.uniform(0.3, 0.8)
        background = background * (1 - shadow)
    if rng.random() < 0.25:
        rim = np.clip(background.mean() + rng.uniform(-0.5, 0.5) * contrast, 0, 1)
        background = background + (rim - background) * outline
    image = background + (ink - background) * fill
    return _degrade(rng, image)


def _draw_masks(rng: np.random.Generator, digit: int) -> tuple[np.ndarray, np.ndarray]:
    """Coverage of digit and neighbours, and of these with an outline: (32, 32, 1) in [0, 1]."""
    face = glyphs()[rng.integers(len(glyphs()))]
    centre = face[digit]
    left, right = (face[i] for i in rng.integers(NUM_CLASSES, size=2))
    has_left, has_right = rng.random(2) < 0.5
    gap_left, gap_right = rng.uniform(-2, 10, 2)
    drop_left, drop_right = rng.uniform(-4, 4, 2)

    placed = [(centre, 0.0, 0.0)]
    if has_left:
        placed.append((left, -left.advance - gap_left, drop_left))
    if has_right:
        placed.append((right, centre.advance + gap_right, drop_right))

    height = rng.uniform(19, 28)
    angle, shear = np.radians(rng.uniform(-12, 12)), rng.uniform(-0.2, 0.2)
    stretch = rng.uniform(0.85, 1.15)
    shift_x, shift_y = rng.uniform(-2, 2, 2)

    # Pillow's affine transform maps output to input coordinates.
    box_left, box_top, box_right, box_bottom = centre.box
    scale = (box_bottom - box_top) / (height * _SUPERSAMPLE)
    cos, sin = math.cos(angle) * scale, math.sin(angle) * scale
    a, b = (cos - shear * sin) / stretch, (sin + shear * cos) / stretch
    d, e = -sin, cos
    middle = _SUPERSAMPLE * IMAGE_SIZE / 2
    out_x, out_y = middle + shift_x * _SUPERSAMPLE, middle + shift_y * _SUPERSAMPLE
    in_x = _STRIP_ORIGIN[0] + (box_left + box_right) / 2
    in_y = _STRIP_ORIGIN[1] + (box_top + box_bottom) / 2
    coefficients = (a, b, in_x - a * out_x - b * out_y, d, e, in_y - d * out_x - e * out_y)

    def warp(kind: str) -> np.ndarray:
        strip = Image.new("L", _STRIP_SIZE)
        for glyph, x, y in placed:
            mask = getattr(glyph, kind)
            corner = (round(_STRIP_ORIGIN[0] - _GLYPH_MARGIN + x), round(y))
            strip.paste(255, corner, mask)
        size = (_SUPERSAMPLE * IMAGE_SIZE,) * 2
        warped = strip.transform(
            size, Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR
        )
        mask = np.asarray(warped.reduce(_SUPERSAMPLE), np.float32) / 255
        return mask[:, :, None]

    return warp("fill"), warp("outline")


def _draw_colours(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, float]:
    """Draws the background and the paint of the digits.

    Textures vary in brightness by a fraction of the contrast between the two, so that digits stay
    readable at low contrast as well. Both are of shape (32, 32, 3), about in [0, 1]; the third is
    the difference in brightness between them.
    """
    contrast = rng.uniform(0.3, 0.75)
    darker = rng.uniform(0.05, 0.95 - contrast)
    lumas = [darker, darker + contrast]
    if rng.random() < 0.3:  # most house numbers are light on dark
        lumas.reverse()

    def colour(luma: float, saturation: float) -> np.ndarray:
        tint = rng.uniform(-1, 1, 3).astype(np.float32)
        return luma + saturation * (tint - tint @ _LUMA)

    # Squared, because most walls and plates are nearly grey.
    saturations = np.array((0.35, 0.2, 0.35), np.float32) * rng.random(3, np.float32) ** 2
    background = colour(lumas[0], saturations[0])
    pattern_colour = colour(rng.uniform(0, 0.35) * contrast, saturations[1])
    ink = colour(lumas[1], saturations[2])
    background = background + _pattern(rng)[:, :, None] * pattern_colour
    ink = ink + _smooth_noise(rng, 3)[:, :, None] * (0.3 * contrast)
    return background, ink, contrast


def _pattern(rng: np.random.Generator) -> np.ndarray:
    """Smooth noise, blocks, stripes or the edge of two surfaces: (32, 32), about in [-1, 1]."""
    kind = rng.random()
    if kind < 0.4:
        return _smooth_noise(rng, int(rng.integers(2, 12)))
    if kind < 0.6:
        blocks = rng.uniform(-1, 1, rng.integers(2, 8, size=2)).astype(np.float32)
        return _resize(blocks, Image.Resampling.NEAREST)
    angle = rng.uniform(0, math.pi)
    across = _COLUMNS * np.float32(math.cos(angle)) + _ROWS * np.float32(math.sin(angle))
    if kind < 0.75:
        sharpness = rng.uniform(1, 4)
        waves = np.sin(across * rng.uniform(3, 20) + rng.uniform(0, 2 * math.pi))
        return np.clip(waves * sharpness, -1, 1)
    return np.clip((across - rng.uniform(-0.8, 0.8)) * rng.uniform(2, 20), -1, 1)


def _smooth_noise(rng: np.random.Generator, cells: int) -> np.ndarray:
    grid = rng.uniform(-1, 1, (cells, cells)).astype(np.float32)
    return _resize(grid, Image.Resampling.BICUBIC)


def _resize(grid: np.ndarray, resampling: Image.Resampling) -> np.ndarray:
    image = Image.fromarray(grid).resize((IMAGE_SIZE, IMAGE_SIZE), resampling)
    return np.asarray(image)


def _degrade(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Applies uneven light and what a cheap camera does: exposure errors, few pixels and noise."""
    # Shade only darkens: brightening would push pale digits and walls into saturation alike.
    shade = rng.uniform(0, 0.3) * (1 + _smooth_noise(rng, int(rng.integers(2, 4)))[:, :, None])
    gain, offset = rng.uniform(0.7, 1.1), rng.uniform(-0.1, 0.1)
    image = (image * (1 - shade) - 0.5) * gain + (0.5 + offset)
    sensor = Image.fromarray(_to_uint8(image))
    resolution = int(rng.integers(14, IMAGE_SIZE + 1))
    sensor = sensor.resize((resolution, resolution), Image.Resampling.BOX)
    sensor = sensor.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)
    noise = rng.standard_normal(image.shape, np.float32) * rng.uniform(0, 0.03)
    return _to_uint8(np.asarray(sensor, np.float32) / 255 + noise)


def _to_uint8(image: np.ndarray) -> np.ndarray:
    return np.clip(image * 255 + 0.5, 0, 255).astype(np.uint8)


def _encode_png(image: np.ndarray) -> io.BytesIO:
    # Given an array, TFDS would compress it at the slow default level.
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=1)
    buffer.seek(0)
    return buffer


@dataclasses.dataclass
class SynthDigitsConfig(tfds.core.BuilderConfig):
    """Size and seed of one variant of the dataset.

    Attributes:
        train_examples: Number of training images.
        test_examples: Number of test images.
        seed: Non-negative. Variants with the same seed hold the same images, as far as they go.
    """

    train_examples: int = 10_000
    test_examples: int = 2_000
    seed: int = 0


class SynthDigits(tfds.core.GeneratorBasedBuilder):
    """TFDS builder of generated colour crops of house numbers.

    Examples are stored in the order of their index, so `"train[:1000]"` of any config is the whole
    training split of `"1k"`.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "Initial release."}
    BUILDER_CONFIGS = [
        SynthDigitsConfig(
            name=name,
            description=f"{train:,} training and {test:,} test images.",
            train_examples=train,
            test_examples=test,
        )
        for name, train, test in (
            ("10k", 10_000, 2_000),
            ("1k", 1_000, 500),
            ("50k", 50_000, 10_000),
            ("500k", 500_000, 10_000),
        )
    ]
    DEFAULT_BUILDER_CONFIG_NAME = "10k"

    def _info(self) -> tfds.core.DatasetInfo:
        image = tfds.features.Image(shape=(IMAGE_SIZE, IMAGE_SIZE, 3), encoding_format="png")
        label = tfds.features.ClassLabel(num_classes=NUM_CLASSES)
        return self.dataset_info_from_configs(
            description=(
                "Generated 32x32 colour images of digits as on house numbers. The label is the "
                "digit in the centre; parts of other digits often show at its sides."
            ),
            features=tfds.features.FeaturesDict({"image": image, "label": label}),
            supervised_keys=("image", "label"),
            homepage="https://arxiv.org/abs/1409.7495",
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        config = self.builder_config
        return {
            "train": self._generate_examples("train", config.train_examples),
            "test": self._generate_examples("test", config.test_examples),
        }

    def _generate_examples(self, split: str, num_examples: int) -> Iterator[tuple[int, dict]]:
        for index in range(num_examples):
            image, label = example_at(self.builder_config.seed, split, index)
            yield index, {"image": _encode_png(image), "label": label}
