"""The global mini-batch, as one of the replicas that share it sees it.

With a `tf.distribute` strategy, `train_step` runs once on each replica, with that replica's part
of the mini-batch. What depends on the whole of it (the moments of the latents, the memory, the
random numbers, the metrics, the norm of a gradient) goes through these functions. With one replica
they do nothing.
"""

from collections.abc import Sequence

import tensorflow as tf

from ad_keras.compute import draws


def count() -> int:
    """How many replicas share a mini-batch."""
    return tf.distribute.get_strategy().num_replicas_in_sync


def gather(part: tf.Tensor) -> tf.Tensor:
    """Joins the replicas' parts [B / replicas, ...] to [B, ...] on all; gradients flow back."""
    if count() == 1:
        return part
    size, rest = tf.shape(part)[0], tf.shape(part)[1:]
    before = size * _index()
    after = size * (count() - 1) - before
    zeros = [tf.zeros(tf.concat([[rows], rest], axis=0), part.dtype) for rows in (before, after)]
    # A sum, because it leaves no doubt about the order of the replicas.
    return tf.distribute.get_replica_context().all_reduce(
        tf.distribute.ReduceOp.SUM, tf.concat([zeros[0], part, zeros[1]], axis=0)
    )


def own(whole: tf.Tensor) -> tf.Tensor:
    """This replica's part [B / replicas, ...] of something [B, ...] that is the same on all.

    B is a multiple of the number of replicas.
    """
    if count() == 1:
        return whole
    size = tf.shape(whole)[0] // count()
    return whole[size * _index() : size * (_index() + 1)]


def mean(value: tf.Tensor) -> tf.Tensor:
    """The mean over the replicas of what is a mean over this one's part of the mini-batch."""
    if count() == 1:
        return value
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.MEAN, value)


def summed(parts: Sequence[tf.Tensor]) -> Sequence[tf.Tensor]:
    """Tensors of any shapes, each summed over the replicas' shares of it."""
    if count() == 1:
        return parts
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, list(parts))


def normal(part: tf.Tensor, key: tf.Tensor) -> tf.Tensor:
    """Standard normal noise, this replica's part of what is drawn for the whole mini-batch.

    It has the shape of `part`, [B / replicas, N]. The key, integer [2], is of the stateless draw.
    """
    return own(draws.normal(tf.shape(part) * [count(), 1], key))


def _index() -> tf.Tensor:
    return tf.distribute.get_replica_context().replica_id_in_sync_group
