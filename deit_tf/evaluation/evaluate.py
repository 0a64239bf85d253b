"""Accuracy of a model in any of its forms, under a named protocol, on the same images.

Protocols: deit_tf/data/preprocess.py. ImageNet-V2 (Recht et al. 2019) comes as class folders 0 to
    999.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tensorflow as tf
from rich.progress import track

from deit_tf.config import DataConfig
from deit_tf.data import Source, eval_dataset, open_sources
from deit_tf.data.folders import SplitRule
from deit_tf.data.imagenet_real import real_source
from deit_tf.data.sources import open_whole
from deit_tf.data.unreadable import naming_unreadable
from deit_tf.evaluation.multilabel import LabelingCounts
from deit_tf.evaluation.predict import Opened, open_model, run_above
from deit_tf.evaluation.single_label import HitCounts
from deit_tf.exporting.activations import SIGMOID
from deit_tf.object_store import local_or_stored
from deit_tf.runs import class_order

OWN = "own"  # the preprocessing that the model came with
ASSUMED = "assumed"  # the original's, where nothing tells what the model came with
WARM_UP = 1  # batches that the throughput leaves out: the first one traces


def evaluate(
    path: str,
    run: str | None = None,
    source: str | None = None,
    batch_size: int | None = None,
    *,
    model: str | None = None,
    protocol: Literal["deit", "timm", "huggingface"] | None = None,
    split: str | None = None,
    data_dir: str | None = None,
    real_labels: str | None = None,
    strategy: Literal["mirrored"] | None = None,
    out: str | None = None,
) -> dict[str, Any]:
    """Count how often the true class is the top one, and among the top five; of images with any
    number of labels, how well they are told apart.

    Args:
        path: A run directory, a .keras file, weights of another library (a file, a folder or
            hf://ORGANIZATION/NAME), a SavedModel directory or a .tflite file.
        run: The run whose data, image processor and labels to use; by default the one that `path`
            lies in.
        source: Other images, named as `data.source`; of a folder without `train/` and `val/` all.
            Class folders named by wnid, or 0 to 999 as those of ImageNet-V2, are brought into the
            model's order.
        batch_size: Images per step; by default that of the run.
        model: Weights of another library: the name of the model, where their files do not tell it.
        protocol: How images are resized and cropped: `deit` (short side to 256, crop 224), `timm`
            (248, crop 224; 384, crop 384), `huggingface` (squashed to 256 x 256, crop 224); by
            default as the model came.
        split: TFDS only: the split to evaluate on.
        data_dir: TFDS only: where the prepared data set lies.
        real_labels: real.json of ImageNet-ReaL, a list of labels for each of the validation files
            in the order of their names; `source` is the folder of those files, with class folders
            or without. An image counts as right if its label is one of those; images without any
            are left out.
        strategy: `mirrored` spreads each batch over the machine's devices.
        out: Folder for evaluation.json, the figures of each class and the confusion matrix, as CSV
            and PNG, and a reliability plot; of several labels without the last two.
    Returns:
        `protocol` and `preprocessing`; `images`; `top1` and `top5` of the model's output (the mean
        of the logits of both heads), with their 95 % intervals, `top1_interval` and
        `top5_interval`; `top1_cls`, `top1_dist` of its heads where it has them, and
        `top1_probabilities`, of the mean of their probabilities; `precision_macro`, `recall_macro`
        and `f1_macro`, means over the classes that an image has; `ece`, the expected calibration
        error; shares in 0..1; `nll`, the negative log-likelihood, nats per image;
        `images_per_second`, preprocessing included. Formulas: deit_tf/evaluation/scores.py. Where
        an image has several right classes, top ones and intervals alone. Of a run of `task`
        multilabel, in place of the top ones and what follows from them, the figures of `Labelings`
        in deit_tf.evaluation.multilabel.
    Raises:
        FileNotFoundError: If there is nothing at `path`, or no run to take the data from.
        ValueError: If the images have a class that the model does not know, or one label each
            where the model tells several, or the other way round; if a label file does not fit
            them.
    """
    if source is None and run is None and run_above(path) is None:
        raise FileNotFoundError(
            f"{path} lies in no run directory. Pass --run RUN, or --source for the images."
        )

    replicas = tf.distribute.MirroredStrategy() if strategy == "mirrored" else None
    opened = open_model(path, run, model, replicas)
    data = opened.config.data if opened.config else DataConfig(source=source or "")
    data = replace(
        data, batch_size=batch_size or data.batch_size, data_dir=data_dir or data.data_dir
    )
    if not data.source:
        raise FileNotFoundError(
            f"{path} has no config beside it. Pass --run RUN, or --source for the images."
        )
    _check_tfds(source or data.source, split=split, data_dir=data_dir)
    if split is not None:
        data = replace(data, train_split=split, eval_split=split)
    if real_labels is not None and (out is not None or source is None):
        raise ValueError(
            "`real_labels` needs `source`, and knows several classes per image, so it has no `out`."
        )
    if protocol is not None:
        opened = replace(opened, processor=opened.processor.with_protocol(protocol))

    images, truth = _images(data, source, real_labels, opened.split_rule)
    _check_labels(path, opened, images)
    with naming_unreadable(images):
        counted, speed = _count(opened, images, data, truth)
    figures = {
        "protocol": protocol or (ASSUMED if opened.assumed else OWN),
        "preprocessing": str(opened.processor),
        **counted.figures(),
        **speed,
    }
    if out is not None:
        counted.write(Path(out), figures, images.class_names)

    return figures


def _images(
    data: DataConfig, source: str | None, real_labels: str | None, rule: SplitRule
) -> tuple[Source, Sequence[frozenset[int]] | None]:
    """The images to count on: a run's own are those that it held out; and, where each has several
    right classes, these.
    """
    if real_labels is not None:
        return real_source(local_or_stored(source), Path(real_labels))
    if source is not None:
        return open_whole(replace(data, source=source)), None
    return open_sources(data, rule)[1], None


def _check_tfds(source: str, **settings: str | None) -> None:
    """Refuse settings that would play no part."""
    for name, setting in settings.items():
        if setting is not None and not source.startswith("tfds:"):
            raise ValueError(
                f"`{name}` is for TFDS alone, `source` tfds:NAME; of a run's own folder the "
                "held-out images are taken, of another `source` its evaluation split or all. "
                f"Received: {name}={setting!r} with {source}"
            )


def _check_labels(path: str, opened: Opened, images: Source) -> None:
    """Refuse images with one label for a model of any number of them, and the other way round."""
    several = opened.activation == SIGMOID
    if several != images.multilabel:
        tells = "any number of labels" if several else "one class"
        have = "any number of labels" if images.multilabel else "one class"
        raise ValueError(
            f"{path} tells {tells} of an image, and those of {images.name} have {have}. Pass "
            "--source for others, or --run where the model is one of another run's."
        )


def _count(
    opened: Opened, source: Source, data: DataConfig, truth: Sequence[frozenset[int]] | None
) -> tuple[HitCounts | LabelingCounts, dict[str, float]]:
    """Run over all images; `truth` gives the right classes of each by its label, where that is more
    than one. Also the speed, where there is more than one batch.
    """
    batches: tf.data.Dataset = eval_dataset(source, data, opened.processor)
    steps = -(-source.size // data.batch_size)
    counts, timed = None, 0
    started = time.perf_counter()

    for step, (images, labels) in enumerate(
        track(batches.as_numpy_iterator(), "Evaluating", total=steps, transient=True)
    ):
        logits = opened.predict(images)
        if counts is None:
            counts = _open_counts(opened, source, truth, logits["mean"].shape[-1])
        counts.add(logits, labels)
        if step < WARM_UP:
            started = time.perf_counter()
        else:
            timed += len(images)

    seconds = time.perf_counter() - started
    return counts, {"images_per_second": round(timed / seconds, 1)} if timed else {}


def _open_counts(
    opened: Opened, source: Source, truth: Sequence[frozenset[int]] | None, classes: int
) -> HitCounts | LabelingCounts:
    if truth:
        return HitCounts(None, truth)
    order = np.array(class_order(source.class_names, opened.labels, classes))
    return LabelingCounts(order) if source.multilabel else HitCounts(order)
