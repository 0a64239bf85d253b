"""Batches on the device before the step asks for them."""

import tensorflow as tf

AHEAD = 2  # batches


def on_device(batches, strategy: tf.distribute.Strategy):
    """Copy batches to the GPU while the step before runs.

    Args:
        batches: Of one process. On several replicas they are distributed already, and tf.distribute
            fetches ahead to each device by itself.
        strategy: Where they go.
    """
    gpus = tf.config.list_logical_devices("GPU")
    if strategy.num_replicas_in_sync > 1 or not gpus:
        return batches
    return fetched_ahead(batches, gpus[0].name)


def fetched_ahead(batches: tf.data.Dataset, device: str) -> tf.data.Dataset:
    """Batches that lie on `device`, `AHEAD` of them made ahead."""
    return batches.apply(tf.data.experimental.prefetch_to_device(device, AHEAD))
