"""Tests of the perturbations beside occlusion, against SciPy and plain NumPy."""

import keras
import numpy as np
import pytest
import scipy.ndimage
import tensorflow as tf

from ad_keras import Blur, Chain, Colour, Crop, Flip, Grey, Noise, Occlusion, Rotation, Shift

KEY = [7, 3]
ALL = [
    *(Blur(), Colour(), Crop(), Flip(), Grey(0.5), Noise(), Rotation(), Shift(0.3)),
    Occlusion(per_image=True),
]
NAMES = [type(part).__name__ for part in ALL]


def images(count=5, height=12, width=16):
    rng = np.random.default_rng(1)
    return rng.uniform(-1, 1, (count, height, width, 3)).astype(np.float32)


def number(*values):
    return tf.constant(values, tf.float32)


def at(image, rows, columns):
    """The image at other places; beyond the border, the border's."""
    places = np.broadcast_arrays(rows, columns)
    channels = [
        scipy.ndimage.map_coordinates(image[..., c], places, order=1, mode="nearest")
        for c in range(3)
    ]
    return np.stack(channels, axis=-1)


@pytest.mark.parametrize("part", ALL, ids=NAMES)
def test_each_image_has_a_draw_of_its_own_which_the_key_determines(part):
    same = tf.constant(np.repeat(images(1), 12, axis=0))
    first, again, other = part(same, KEY), part(same, KEY), part(same, [7, 4])
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3
    assert len({tuple(image.ravel()) for image in first.numpy()}) > 1


@pytest.mark.parametrize("part", ALL, ids=NAMES)
def test_shape_and_range_stay_also_for_half_precision_and_with_xla(part):
    sharp = tf.constant(np.sign(images(8)), tf.bfloat16)
    plain = part(sharp, KEY)
    assert plain.shape == sharp.shape
    assert np.abs(plain).max() <= 1 + 1e-6
    compiled = tf.function(part, jit_compile=True)(sharp, tf.constant(KEY, tf.int64))
    np.testing.assert_allclose(plain, compiled, atol=1e-4)


@pytest.mark.parametrize(
    "part", [*ALL, Chain([Crop((0.5, 0.9)), Occlusion((0.2, 0.3)), Flip(1.0)])]
)
def test_saved_and_loaded_parts_do_the_same(part):
    saved = keras.saving.serialize_keras_object(part)
    loaded = keras.saving.deserialize_keras_object(saved)
    batch = tf.constant(images())
    np.testing.assert_array_equal(part(batch, KEY), loaded(batch, KEY))


def test_crop_enlarges_a_window_of_the_drawn_area_aspect_and_place():
    batch = images(1)
    crop = Crop((0.25, 0.25), (1.0, 4.0))
    # Aspect 4^0.5 = 2: half of 0.25 = height 0.3536, width 0.7071 of the sides.
    height, width = np.sqrt(0.25 / 2), np.sqrt(0.25 * 2)
    rows = (0.5 * (1 - height) + height * (np.arange(12) + 0.5) / 12) * 12 - 0.5
    columns = (1.0 * (1 - width) + width * (np.arange(16) + 0.5) / 16) * 16 - 0.5
    actual = crop.perturb(batch, number(0.3), number(0.5), number(0.5), number(1.0))
    np.testing.assert_allclose(actual[0], at(batch[0], rows[:, None], columns), atol=1e-5)


def test_a_crop_of_everything_is_the_image():
    batch = images()
    np.testing.assert_allclose(Crop((1, 1), (1, 1))(batch, KEY), batch, atol=1e-5)


def test_shift_moves_by_every_whole_number_of_pixels_up_to_the_share():
    ramp = np.tile(np.arange(12, dtype=np.float32)[:, None, None] / 12, (1, 16, 3))
    moved = Shift(0.25)(np.repeat(ramp[None], 400, axis=0), KEY).numpy()
    # 3 pixels up or down: row 6 shows any of the rows 3 to 9.
    shown, counts = np.unique(np.round(moved[:, 6, 8, 0] * 12), return_counts=True)
    np.testing.assert_array_equal(shown, np.arange(3, 10))
    assert counts.min() > 30


