"""Pictures of a run's own data, ready for its model: to compare artefacts on, and to calibrate on."""

from dataclasses import dataclass, replace

import numpy as np
import tensorflow as tf

from deit_tf.config import DataConfig
from deit_tf.data import Source, open_sources
from deit_tf.data.sources import open_whole
from deit_tf.runs import Run


@dataclass(frozen=True)
class Pictures:
    """The same pictures in every form that an artefact takes.

    Args:
        encoded: The bytes of n files.
        images: float32 [n, H, W, 3], normalised as the model wants them.
        labels: int64 [n], the true classes.
    """

    encoded: list[bytes]
    images: np.ndarray
    labels: np.ndarray


def held_out(run: Run, count: int, source: str | None = None) -> Pictures | None:
    """Up to `count` pictures that the run was not trained on, from all over its data.

    Args:
        run: The run.
        count: How many at most.
        source: Others than its own: `digits`, `tfds:NAME` or a folder of class folders.
    Returns:
        None where neither the run's data nor others are at hand.
    Raises:
        FileNotFoundError: If there is nothing at `source`.
    """
    if source is not None:
        data = run.config.data if run.config else DataConfig()
        return _some(open_whole(replace(data, source=source, verify=False)), run, count)
    split = _splits(run)
    return None if split is None else _some(split[1], run, count)


def training(run: Run, count: int) -> Pictures | None:
    """Up to `count` pictures of those trained on, without augmentation, as `held_out`."""
    split = _splits(run)
    return None if split is None else _some(split[0], run, count)


def _splits(run: Run) -> tuple[Source, Source] | None:
    if run.config is None:
        return None
    try:
        return open_sources(replace(run.config.data, verify=False))
    except (FileNotFoundError, ValueError):
        return None


def _some(source: Source, run: Run, count: int) -> Pictures:
    # At equal distances: folders come one class after the other.
    items = list(source.read(None).shard(max(1, source.size // count), 0).take(count).as_numpy_iterator())
    encoded = [item["image"] for item in items]
    images = np.stack(list(tf.data.Dataset.from_tensor_slices(encoded).map(run.processor).as_numpy_iterator()))
    return Pictures(encoded, images, np.array([item["label"] for item in items]))
