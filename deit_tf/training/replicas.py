"""Where a run trains: one device, all GPUs of a machine, or several machines; TensorFlow's own
tf.distribute.

A global batch is the same whatever the number of replicas: each takes its slice of it, and a worker
makes the slices of its own replicas alone.
"""

import json
import os
from typing import Literal

import tensorflow as tf

Strategy = Literal["none", "mirrored", "multi_worker"]


def open_strategy(name: Strategy) -> tf.distribute.Strategy:
    """Open a strategy by its name in the config; `multi_worker` before TensorFlow has computed
    anything.

    Raises:
        ValueError: For `multi_worker` without a TF_CONFIG that names a cluster.
    """
    if name == "mirrored":
        devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
        return tf.distribute.MirroredStrategy([device.name for device in devices])
    if name == "multi_worker":
        if not _names_a_cluster(os.environ.get("TF_CONFIG", "")):
            raise ValueError(
                "`strategy` multi_worker needs the environment variable TF_CONFIG on every "
                'machine, as in {"cluster": {"worker": ["host0:2222", "host1:2222"]}, '
                '"task": {"type": "worker", "index": 0}}. '
                f"Received: {os.environ.get('TF_CONFIG')!r}"
            )
        return tf.distribute.MultiWorkerMirroredStrategy()

    return tf.distribute.get_strategy()


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process is the one that writes files."""
    resolver = strategy.cluster_resolver
    if resolver is None or not resolver.task_type:
        return True
    first = "chief" if "chief" in resolver.cluster_spec().jobs else "worker"
    return (resolver.task_type, resolver.task_id) == (first, 0)


def worker_of(strategy: tf.distribute.Strategy) -> tuple[int, int]:
    """Which worker of a cluster this process is, counted from 0, and of how many; (0, 1) alone.

    It is `part` of `train_dataset` and `eval_dataset`: the share of every batch that it makes.
    """
    resolver = strategy.cluster_resolver
    if resolver is None or not resolver.task_type:
        return 0, 1

    jobs = resolver.cluster_spec().as_dict()
    chiefs = len(jobs.get("chief", ()))  # before the others, as tf.distribute numbers them
    before = chiefs if resolver.task_type == "worker" else 0
    return before + resolver.task_id, chiefs + len(jobs.get("worker", ()))


def _names_a_cluster(text: str) -> bool:
    try:
        return "cluster" in json.loads(text)
    except (ValueError, TypeError):
        return False


def synchronize(strategy: tf.distribute.Strategy, number: float = 0.0) -> float:
    """Wait until all workers of a cluster are here; returns the mean of their numbers."""
    if strategy.cluster_resolver is None:
        return number

    @tf.function
    def mean():
        return strategy.reduce(
            "MEAN", strategy.run(lambda: tf.constant(number, tf.float64)), axis=None
        )

    return float(mean())


def check_batch(batch_size: int, replicas: int, micro_batches: int) -> None:
    """Refuse a batch that does not fall into equal parts.

    Raises:
        ValueError: If it does not.
    """
    if micro_batches < 1 or batch_size % (replicas * micro_batches):
        parts = replicas * max(micro_batches, 1)
        raise ValueError(
            f"`data.batch_size` must be a multiple of {replicas} replicas times {micro_batches} "
            f"micro-batches; the nearest is {max(1, round(batch_size / parts)) * parts}. "
            f"Received: {batch_size}"
        )


def distribute(batches: tf.data.Dataset, strategy: tf.distribute.Strategy):
    """Give each replica of this worker its slice of every batch, in order.

    Args:
        batches: This worker's share of the global batches (`worker_of`), all full.
        strategy: Where they go.
    """
    if strategy.num_replicas_in_sync == 1:
        return batches

    def of_worker(context):
        local = strategy.num_replicas_in_sync // context.num_input_pipelines

        def slices(*batch):
            mine = tf.nest.map_structure(lambda x: _split(x, local), batch)
            mine = mine if len(batch) > 1 else mine[0]
            return tf.data.Dataset.from_tensor_slices(mine)  # [B / replicas, ...] each

        return batches.flat_map(slices).prefetch(local)

    return strategy.distribute_datasets_from_function(of_worker)


def _split(x: tf.Tensor, replicas: int) -> tf.Tensor:
    """[rows, ...] to [replicas, rows / replicas, ...]."""
    size = None if x.shape[0] is None else x.shape[0] // replicas
    return tf.ensure_shape(
        tf.reshape(x, (replicas, -1, *x.shape[1:])), (replicas, size, *x.shape[1:])
    )
