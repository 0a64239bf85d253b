"""The losses equal the original's formulas as torch computes them in float64."""

from pathlib import Path

import numpy as np
import pytest
from keras import ops

from deit_tf import losses

REFERENCE = np.load(Path(__file__).parent / "golden" / "distillation_losses.npz")
CLS, DIST, TEACHER, LABELS = (
    REFERENCE[k] for k in ("cls_logits", "dist_logits", "teacher_logits", "soft_labels")
)
TOLERANCE = 1e-6  # float32 logits; the values are of order 1


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_base_and_hard(dtype):
    cls, dist, teacher, labels = (
        ops.convert_to_tensor(a, dtype) for a in (CLS, DIST, TEACHER, LABELS)
    )
    assert abs(ops.mean(losses.cross_entropy(cls, labels)) - REFERENCE["base"]) < TOLERANCE
    assert abs(ops.mean(losses.hard_distillation(dist, teacher)) - REFERENCE["hard"]) < TOLERANCE


@pytest.mark.parametrize("normalization", ["batchmean", "numel"])
@pytest.mark.parametrize("temperature", [1, 3])
def test_soft(temperature, normalization):
    loss = losses.soft_distillation(DIST, TEACHER, temperature, normalization)
    assert loss.shape == (6,)
    assert abs(ops.mean(loss) - REFERENCE[f"soft_T{temperature}_{normalization}"]) < TOLERANCE


def test_low_precision_logits_are_widened():
    half = ops.cast(DIST, "bfloat16")
    assert losses.hard_distillation(half, ops.cast(TEACHER, "bfloat16")).dtype == "float32"


def test_smoothing_keeps_the_sum():
    smoothed = np.array(losses.smooth(ops.eye(4), 0.1))
    np.testing.assert_allclose(smoothed.sum(1), 1, rtol=1e-6)
    np.testing.assert_allclose(smoothed[0], [0.925, 0.025, 0.025, 0.025], rtol=1e-6)
