"""Differences, agreement and its interval, counted by hand and by SciPy."""

import numpy as np
import pytest
import scipy.stats

from deit_tf.exporting.compare import agreement, deviation, wilson


def test_deviation_by_hand():
    measured = deviation([[1.0, 4.0], [0.0, 0.5]], [[1.0, 2.0], [0.5, 0.0]])
    assert measured["max_difference"] == 1.0  # 2 / max(1, 2)
    assert measured["mean_difference"] == 0.375  # (0 + 2 + 0.5 + 0.5) / 4 / 2
    assert measured["relative_rms"] == pytest.approx((4.5 / 5.25) ** 0.5)
    assert measured["top1_agreement"] == 0.5
    assert deviation([[0.1]], [[0.2]])["max_difference"] == pytest.approx(
        0.1
    )  # divided by 1, not 0.2


def test_agreement_by_hand():
    reference = np.array([[3.0, 0, 0, 0, 0, 0], [1.0, 0.5, 0, 0, 0, 0], [0, 0, 2.0, 0, 0, 0.5]])
    logits = np.array([[2.0, 0, 0, 0, 0, 0], [0.4, 0.5, 0, 0, 0, 0], [5, 4, -1, 3, 2, 1]])
    counted = agreement(logits, reference)
    assert {key: (c["hits"], c["images"]) for key, c in counted.items()} == {
        "top1": (1, 3),
        "top5": (2, 3),  # the third names it last of six
        "clear": (1, 2),  # the second leads by half a nat
    }
    assert counted["top1"]["share"] == pytest.approx(1 / 3)
    none = agreement(logits[1:2], reference[1:2])["clear"]
    assert (none["images"], none["share"], none["interval"]) == (0, None, [0.0, 1.0])


def test_wilson_interval():
    for hits, trials in ((198, 200), (5, 10), (1, 3), (0, 7), (4, 4)):
        theirs = scipy.stats.binomtest(hits, trials).proportion_ci(0.95, "wilson")
        assert wilson(hits, trials) == pytest.approx(tuple(theirs), abs=1e-5)  # 1.96 for 1.95996
