"""How good the answers on images with any number of labels are: mean average precision, F1.

By scikit-learn. A class is taken to be there at probability 1/2, that is at logit 0. A class that
no image has is left out of the means, as nothing can be found there.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from deit_tf.files import csv_cell, replacing, write_json

MEAN = "mean"  # the output of a model
PICTURES = 12


@dataclass(frozen=True)
class Labelings:
    """The labels of n images, and what everyone makes of them.

    Args:
        truth: bool [n, C], whether a class is there.
        logits: float [n, C] by whose they are.
    """

    truth: np.ndarray
    logits: Mapping[str, np.ndarray]

    def figures(self, who: str) -> dict[str, float]:
        """How good one's answers are: `mean_average_precision`, over the classes; `f1_macro`, over
        the classes; `f1_micro`, of all images and classes together; `f1_samples`, over the images,
        1 where an image has no label and none was found. All 0..1.
        """
        from sklearn import metrics  # slow to import, and needed for this alone

        counted = self.truth.any(axis=0)  # [C]
        truth, scores = self.truth[:, counted], self.logits[who][:, counted]
        found = {"y_true": truth, "y_pred": scores > 0, "zero_division": 0}
        whole = {"y_true": self.truth, "y_pred": self.logits[who] > 0}
        figures = {
            "mean_average_precision": metrics.average_precision_score(
                truth, scores, average="macro"
            ),
            "f1_macro": metrics.f1_score(**found, average="macro"),
            "f1_micro": metrics.f1_score(**whole, average="micro", zero_division=0),
            "f1_samples": metrics.f1_score(**whole, average="samples", zero_division=1),
        }
        return {name: float(figure) for name, figure in figures.items()}

    def classes(self, who: str, names: Sequence[str]) -> list[dict[str, Any]]:
        """Of each class its name and `images`, and where there are any `average_precision`,
        `precision`, `recall` and `f1`.
        """
        from sklearn import metrics  # slow to import, and needed for this alone

        scores = self.logits[who]
        precision, recall, f1, images = metrics.precision_recall_fscore_support(
            self.truth, scores > 0, average=None, zero_division=0
        )
        rows = []
        for i, name in enumerate(names):
            row = {"class": name, "images": int(images[i])}
            if images[i]:
                average = metrics.average_precision_score(self.truth[:, i], scores[:, i])
                row |= {"average_precision": float(average), "precision": float(precision[i])}
                row |= {"recall": float(recall[i]), "f1": float(f1[i])}
            rows.append(row)
        return rows

    def agreement(self, who: str, other: str) -> float:
        """Share of the images and classes of which both say the same."""
        return float(((self.logits[who] > 0) == (self.logits[other] > 0)).mean())

    def worst(self, who: str, count: int = PICTURES) -> np.ndarray:
        """Images with a wrong label, or without a right one, those of the largest loss first."""
        logits = np.float64(self.logits[who])
        loss = (np.logaddexp(0, logits) - self.truth * logits).mean(axis=-1)  # [n]
        wrong = np.flatnonzero(((logits > 0) != self.truth).any(axis=-1))
        return wrong[np.argsort(-loss[wrong], kind="stable")][:count]


class LabelingCounts:
    """The answers of an evaluation, batch by batch, as `evaluate` counts them.

    Args:
        order: The output that means each class of the data.
    """

    def __init__(self, order: np.ndarray):
        self.order, self.images = order, 0
        self._truth: list[np.ndarray] = []
        self._logits: dict[str, list[np.ndarray]] = {}

    def add(self, logits: Mapping[str, np.ndarray], labels: np.ndarray) -> None:
        """Count a batch: logits [B, outputs] by head, labels [B, C]."""
        self.images += len(labels)
        self._truth.append(labels > 0.5)
        for name, each in logits.items():
            self._logits.setdefault(name, []).append(each[:, self.order])

    @cached_property
    def labelings(self) -> Labelings:
        """All of it."""
        logits = {name: np.concatenate(parts) for name, parts in self._logits.items()}
        return Labelings(np.concatenate(self._truth), logits)

    def figures(self) -> dict[str, Any]:
        """`images`, the figures of the model's output, and the mean average precision of each
        head.
        """
        heads = [name for name in self._logits if name != MEAN]
        each = {
            f"mean_average_precision_{head}": self.labelings.figures(head)["mean_average_precision"]
            for head in heads
        }
        return {"images": self.images, **self.labelings.figures(MEAN), **each}

    def write(self, out: Path, figures: Mapping[str, Any], names: Sequence[str]) -> None:
        """evaluation.json and per_class.csv."""
        out.mkdir(parents=True, exist_ok=True)
        write_json(figures, out / "evaluation.json")
        with replacing(out / "per_class.csv") as temporary, _csv(temporary) as file:
            columns = ("class", "images", "average_precision", "precision", "recall", "f1")
            rows = csv.DictWriter(file, columns, restval="")
            rows.writeheader()
            for row in self.labelings.classes(MEAN, names):
                shares = {key: f"{row[key]:.6f}" for key in columns[2:] if key in row}
                rows.writerow({**row, "class": csv_cell(row["class"]), **shares})


def _csv(file: Path) -> TextIO:
    """Open a file for a CSV writer, which ends its lines itself."""
    return file.open("w", encoding="utf-8", newline="")
