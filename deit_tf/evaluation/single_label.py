"""The answers of an evaluation on images with one class each, batch by batch, as `evaluate` counts
them; and their files.
"""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import tensorflow as tf

from deit_tf.evaluation.figures import draw_confusion, draw_reliability
from deit_tf.evaluation.scores import Calibration, class_scores, wilson
from deit_tf.files import csv_cell, replacing, write_json

TOP = (1, 5)


class HitCounts:
    """Hits by head and rank, the confusion matrix and the calibration of the model's output.

    Args:
        order: The output that means each class of the data; None where an image has several right
            ones.
        truth: These, by the label of the image.
    """

    def __init__(self, order: np.ndarray | None, truth: Sequence[frozenset[int]] | None = None):
        self.order, self.truth, self.hits, self.images = order, truth, {}, 0
        if order is not None:
            self.label_of = {output: label for label, output in enumerate(order.tolist())}
            # [true, answered or other]
            self.confusion = np.zeros((len(order), len(order) + 1), np.int64)
            self.calibration = Calibration()

    def add(self, logits: dict[str, np.ndarray], labels: np.ndarray) -> None:
        """Count a batch: logits [B, C] by head, labels [B]."""
        self.images += len(labels)
        for name, scores in with_probabilities(logits).items():
            ranking = np.argsort(-scores, axis=-1, kind="stable")[:, : max(TOP)]  # [B, 5]
            hits = self._right(ranking, labels)
            for top in TOP:
                key = f"top{top}_{name}"
                self.hits[key] = self.hits.get(key, 0) + int(hits[:, :top].any(-1).sum())
            if name == "mean" and self.order is not None:
                self._count_answers(ranking[:, 0], scores, labels)

    def _right(self, ranking: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Which of the answers [B, k] are right."""
        if self.truth is None:
            return ranking == self.order[labels][:, None]
        return np.array(
            [
                [output in self.truth[label] for output in row]
                for row, label in zip(ranking.tolist(), labels, strict=True)
            ]
        )

    def _count_answers(self, answered: np.ndarray, logits: np.ndarray, labels: np.ndarray) -> None:
        """Count the first answers [B] of the model's output."""
        answers = [self.label_of.get(output, len(self.order)) for output in answered.tolist()]
        np.add.at(self.confusion, (labels, answers), 1)
        self.calibration.add(tf.nn.log_softmax(np.float64(logits)).numpy(), self.order[labels])

    def figures(self) -> dict[str, Any]:
        """What `evaluate` returns, but for the protocol."""
        shares = {name: hits / self.images for name, hits in self.hits.items()}
        found: dict[str, Any] = {"images": self.images}
        for top in TOP:
            found[f"top{top}"] = shares[f"top{top}_mean"]
            found[f"top{top}_interval"] = list(wilson(found[f"top{top}"], self.images))

        of_heads = ("top1_cls", "top1_dist", "top1_probabilities")
        found |= {name: shares[name] for name in of_heads if name in shares}
        if self.order is not None:
            found |= class_scores(self.confusion).macro() | self.calibration.figures()
        return found

    def write(self, out: Path, figures: Mapping[str, Any], names: Sequence[str]) -> None:
        """evaluation.json, per_class.csv, confusion.csv, confusion.png, reliability.png."""
        out.mkdir(parents=True, exist_ok=True)
        write_json(figures, out / "evaluation.json")
        cells = [csv_cell(name) for name in names]
        self._write_classes(out / "per_class.csv", cells)

        with replacing(out / "confusion.csv") as temporary, _csv(temporary) as file:
            rows = csv.writer(file)
            rows.writerow(["true", *cells, "other"])
            counted = zip(cells, self.confusion, strict=True)
            rows.writerows([name, *map(int, row)] for name, row in counted)

        title = (
            f"top-1 {100 * figures['top1']:.2f} % of {figures['images']} images\n"
            f"{figures['protocol']} protocol"
        )
        draw_confusion(self.confusion[:, : len(names)], names, title, out / "confusion.png")
        draw_reliability(self.calibration, out / "reliability.png")

    def _write_classes(self, file: Path, cells: Sequence[str]) -> None:
        """A row for each class; nothing where it has no images."""
        scores = class_scores(self.confusion)
        shares = (scores.recall, scores.precision, scores.recall, scores.f1)
        with replacing(file) as temporary, _csv(temporary) as stream:
            rows = csv.writer(stream)
            rows.writerow(["class", "images", "right", "accuracy", "precision", "recall", "f1"])
            for label, name in enumerate(cells):
                images, right = int(scores.images[label]), int(self.confusion[label, label])
                shown = [f"{each[label]:.6f}" if images else "" for each in shares]
                rows.writerow([name, images, right, *shown])


def with_probabilities(logits: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Logits by head, and the mean of the probabilities of both heads (paper, section 4) where
    there are two.
    """
    if "dist" not in logits:
        return logits
    mean = sum(tf.nn.softmax(np.float64(logits[head])).numpy() for head in ("cls", "dist")) / 2
    return {**logits, "probabilities": mean}


def _csv(file: Path) -> TextIO:
    """Open a file for csv.writer, which ends its lines itself."""
    return file.open("w", encoding="utf-8", newline="")
