"""Tests of the memory of the last mini-batch."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from ad_keras.pad.hippocampus import AssociativeHippocampus, EpisodicHippocampus, Hippocampus

KEY = [0, 0]  # this memory draws nothing


def built(capacity=4, size=3):
    hippocampus = Hippocampus(capacity)
    hippocampus.build((None, size))
    return hippocampus


def latents(seed, count=4, size=3):
    return tf.constant(np.random.default_rng(seed).normal(size=(count, size)), tf.float32)


def test_recalling_gives_the_previous_latents_and_does_not_change_the_memory():
    hippocampus = built()
    for step in range(3):
        hippocampus.store(latents(step))
        for now in (1, 2):
            recalled = hippocampus.recall(latents(step + now), KEY)
            np.testing.assert_array_equal(recalled, latents(step))


@pytest.mark.parametrize("static", [True, False])
def test_a_batch_beyond_the_capacity_raises_and_says_what_to_do(static):
    hippocampus = built()
    shape = [5 if static else None, 3]
    store = tf.function(hippocampus.store, input_signature=[tf.TensorSpec(shape)])
    message = r"Hippocampus\(capacity\) of at least that \(it is 4\)"
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        store(latents(0, count=5))
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        hippocampus.store(latents(0, count=5))
    np.testing.assert_array_equal(hippocampus.stored, 0)


def test_batches_may_be_of_any_size_and_what_is_not_remembered_is_its_own_partner():
    hippocampus = built()

    @tf.function(input_signature=[tf.TensorSpec([None, 3])])
    def step(now):
        recalled = hippocampus.recall(now, KEY)
        hippocampus.store(now)
        return recalled

    np.testing.assert_array_equal(step(latents(0)), latents(0))
    np.testing.assert_array_equal(step(latents(1, count=2)), latents(0)[:2])
    recalled = step(latents(2))
    np.testing.assert_array_equal(recalled, tf.concat([latents(1, count=2), latents(2)[2:]], 0))


def test_a_memory_is_made_again_from_its_configuration():
    arguments = {"capacity": 8, "replacement": "reservoir", "seed": 3, "beta": 2.0, "cue": 0.25}
    memory = AssociativeHippocampus(**arguments)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(memory))
    assert {name: getattr(again, name) for name in arguments} == arguments


def test_the_memory_is_not_trainable_and_stays_in_float32():
    hippocampus = built()
    assert hippocampus.trainable_variables == []
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        assert built().latents.dtype == "float32"
    finally:
        keras.config.set_dtype_policy("float32")


def ordinals(first, count):
    """Latents [count, 1] that say when they were stored."""
    return tf.range(first, first + count, dtype=tf.float32)[:, None]


def filled(hippocampus, batches, count=4):
    hippocampus.build((None, 1))
    for batch in range(batches):
        hippocampus.store(ordinals(batch * count, count))
    return hippocampus


def test_an_episodic_memory_keeps_the_newest_and_recalls_each_of_them_equally_often():
    hippocampus = filled(EpisodicHippocampus(10), 5)
    assert sorted(hippocampus.latents.numpy()[:, 0]) == list(range(10, 20))
    recalled = np.concatenate(
        [hippocampus.recall(latents(0, 10, 1), [key, 0]) for key in range(100)]
    )
    values, counts = np.unique(recalled, return_counts=True)
    np.testing.assert_array_equal(values, range(10, 20))
    assert np.abs(counts - 100).max() < 5 * np.sqrt(100 * 0.9)


@pytest.mark.parametrize("kind", [EpisodicHippocampus, AssociativeHippocampus])
def test_a_memory_that_is_not_full_recalls_only_what_it_has(kind):
    now = latents(0, 4, 1)
    hippocampus = filled(kind(10), 0)
    np.testing.assert_array_equal(hippocampus.recall(now, KEY), now)
    hippocampus.store(ordinals(5, 3))
    recalled = np.concatenate([hippocampus.recall(now, [key, 0]) for key in range(20)])
    assert recalled.min() >= 5
    assert recalled.max() <= 7


def test_a_reservoir_is_a_uniform_sample_of_all_that_was_stored():
    batches, kept = 60, np.zeros(60)
    for seed in range(3):
        memory = EpisodicHippocampus(1000, "reservoir", seed)
        memory.build((None, 1))
        for number in range(batches):
            memory.store(tf.fill((100, 1), float(number)))
        kept += np.bincount(memory.latents.numpy()[:, 0].astype(int), minlength=batches)
    # Drawing without replacement scatters less than a multinomial, by the share that is not kept.
    statistic = ((kept - 50) ** 2 / 50).sum() / (1 - 1 / 6)
    assert 1e-3 < stats.chi2(batches - 1).cdf(statistic) < 1 - 1e-3


def test_a_reservoir_reaches_all_its_places_after_many_latents():
    memory = EpisodicHippocampus(2**10, "reservoir")
    memory.build((None, 1))
    for memory.seed in range(1000):
        memory.seen.assign(2**25)
        memory.store(tf.ones((2**10, 1)))
    reached = np.flatnonzero(memory.latents.numpy())
    assert set(reached % 4) == {0, 1, 2, 3}


def test_an_associative_memory_completes_a_partial_cue_to_the_stored_latent():
    stored = latents(3, 16, 64)
    hippocampus = AssociativeHippocampus(16, beta=60.0, cue=0.5)
    hippocampus.build((None, 64))
    hippocampus.store(stored)
    np.testing.assert_allclose(hippocampus.recall(stored, KEY), stored, atol=1e-3)


def test_associative_recall_is_one_update_of_a_modern_hopfield_network():
    stored, now = latents(3, 6, 5).numpy(), latents(4, 4, 5).numpy()
    hippocampus = AssociativeHippocampus(8, beta=2.0, cue=1.0)
    hippocampus.build((None, 5))
    hippocampus.store(stored)
    weights = np.exp(2 * now @ stored.T / 5)
    expected = weights / weights.sum(axis=1, keepdims=True) @ stored
    np.testing.assert_allclose(hippocampus.recall(now, KEY), expected, rtol=1e-4)
