"""Tests of the occlusion: its pixels, its tiles and its distribution."""

import numpy as np
import pytest
import scipy.stats
import tensorflow as tf

from ad_keras.pad.perturbations import Occlusion, occlude, occlusion_mask, perturb_each

SIZE = 32


def masks(seed, probabilities, tiles, height=SIZE, width=SIZE):
    """float32 [N, height, width] as NumPy; scalars are repeated."""
    probabilities, tiles = np.broadcast_arrays(probabilities, tiles)
    probabilities = tf.constant(np.atleast_1d(probabilities), tf.float32)
    tiles = tf.constant(np.atleast_1d(tiles), tf.int32)
    mask = occlusion_mask([seed, 0], probabilities, tiles, height, width)
    assert mask.shape == (len(tiles), height, width, 1)
    assert mask.dtype == tf.float32
    return mask.numpy()[..., 0]


def tile_values(mask, tile):
    """[tiles down, tiles across]: the upper left pixel of each tile."""
    return mask[..., ::tile, ::tile]


def test_occlude_greys_what_the_mask_hides_and_keeps_the_rest():
    images = np.random.default_rng(0).uniform(-1, 1, (2, 4, 6, 3)).astype(np.float32)
    mask = np.ones((2, 4, 6, 1), np.float32)
    mask[0, :2, 3:] = 0
    mask[1, 3, 0] = 0
    expected = images.copy()
    expected[0, :2, 3:, :] = 0
    expected[1, 3, 0, :] = 0
    np.testing.assert_array_equal(occlude(tf.constant(images), tf.constant(mask)), expected)


@pytest.mark.parametrize("tile", [1, 2, 3, 5, 8, 32, 40])
@pytest.mark.parametrize(("height", "width"), [(SIZE, SIZE), (12, 20)])
def test_masks_are_made_of_whole_tiles_that_the_border_cuts(tile, height, width):
    mask = masks(tile, [0.5] * 50, tile, height, width)
    assert set(np.unique(mask)) == {0, 1}
    blocks = tile_values(mask, tile).repeat(tile, axis=1).repeat(tile, axis=2)
    np.testing.assert_array_equal(mask, blocks[:, :height, :width])


def test_tiles_are_occluded_independently_of_each_other():
    count = 4000
    tiles = tile_values(masks(1, [0.5] * count, 5), 5).reshape(count, 49)
    correlations = np.corrcoef(tiles.T)[np.triu_indices(49, 1)]
    assert np.abs(correlations).max() < 5 / np.sqrt(count)  # 5 sigma, of 1,176 pairs
    # Not only in pairs: the number of visible tiles has a binomial's variance.
    variance = tiles.sum(axis=1).var()
    assert abs(variance - 49 / 4) < 5 * 49 / 4 * np.sqrt(2 / count)


@pytest.mark.parametrize("probability", [0.1, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("tile", [1, 4, 5])
def test_the_share_of_occluded_tiles_is_the_probability(probability, tile):
    visible = tile_values(masks(2, [probability] * 500, tile), tile)
    tolerance = 4 * np.sqrt(probability * (1 - probability) / visible.size)
    assert abs((1 - visible.mean()) - probability) < tolerance
    # ... at every place, the cut tiles at the border included.
    by_place = 1 - visible.mean(axis=0)
    tolerance = 5 * np.sqrt(probability * (1 - probability) / len(visible))
    assert np.abs(by_place - probability).max() < tolerance


def test_each_mask_has_its_own_probability_and_tile_size():
    probabilities = np.tile([0.0, 0.2, 0.8, 1.0], 100)
    tiles = np.tile([3, 4, 8, 1], 100)
    mask = masks(4, probabilities, tiles)
    assert (mask[0::4] == 1).all()
    assert (mask[3::4] == 0).all()
    for offset, (probability, tile) in {1: (0.2, 4), 2: (0.8, 8)}.items():
        visible = tile_values(mask[offset::4], tile)
        np.testing.assert_array_equal(np.kron(visible, np.ones((tile, tile))), mask[offset::4])
        tolerance = 4 * np.sqrt(probability * (1 - probability) / visible.size)
        assert abs(1 - visible.mean() - probability) < tolerance


@pytest.mark.parametrize(
    ("occlusion", "lowest", "highest", "sizes"),
    [(Occlusion(), 0.0, 1.0, range(1, 9)), (Occlusion((0.2, 0.6), (3, 5)), 0.2, 0.6, range(3, 6))],
)
def test_occlusion_strengths_are_uniform_over_their_ranges_ends_included(
    occlusion, lowest, highest, sizes
):
    probabilities, tiles = occlusion.strengths([0, 0], 8000)
    assert probabilities.dtype == tf.float32
    assert tiles.dtype == tf.int32
    values, counts = np.unique(tiles, return_counts=True)
    assert [*values] == [*sizes]
    assert scipy.stats.chisquare(counts).pvalue > 0.001
    spread = (lowest, highest - lowest)
    assert scipy.stats.kstest(probabilities, "uniform", args=spread).pvalue > 0.001
    correlation = np.corrcoef(probabilities, tiles)[0, 1]
    assert abs(correlation) < 4 / np.sqrt(8000)


def test_ranges_of_one_value_fix_it():
    probabilities, tiles = Occlusion((0.3, 0.3), (4, 4)).strengths([2, 0], 100)
    np.testing.assert_allclose(probabilities, 0.3, rtol=1e-6)
    assert (tiles.numpy() == 4).all()
    for end in (0.0, 1.0):
        exactly, _ = Occlusion((end, end)).strengths([2, 0], 100)
        assert (exactly.numpy() == end).all()


def test_an_occlusion_shares_a_mask_within_the_mini_batch_or_has_one_for_each_image():
    images = tf.ones([6, SIZE, SIZE, 3])
    shared = Occlusion((0.5, 0.5), (4, 4))(images, [7, 0]).numpy()
    np.testing.assert_array_equal(shared, np.repeat(shared[:1], 6, axis=0))
    assert set(np.unique(shared)) == {0, 1}
    own = Occlusion((0.5, 0.5), (4, 4), per_image=True)(images, [7, 0]).numpy()
    assert len(np.unique(own.reshape(6, -1), axis=0)) == 6


def test_perturbing_each_gives_every_image_a_draw_of_its_own():
    images = tf.ones([5, SIZE, SIZE, 3])
    perturbed = perturb_each(Occlusion((0.5, 0.5), (4, 4)), images, [7, 0]).numpy()
    assert perturbed.shape == (5, SIZE, SIZE, 3)
    assert len(np.unique(perturbed.reshape(5, -1), axis=0)) == 5
    again = perturb_each(Occlusion((0.5, 0.5), (4, 4)), images[:3], [7, 0])
    np.testing.assert_array_equal(again, perturbed[:3])
    half = perturb_each(Occlusion((0.5, 0.5), (4, 4)), tf.ones([2, 16, 16, 3], tf.float16), [7, 0])
    assert (half.shape, half.dtype) == ([2, 16, 16, 3], tf.float16)


def test_parts_are_equal_if_their_arguments_are():
    assert len({Occlusion(), Occlusion((0, 1), (1, 8)), Occlusion(per_image=True)}) == 2
    assert Occlusion() != "occlusion"
