"""The losses equal the original's formulas as torch computes them in float64."""

from pathlib import Path

import keras
import numpy as np
import pytest
from keras import ops

from deit_tf import losses

REFERENCE = np.load(Path(__file__).parent / "golden" / "distillation_losses.npz")
CLS, DIST, TEACHER, LABELS = (
    REFERENCE[k] for k in ("cls_logits", "dist_logits", "teacher_logits", "soft_labels")
)
DEIT3 = np.load(Path(__file__).parent / "golden" / "deit3_facts.npz")  # engine.py's and timm's
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


def test_binary_is_the_originals_of_mixed_targets():
    logits, targets = DEIT3["bce_logits"], ops.convert_to_tensor(DEIT3["bce_soft_targets"])
    loss = losses.binary_cross_entropy(logits, losses.binarize(targets, 0.0))
    np.testing.assert_allclose(loss, DEIT3["bce_each"], atol=TOLERANCE)
    assert abs(ops.mean(loss) - DEIT3["bce_original"]) < TOLERANCE


@pytest.mark.parametrize("sum_classes", [False, True])
def test_binary_is_timms_of_smoothed_targets(sum_classes):
    smoothed = losses.smooth(ops.one_hot(DEIT3["labels"], 10), 0.1)
    loss = losses.binary_cross_entropy(
        DEIT3["bce_logits"], losses.binarize(smoothed, None), sum_classes
    )
    share = 1 / 10 if sum_classes else 1  # of the ten classes
    assert abs(ops.mean(loss) * share - DEIT3["bce_timm_smoothing_0_1"]) < TOLERANCE


def test_large_logits_have_a_finite_binary_loss():
    loss = losses.binary_cross_entropy(np.array([[200.0, -200.0]]), np.array([[0.0, 1.0]]))
    np.testing.assert_allclose(loss, [200.0])


def test_a_target_at_the_threshold_is_none():
    targets = ops.convert_to_tensor([[0.0, 0.2, 0.3, 0.5]])
    np.testing.assert_array_equal(losses.binarize(targets, 0.3), [[0, 0, 0, 1]])


def test_low_precision_logits_are_widened():
    half = ops.cast(DIST, "bfloat16")
    assert losses.hard_distillation(half, ops.cast(TEACHER, "bfloat16")).dtype == "float32"


def test_smoothing_keeps_the_sum():
    smoothed = np.array(losses.smooth(ops.eye(4), 0.1))
    np.testing.assert_allclose(smoothed.sum(1), 1, rtol=1e-6)
    np.testing.assert_allclose(smoothed[0], [0.925, 0.025, 0.025, 0.025], rtol=1e-6)


def test_several_labels_against_keras_and_by_hand():
    rng = np.random.default_rng(0)
    logits, targets = rng.normal(size=(5, 3)), rng.random((5, 3))
    expected = keras.losses.binary_crossentropy(targets, logits, from_logits=True)
    ours = losses.multilabel_cross_entropy(logits, targets)
    np.testing.assert_allclose(ours, expected, atol=TOLERANCE)

    # -log sigmoid(0) = log 2: twice for the class that is there, once for the other, over two
    weighted = losses.multilabel_cross_entropy([[0.0, 0.0]], [[1.0, 0.0]], [2.0, 5.0])
    np.testing.assert_allclose(weighted, [1.5 * np.log(2)], atol=TOLERANCE)
    large = losses.multilabel_cross_entropy([[100.0, -100.0]], [[0.0, 1.0]])
    np.testing.assert_allclose(large, [100], rtol=1e-6)  # neither infinite nor lost


def test_soft_labels_of_a_teacher_that_agrees_cost_nothing():
    logits = np.random.default_rng(0).normal(size=(4, 3))
    loss = losses.multilabel_soft_distillation(logits, logits, temperature=3.0)
    np.testing.assert_allclose(loss, np.zeros(4), atol=TOLERANCE)
    assert np.min(losses.multilabel_soft_distillation(logits, -logits)) > 0


def test_a_mixed_label_counts_by_its_shares():
    targets = ops.convert_to_tensor([[1.0, 0.0], [0.25, 0.75]])
    np.testing.assert_allclose(losses.image_weights(targets, [2.0, 4.0]), [2.0, 3.5])
