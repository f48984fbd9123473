"""Where a run computes: on one device, on several, or on several machines.

The strategies are TensorFlow's. Workers find each other by the standard environment variable
`TF_CONFIG`.
"""

import contextlib
import dataclasses
import functools
import json
import os
from collections.abc import Callable, Iterator

import tensorflow as tf

from ad_keras.data.pixels import as_signed
from ad_keras.errors import RunError, UsageError, first_line

_EXAMPLE = (  # of TF_CONFIG
    '{"cluster": {"worker": ["host1:2222", "host2:2222"]}, "task": {"type": "worker", "index": 0}}'
)


@dataclasses.dataclass(frozen=True)
class Cluster:
    """This process among those that train a run together.

    Attributes:
        strategy: distributes the replicas of the model.
        worker: number of this process; 0 is the chief, the only one that writes files.
        workers: how many processes there are.
    """

    strategy: tf.distribute.Strategy
    worker: int = 0
    workers: int = 1

    @property
    def is_chief(self) -> bool:
        """Whether this process writes the files of the run."""
        return self.worker == 0

    @property
    def replicas(self) -> int:
        """How many replicas share a mini-batch, on all workers together."""
        return self.strategy.num_replicas_in_sync

    def __str__(self) -> str:
        return f"worker {self.worker} of {self.workers}"

    def batches(self, make: Callable[[range, int], tf.data.Dataset]):
        """A data set whose elements are the replicas' parts of mini-batches.

        Args:
            make: called with the replicas of this worker and the number of all. Its data set has
                for each mini-batch one element for each of these replicas, in their order.

        Returns:
            What `keras.Model.fit` takes in this cluster.
        """
        if self.replicas == 1:
            return make(range(1), 1)

        def worker_batches(context: tf.distribute.InputContext) -> tf.data.Dataset:
            local = self.replicas // context.num_input_pipelines
            first = local * context.input_pipeline_id
            parts = make(range(first, first + local), self.replicas)
            # Keras averages the first elements over workers, which fails for integers of 8 bits.
            return parts.map(as_signed)

        return self.strategy.distribute_datasets_from_function(worker_batches)

    def agree(self, number: int) -> bool:
        """Waits for all workers; whether each of them has the same number."""
        if self.workers == 1:
            return True
        told = [number if worker == self.worker else 0 for worker in range(self.workers)]

        def total() -> tf.Tensor:
            # Every replica of a worker tells the same.
            context = tf.distribute.get_replica_context()
            return context.all_reduce(tf.distribute.ReduceOp.SUM, tf.constant(told, tf.int64))

        with self.failures_explained():
            results = self.strategy.run(tf.function(total))
            sums = self.strategy.experimental_local_results(results)[0].numpy()
        return len(set(sums)) == 1

    def wait(self) -> None:
        """Waits until all workers wait."""
        self.agree(0)

    @contextlib.contextmanager
    def chief_first(self) -> Iterator[None]:
        """Lets the chief do something before the other workers do it."""
        if not self.is_chief:
            self.wait()
        yield
        if self.is_chief:
            self.wait()

    @contextlib.contextmanager
    def failures_explained(self) -> Iterator[None]:
        """Says in one line that another worker was lost.

        Raises:
            RunError: in place of what TensorFlow raises then.
        """
        try:
            yield
        except (
            tf.errors.UnavailableError,
            tf.errors.AbortedError,
            tf.errors.CancelledError,
            tf.errors.DeadlineExceededError,
            tf.errors.FailedPreconditionError,  # it was started again
        ) as error:
            if self.workers == 1:
                raise
            raise RunError(
                f"{self} lost another worker: it stopped (see its message) or cannot be reached. "
                "Start all workers again with the same command, without --overwrite: training "
                "continues from the last checkpoint."
            ) from error


@functools.cache  # a process can join a cluster once, and its collective operations are numbered
def connect(strategy: str) -> Cluster:
    """Joins the devices, and the other workers, that train a run.

    It comes before anything else that uses TensorFlow's devices.

    Args:
        strategy: `one_device`, `mirrored` (all devices of this machine), `multi_worker` (by
            `TF_CONFIG`), `tpu`, or `auto`: `multi_worker` if `TF_CONFIG` names several workers,
            `mirrored` if there are several GPUs, otherwise `one_device`.

    Raises:
        UsageError: if `TF_CONFIG` is missing or wrong, or there is no TPU.
    """
    task = _task()
    if strategy == "auto":
        if task and task[1] > 1:
            strategy = "multi_worker"
        elif len(tf.config.list_physical_devices("GPU")) > 1:
            strategy = "mirrored"
        else:
            strategy = "one_device"
    if strategy == "one_device":
        return Cluster(tf.distribute.get_strategy())
    if strategy == "mirrored":
        devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
        return Cluster(tf.distribute.MirroredStrategy([device.name for device in devices]))
    if strategy == "tpu":
        return Cluster(_tpu_strategy())
    if task is None:
        raise UsageError(
            f"--strategy=multi_worker needs the environment variable TF_CONFIG, such as {_EXAMPLE}."
        )
    try:
        return Cluster(tf.distribute.MultiWorkerMirroredStrategy(), *task)
    except (tf.errors.OpError, ValueError, TypeError) as error:
        reason = f"cannot be used: {first_line(error)}."
        raise UsageError(f"TF_CONFIG={os.environ['TF_CONFIG']} {reason}") from error


def refuse_workers(reason: str) -> None:
    """Refuses a `TF_CONFIG` of several workers with a reason: why, and what to do.

    Only training is shared among workers.

    Raises:
        UsageError: if `TF_CONFIG` names several workers, or is wrong.
    """
    task = _task()
    if task and task[1] > 1:
        raise UsageError(f"TF_CONFIG names {task[1]} workers, but {reason}")


def _task() -> tuple[int, int] | None:
    """Number of this process among the workers and their number, by `TF_CONFIG`."""
    text = os.environ.get("TF_CONFIG")
    if not text:
        return None
    try:
        told = json.loads(text)
        jobs, task = told["cluster"], told["task"]
        members = [
            (job, index) for job in ("chief", "worker") for index in range(len(jobs.get(job, [])))
        ]
        return members.index((task["type"], int(task["index"]))), len(members)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"TF_CONFIG={text} does not describe a worker of a cluster ({error!r}): it must be "
            f"like {_EXAMPLE}."
        ) from None


def _tpu_strategy() -> tf.distribute.Strategy:
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver.connect(
            os.environ.get("TPU_NAME", "local")
        )
        return tf.distribute.TPUStrategy(resolver)
    except Exception as error:  # the many ways in which none is found
        reason = first_line(error).split(". ")[0]  # what follows are operations and attributes
        raise UsageError(
            f"--strategy=tpu finds no TPU ({reason}): set TPU_NAME, or use another strategy."
        ) from error
