"""How good answers with one class each are: intervals, precision and recall, calibration.

Pure functions on counts and probabilities, by their formulas.
"""

import math
from dataclasses import dataclass, field

import numpy as np

Z_95 = 1.959963984540054  # the normal deviate that 2.5 % exceed
BINS = 15


def wilson(share: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a share that was counted.

    With p the share, n the count and z = 1.96, the ends are

        (p + z^2 / 2n  -+  z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n).

    Args:
        share: Share of successes, 0..1.
        count: Of how many, 1 at least.
    Returns:
        The lower and the upper end, 0..1.
    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference";
        Brown, Cai and DasGupta 2001, equation 4. Unlike p -+ z sqrt(p (1 - p) / n) it has a width
        where p is 0 or 1, and stays within 0..1.
    """
    square = Z_95**2 / count
    center = share + square / 2
    margin = Z_95 * math.sqrt(share * (1 - share) / count + square / (4 * count))
    low, high = ((center + sign * margin) / (1 + square) for sign in (-1, 1))
    return max(low, 0.0), min(high, 1.0)


@dataclass(frozen=True)
class ClassScores:
    """Precision, recall and F1 of C classes.

    With true positives TP, false positives FP and false negatives FN of a class: precision is
    TP / (TP + FP), recall TP / (TP + FN), and F1 their harmonic mean, 2 TP / (2 TP + FP + FN); each
    is 0 where it would be 0 / 0, as scikit-learn has it with `zero_division=0`.

    Args:
        images: Images of each class, int [C].
        precision: Of each class, float [C], 0..1.
        recall: Of each class, float [C], 0..1: its accuracy.
        f1: Of each class, float [C], 0..1.
    """

    images: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray

    def macro(self) -> dict[str, float]:
        """`precision_macro`, `recall_macro`, `f1_macro`: means over the classes that an image
        has.
        """
        there = self.images > 0
        named = {"precision": self.precision, "recall": self.recall, "f1": self.f1}
        return {f"{name}_macro": float(each[there].mean()) for name, each in named.items()}


def class_scores(confusion: np.ndarray) -> ClassScores:
    """Precision, recall and F1 from a confusion matrix.

    Args:
        confusion: Images, int [C, C'], by true class and by answer; C' may exceed C, where answers
            are classes that no image can have.
    """
    right = np.diagonal(confusion).astype(float)  # [C]
    images, answered = confusion.sum(axis=1), confusion.sum(axis=0)[: len(confusion)]

    def share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
        return np.divide(part, whole, out=np.zeros(len(part)), where=whole > 0)

    return ClassScores(
        images, share(right, answered), share(right, images), share(2 * right, images + answered)
    )


@dataclass
class Calibration:
    """How far the confidence of answers is from how often they are right, batch by batch.

    The confidence of an answer is its probability, the largest of all classes'. Answers are put
    into BINS bins of equal width, the m-th from (m - 1) / BINS, excluded, to m / BINS, included.

    Args:
        images: Answers in each bin, [BINS].
        right: Of these the right ones.
        confidence: The sum of their confidences.
        surprise: The sum over all answers of -ln of the probability of the true class, nats.
    """

    images: np.ndarray = field(default_factory=lambda: np.zeros(BINS, np.int64))
    right: np.ndarray = field(default_factory=lambda: np.zeros(BINS, np.int64))
    confidence: np.ndarray = field(default_factory=lambda: np.zeros(BINS))
    surprise: float = 0.0

    def add(self, log_probabilities: np.ndarray, truth: np.ndarray) -> None:
        """Count a batch.

        Args:
            log_probabilities: float64 [B, C], natural logarithms.
            truth: The true class, int [B].
        """
        confidence = np.exp(log_probabilities.max(axis=-1))  # [B]
        right = log_probabilities.argmax(axis=-1) == truth
        bins = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
        np.add.at(self.images, bins, 1)
        np.add.at(self.right, bins, right)
        np.add.at(self.confidence, bins, confidence)
        self.surprise -= float(log_probabilities[np.arange(len(truth)), truth].sum())

    def figures(self) -> dict[str, float]:
        """`ece`, the expected calibration error, 0..1, and `nll`, the negative log-likelihood, nats
        per image.

        With n_m answers in bin m of n, ece = sum over m of n_m / n |accuracy_m - confidence_m|.

        Source: Guo et al. 2017, "On calibration of modern neural networks", equation 3, 15 bins.
        """
        whole = self.images.sum()
        gap = np.abs(self.right - self.confidence).sum()  # each is n_m times that of the bin
        return {"ece": float(gap / whole), "nll": self.surprise / int(whole)}