@pytest.mark.parametrize("chance", [0.0, 0.25, 1.0])
def test_rotation_turns_about_the_centre_counterclockwise(chance):
    batch = images(1)
    radians = np.deg2rad(-40 + 80 * chance)
    y, x = np.mgrid[:12, :16] - np.array([5.5, 7.5])[:, None, None]
    rows = np.cos(radians) * y + np.sin(radians) * x + 5.5
    columns = -np.sin(radians) * y + np.cos(radians) * x + 7.5
    actual = Rotation(40).perturb(batch, number(chance))
    np.testing.assert_allclose(actual[0], at(batch[0], rows, columns), atol=1e-4)


def test_flip_and_grey_concern_the_given_share_of_images():
    batch = images(1000, 2, 2)
    flipped = (Flip(0.3)(batch, KEY) == batch[:, :, ::-1]).numpy().all(axis=(1, 2, 3))
    assert abs(flipped.mean() - 0.3) < 4 * np.sqrt(0.21 / 1000)
    out = Grey(0.3)(batch, KEY).numpy()
    grey = (out == out[..., :1]).all(axis=(1, 2, 3))
    assert abs(grey.mean() - 0.3) < 4 * np.sqrt(0.21 / 1000)
    luminance = batch @ np.array([0.2989, 0.587, 0.114], np.float32)
    np.testing.assert_allclose(out[grey][..., 0], luminance[grey], atol=1e-3)
    np.testing.assert_array_equal(out[~grey], batch[~grey])


def test_colour_scales_intensity_contrast_and_saturation():
    batch = images(1)
    low, high, middle = Colour(0.5).perturb(
        np.repeat(batch, 3, axis=0),
        *(number(*row) for row in ((0.0, 0.5, 0.5), (0.5, 1.0, 0.5), (0.5, 0.5, 0.0))),
    )
    luminance = np.array([0.2989, 0.587, 0.114])
    grey = (batch[0] @ luminance)[..., None]
    np.testing.assert_allclose(low, (batch[0] + 1) / 2 - 1, atol=1e-5)
    np.testing.assert_allclose(
        high, np.clip(grey.mean() + 1.5 * (batch[0] - grey.mean()), -1, 1), atol=1e-3
    )
    np.testing.assert_allclose(middle, grey + 0.5 * (batch[0] - grey), atol=1e-3)


def test_blur_is_gaussian_inside_and_keeps_uniform_images():
    batch = images(1, 40, 40)
    actual = Blur((0.5, 1.5)).perturb(batch, number(0.5)).numpy()
    expected = scipy.ndimage.gaussian_filter(batch, (0, 1, 1, 0), truncate=10)
    np.testing.assert_allclose(actual[:, 10:-10, 10:-10], expected[:, 10:-10, 10:-10], atol=1e-5)
    uniform = np.full_like(batch, 0.3)
    np.testing.assert_allclose(Blur()(uniform, KEY), uniform, atol=1e-5)


def test_noise_has_the_given_deviation_in_every_pixel():
    noise = Noise(0.1)(tf.zeros([500, 4, 4, 3]), KEY).numpy()
    np.testing.assert_allclose(noise.std(axis=0), 0.1, rtol=0.2)
    correlations = np.corrcoef(noise.reshape(500, -1).T)[np.triu_indices(48, 1)]
    assert np.abs(correlations).max() < 5 / np.sqrt(500)


def test_a_chain_applies_its_parts_in_order_with_keys_of_their_own():
    batch = images()
    darker = Colour(0.9)
    chained = Chain([darker, darker])(batch, KEY)
    with pytest.raises(ValueError, match="must be no layer"):
        Chain([keras.layers.GaussianNoise(0.1)])
    assert repr(Chain([Flip(1.0), Grey(0.2)])) == (
        "Chain(perturbations=[Flip(probability=1.0), Grey(probability=0.2)])"
    )
    assert np.abs(chained - darker(darker(batch, KEY), KEY)).max() > 1e-3
    np.testing.assert_array_equal(
        Chain([Flip(1.0), Occlusion((1.0, 1.0))])(batch, KEY), np.zeros_like(batch)
    )
