"""Pictures of a run's own data, ready for its model: to compare artifacts on, and to calibrate
on.
"""

from dataclasses import dataclass, replace

import numpy as np

from deit_tf.config import DataConfig
from deit_tf.data import Source, open_sources, sample
from deit_tf.data.sources import open_whole
from deit_tf.runs import Run


@dataclass(frozen=True)
class Pictures:
    """The same pictures in every form that an artifact takes.

    Args:
        encoded: The bytes of n files.
        images: float32 [n, H, W, 3], normalized as the model wants them.
        labels: int64 [n], the true classes; or float32 [n, C], 1 where a class is there.
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
        return _some(open_whole(_data(run, source)), run, count)
    sources = _sources(run)
    return None if sources is None else _some(sources[1], run, count)


def training(run: Run, count: int, source: str | None = None) -> Pictures | None:
    """Up to `count` pictures of those trained on, without augmentation, as `held_out`."""
    sources = _sources(run) if source is None else open_sources(_data(run, source))
    return None if sources is None else _some(sources[0], run, count)


def check_counts(**counts: int) -> None:
    """Check arguments that count something.

    Raises:
        ValueError: If one is not positive; it is named.
    """
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"`--{name}` counts from 1. Received: {count}")


def _data(run: Run, source: str) -> DataConfig:
    return replace(run.config.data if run.config else DataConfig(), source=source, verify=False)


def _sources(run: Run) -> tuple[Source, Source] | None:
    """What the run was trained on, and what it held out; None where that is not at hand."""
    try:
        return run.sources
    except (FileNotFoundError, ValueError):
        return None


def _some(source: Source, run: Run, count: int) -> Pictures:
    """Pictures at equal distances: folders hold one class after the other."""
    items, images = zip(*sample(source, run.processor, count), strict=True)
    return Pictures(
        [item["image"] for item in items],
        np.stack(images),
        np.array([item["label"] for item in items]),
    )
