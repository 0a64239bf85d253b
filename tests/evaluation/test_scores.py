"""Scores of answers with one class each, against scikit-learn and by hand."""

import csv

import numpy as np
import pytest
from PIL import Image
from sklearn import metrics

from deit_tf.evaluation.charts import cell_opacity
from deit_tf.evaluation.figures import _cells, draw_reliability
from deit_tf.evaluation.scores import BINS, Calibration, class_scores, wilson
from deit_tf.evaluation.single_label import HitCounts

CLASSES, IMAGES = 6, 400


@pytest.fixture(scope="module")
def drawn():
    """Random logits float32 [n, C] that are right more often than not, and labels [n]; class 5 is
    that of no image, and class 4 no answer."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES - 1, IMAGES)
    logits = rng.normal(size=(IMAGES, CLASSES)) + 1.5 * np.eye(CLASSES)[labels]
    logits[:, 4] = -9.0
    return np.float32(logits), labels


@pytest.fixture(scope="module")
def counts(drawn):
    logits, labels = drawn
    counted = HitCounts(np.arange(CLASSES))
    for part in np.array_split(np.arange(IMAGES), 3):
        counted.add({"mean": logits[part]}, labels[part])
    return counted


def probabilities(logits):
    exponentials = np.exp(np.float64(logits))
    return exponentials / exponentials.sum(-1, keepdims=True)


def test_precision_recall_and_f1_are_scikit_learns(drawn, counts):
    logits, labels = drawn
    arguments = {"y_true": labels, "y_pred": logits.argmax(-1), "zero_division": 0}
    expected = metrics.precision_recall_fscore_support(**arguments, labels=range(CLASSES))
    scores = class_scores(counts.confusion)
    found = (scores.precision, scores.recall, scores.f1, scores.images)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)

    present = {**arguments, "labels": range(CLASSES - 1), "average": "macro"}
    mean = metrics.precision_recall_fscore_support(**present)[:3]
    assert list(scores.macro()) == ["precision_macro", "recall_macro", "f1_macro"]
    np.testing.assert_allclose(list(scores.macro().values()), mean, rtol=1e-12)


def test_the_log_likelihood_is_scikit_learns(drawn, counts):
    logits, labels = drawn
    expected = metrics.log_loss(labels, probabilities(logits), labels=range(CLASSES))
    assert counts.figures()["nll"] == pytest.approx(expected, rel=1e-9)


def test_the_calibration_error_is_that_of_its_formula(drawn, counts):
    logits, labels = drawn
    confidence = probabilities(logits).max(-1)
    right = logits.argmax(-1) == labels
    error = 0.0
    for m in range(BINS):
        chosen = (confidence > m / BINS) & (confidence <= (m + 1) / BINS)
        if chosen.any():
            gap = abs(right[chosen].mean() - confidence[chosen].mean())
            error += chosen.mean() * gap
    assert counts.figures()["ece"] == pytest.approx(error, rel=1e-9) and error > 0.01


def test_sure_answers_lie_in_the_last_bin_and_calibrated_ones_have_no_error():
    calibration = Calibration()
    half = np.log([[0.5, 0.5]] * 4)
    calibration.add(half, np.array([0, 0, 1, 1]))  # right on two of four
    assert calibration.figures() == {"ece": 0.0, "nll": pytest.approx(np.log(2))}
    calibration.add(np.array([[0.0, -np.inf]]), np.array([0]))
    assert calibration.images[-1] == 1 and calibration.figures()["ece"] == 0.0


@pytest.mark.parametrize(
    "share, count, low, high",
    [
        # Brown, Cai and DasGupta's formula by hand; 0 of 10 ends at z^2 / (10 + z^2).
        (0.0, 10, 0.0, 0.27753),
        (1.0, 10, 0.72247, 1.0),
        (0.5, 100, 0.40383, 0.59617),
        (0.81, 10_000, 0.80219, 0.81757),
    ],
)
def test_the_interval_of_a_share(share, count, low, high):
    assert wilson(share, count) == pytest.approx((low, high), abs=1e-5)


def test_the_interval_holds_the_true_share_as_often_as_it_says():
    """Exactly, by the binomial distribution: 95 % on average over the shares, of 94 images."""
    ends = np.array([wilson(k / 94, 94) for k in range(95)])
    coefficients = np.cumsum(np.log(np.r_[1, np.arange(94, 0, -1) / np.arange(1, 95)]))
    coverage = []
    for share in np.linspace(0.05, 0.95, 91):
        k = np.arange(95)
        chances = np.exp(coefficients + k * np.log(share) + (94 - k) * np.log(1 - share))
        coverage.append(chances[(ends[:, 0] <= share) & (share <= ends[:, 1])].sum())
    assert np.mean(coverage) == pytest.approx(0.95, abs=0.005) and min(coverage) > 0.92


def test_the_file_of_classes_has_them_all(counts, tmp_path):
    names = tuple("abcdef")
    figures = {**counts.figures(), "protocol": "own"}
    counts.write(tmp_path, figures, names)
    with (tmp_path / "per_class.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    scores = class_scores(counts.confusion)
    for i, row in enumerate(rows[:5]):
        assert row["accuracy"] == row["recall"]
        found = [float(row[name]) for name in ("precision", "recall", "f1")]
        expected = [scores.precision[i], scores.recall[i], scores.f1[i]]
        np.testing.assert_allclose(found, expected, atol=1e-6)
    assert rows[5] == {**dict.fromkeys(rows[5], ""), "class": "f", "images": "0", "right": "0"}
    assert rows[4]["precision"] == rows[4]["f1"] == "0.000000"


def test_errors_have_another_color_than_right_answers():
    cells = _cells(np.array([[3, 1], [0, 4]]))
    assert (cells[0, 0, :3] == cells[1, 1, :3]).all() and (cells[0, 0] != cells[0, 1]).any()
    assert cells[1, 0, 3] == 0 and cells[0, 1, 3] == cell_opacity(1, 4) < cells[0, 0, 3]


def test_the_reliability_plot_has_the_bars_of_the_bins(counts, tmp_path):
    draw_reliability(counts.calibration, tmp_path / "reliability.png")
    pixels = np.asarray(Image.open(tmp_path / "reliability.png").convert("RGB")).astype(int)
    blue = (np.abs(pixels - (0x0B, 0x5F, 0xB0)).sum(-1) < 12).any(0)
    assert blue.sum() > 100  # columns of the picture with a bar
