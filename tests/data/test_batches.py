"""Tests of the mini-batches as a function of (seed, step), and of the validation split."""

import numpy as np
import pytest
import tensorflow as tf

from ad_keras.data import batches, validation_split

COUNT, BATCH = 23, 5
PER_EPOCH = COUNT // BATCH


def numbered(count=COUNT):
    """Images whose every pixel is the image's own number."""
    return np.broadcast_to(
        np.arange(count, dtype=np.uint8)[:, None, None, None], (count, 4, 4, 3)
    ).copy()


def drawn(first, last, *, seed=0, count=COUNT, batch=BATCH):
    """[last - first, batch]: which images the steps visit."""
    steps = list(batches(numbered(count), batch, seed, first, last).as_numpy_iterator())
    for images in steps:
        assert images.shape == (batch, 4, 4, 3)
        assert (images == images[:, :1, :1, :1]).all()
    return np.array([images[:, 0, 0, 0] for images in steps])


def test_batches_are_raw_pixels_of_a_known_number_and_shape():
    dataset = batches(numbered(), BATCH, seed=0, first=3, last=10)
    assert dataset.element_spec == tf.TensorSpec((BATCH, 4, 4, 3), tf.uint8)
    assert dataset.cardinality().numpy() == 7
    assert len(list(dataset)) == 7
    assert batches(numbered(), BATCH, seed=0, first=4, last=4).cardinality().numpy() == 0


@pytest.mark.parametrize("first", [1, PER_EPOCH - 1, PER_EPOCH, 2 * PER_EPOCH + 1])
def test_a_steps_batch_does_not_depend_on_where_one_started(first):
    last = 3 * PER_EPOCH
    np.testing.assert_array_equal(drawn(first, last), drawn(0, last)[first:])


@pytest.mark.parametrize("batch", [1, BATCH, 7, COUNT])
def test_an_epoch_visits_each_image_at_most_once_and_all_but_the_rest(batch):
    steps = COUNT // batch
    for visited in drawn(0, 10 * steps, batch=batch).reshape(10, steps * batch):
        assert len(set(visited)) == steps * batch


def test_every_image_is_left_out_now_and_then():
    left_out = np.zeros(COUNT)
    epochs = 200
    visited = drawn(0, epochs * PER_EPOCH).reshape(epochs, -1)
    for epoch in visited:
        left_out[np.setdiff1d(np.arange(COUNT), epoch)] += 1
    share = 3 / COUNT
    tolerance = 5 * np.sqrt(epochs * share * (1 - share))
    assert np.abs(left_out - epochs * share).max() < tolerance


@pytest.mark.parametrize("examples", [2, 10, 57, 1000])
def test_the_validation_split_is_disjoint_complete_and_a_tenth(examples):
    fitted, scored = validation_split(examples, seed=0)
    np.testing.assert_array_equal(np.sort(np.r_[fitted, scored]), np.arange(examples))
    assert len(scored) == max(1, round(examples / 10))
    assert (np.diff(fitted) > 0).all()
    assert (np.diff(scored) > 0).all()


def test_the_validation_split_is_random_and_a_function_of_the_seed():
    first, again, other = (validation_split(1000, seed)[1] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert len(np.intersect1d(first, other)) < 40
    assert abs(first.mean() - 499.5) < 5 * 289 / np.sqrt(100)  # spread over the whole set


def orders(count, batch, seed, epochs):
    """[epochs, count // batch, batch]: the positions that an order of images visits."""
    positions = np.arange(count)
    steps = batches(positions, batch, seed, 0, epochs * (count // batch))
    return np.array(list(steps.as_numpy_iterator())).reshape(epochs, -1, batch)


def test_orders_of_epochs_and_of_seeds_are_permutations_that_do_not_correlate():
    count = 50_000
    found = [orders(count, 500, seed, 3).reshape(3, -1) for seed in range(3)]
    visits = [*np.concatenate(found), np.arange(count)]
    for order in visits:
        np.testing.assert_array_equal(np.sort(order), np.arange(count))
    places = [np.argsort(order) for order in visits]  # when each image comes
    for series in (visits, places):
        correlations = np.corrcoef(series)[np.triu_indices(len(series), 1)]
        assert np.abs(correlations).max() < 0.03


def test_images_of_one_mini_batch_meet_again_no_more_often_than_by_chance():
    count, batch = 4096, 64
    first, second = orders(count, batch, 0, 2)
    mini_batch = np.empty(count, int)
    mini_batch[second] = np.arange(count // batch)[:, None]
    again = sum(
        (np.bincount(mini_batch[row]) * (np.bincount(mini_batch[row]) - 1)).sum() / 2
        for row in first
    )
    pairs = (count // batch) * batch * (batch - 1) / 2
    expected = pairs * (batch - 1) / (count - 1)
    assert abs(again - expected) < 5 * np.sqrt(expected)


def test_parts_of_a_mini_batch_are_those_that_replicas_share():
    whole = drawn(2, 9, batch=6)
    parts = batches(numbered(), 6, 0, 2, 9, parts=range(1, 3), of=3).as_numpy_iterator()
    shown = np.array([images[:, 0, 0, 0] for images in parts]).reshape(7, 2, 2)
    np.testing.assert_array_equal(shown.reshape(7, 4), whole[:, 2:])
