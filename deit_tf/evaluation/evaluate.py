"""Accuracy of a model in any of its forms, under a named protocol, on the same images.

Protocols: deit_tf/data/preprocess.py. ImageNet-V2 (Recht et al. 2019) comes as class folders 0 to
    999.
"""

import csv
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TextIO

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
from deit_tf.exporting.activations import SIGMOID
from deit_tf.files import csv_cell, replacing, write_json
from deit_tf.object_store import local_or_stored
from deit_tf.runs import class_order

OWN = "own"  # the preprocessing that the model came with
ASSUMED = "assumed"  # the original's, where nothing tells what the model came with
TOP = (1, 5)
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
        out: Folder for evaluation.json, the accuracy per class and the confusion matrix, as CSV and
            PNG; of several labels without such a matrix.
    Returns:
        `protocol` and `preprocessing`; `images`; `top1` and `top5` of the model's output (the mean
        of the logits of both heads), `top1_cls`, `top1_dist` of its heads where it has them, and
        `top1_probabilities`, of the mean of their probabilities; shares in 0..1;
        `images_per_second`, preprocessing included. Of a run of `task` multilabel, in place of the
        top ones, the figures of `Labelings` in deit_tf.evaluation.multilabel.
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


class _Counts:
    """Hits by head and rank, and the confusion matrix, over the batches of an evaluation.

    Args:
        order: The output that means each class of the data; None where an image has several right
            ones.
        truth: These, by the label of the image.
    """

    def __init__(self, order: np.ndarray | None, truth: Sequence[frozenset[int]] | None = None):
        self.order, self.truth, self.hits, self.images = order, truth, {}, 0
        if order is not None:
            self.label_of = {output: label for label, output in enumerate(order.tolist())}
            self.confusion = np.zeros(
                (len(order), len(order) + 1), np.int64
            )  # [true, answered or other]

    def add(self, logits: dict[str, np.ndarray], labels: np.ndarray) -> None:
        """Count a batch: logits [B, C] by head, labels [B]."""
        self.images += len(labels)
        right = _right(self.order, self.truth, labels)
        for name, scores in _with_probabilities(logits).items():
            ranking = np.argsort(-scores, axis=-1, kind="stable")[:, : max(TOP)]  # [B, 5]
            hits = right(ranking)
            for top in TOP:
                key = f"top{top}_{name}"
                self.hits[key] = self.hits.get(key, 0) + int(hits[:, :top].any(-1).sum())
            if name == "mean" and self.order is not None:
                answers = [
                    self.label_of.get(output, len(self.order)) for output in ranking[:, 0].tolist()
                ]
                np.add.at(self.confusion, (labels, answers), 1)

    def figures(self) -> dict[str, Any]:
        """What `evaluate` returns, but for the protocol."""
        shares = {name: hits / self.images for name, hits in self.hits.items()}
        named = {"top1": "top1_mean", "top5": "top5_mean"}
        named |= {
            name: name for name in ("top1_cls", "top1_dist", "top1_probabilities") if name in shares
        }
        return {"images": self.images, **{name: shares[key] for name, key in named.items()}}

    def write(self, out: Path, figures: dict[str, Any], names: Sequence[str]) -> None:
        """evaluation.json, the accuracy per class, the confusion matrix."""
        _write(out, figures, self.confusion, names)


def _with_probabilities(logits: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Logits by head, and the mean of the probabilities of both heads (paper, section 4) where
    there are two.
    """
    if "dist" not in logits:
        return logits
    mean = sum(tf.nn.softmax(np.float64(logits[head])).numpy() for head in ("cls", "dist")) / 2
    return {**logits, "probabilities": mean}


def _count(
    opened: Opened, source: Source, data: DataConfig, truth: Sequence[frozenset[int]] | None
) -> tuple[_Counts | LabelingCounts, dict[str, float]]:
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
) -> _Counts | LabelingCounts:
    if truth:
        return _Counts(None, truth)
    order = np.array(class_order(source.class_names, opened.labels, classes))
    return LabelingCounts(order) if source.multilabel else _Counts(order)


def _right(order: np.ndarray | None, truth: Sequence[frozenset[int]] | None, labels: np.ndarray):
    if truth is None:
        return lambda ranking: ranking == order[labels][:, None]  # [B, k]
    return lambda ranking: np.array(
        [
            [output in truth[label] for output in row]
            for row, label in zip(ranking.tolist(), labels, strict=True)
        ]
    )


def _csv(file: Path) -> TextIO:
    """Open a file for csv.writer, which ends its lines itself."""
    return file.open("w", encoding="utf-8", newline="")


def _write(out: Path, figures: dict[str, Any], confusion: np.ndarray, names: Sequence[str]) -> None:
    """evaluation.json, per_class.csv, confusion.csv, confusion.png; `confusion` counts [true,
    answered].
    """
    out.mkdir(parents=True, exist_ok=True)
    write_json(figures, out / "evaluation.json")
    cells = [csv_cell(name) for name in names]

    with replacing(out / "per_class.csv") as temporary, _csv(temporary) as file:
        rows = csv.writer(file)
        rows.writerow(["class", "images", "right", "accuracy"])
        for label, name in enumerate(cells):
            images, right = int(confusion[label].sum()), int(confusion[label, label])
            rows.writerow([name, images, right, f"{right / images:.6f}" if images else ""])

    with replacing(out / "confusion.csv") as temporary, _csv(temporary) as file:
        rows = csv.writer(file)
        rows.writerow(["true", *cells, "other"])
        rows.writerows([name, *map(int, row)] for name, row in zip(cells, confusion, strict=True))

    with replacing(out / "confusion.png") as temporary:
        _draw(confusion[:, : len(names)], names, figures, temporary)


def _draw(confusion: np.ndarray, names: Sequence[str], figures: dict[str, Any], file: Path) -> None:
    """The confusion matrix, each row as shares of its class."""
    from matplotlib.backends.backend_agg import (
        FigureCanvasAgg,
    )  # slow to import, and needed for this alone
    from matplotlib.figure import Figure

    few = len(names) <= 30
    figure = Figure(
        figsize=(max(5, 0.35 * len(names) + 2),) * 2 if few else (8, 8), layout="constrained"
    )
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    shares = confusion / np.maximum(confusion.sum(-1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    axes.set(xlabel="answered", ylabel="true")
    axes.set_title(
        f"top-1 {100 * figures['top1']:.2f} % of {figures['images']} "
        f"images\n{figures['protocol']} protocol"
    )
    if few:
        axes.set_xticks(range(len(names)), names, rotation=90)
        axes.set_yticks(range(len(names)), names)
        for (row, column), count in np.ndenumerate(confusion):
            if count:
                dark = shares[row, column] > 0.5
                axes.text(
                    column,
                    row,
                    count,
                    ha="center",
                    va="center",
                    size=8,
                    color="white" if dark else "black",
                )

    figure.savefig(file, dpi=120)
