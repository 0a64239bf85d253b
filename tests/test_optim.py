"""The schedule is timm's, AdamW is torch's and tensorflow-addons', the no-decay rule outlives a file."""

from pathlib import Path

import keras
import numpy as np
import pytest

import deit_tf
from deit_tf.config import OptimConfig
from deit_tf.optim import AdamW, WarmupCosine, build_optimizer, is_decayed, scaled_lr

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def reference():
    return np.load(GOLDEN / "schedule_and_adamw.npz")


def trajectory(optimizer, reference):
    weight = keras.Variable(reference["w0"].astype("float32"), name="kernel")
    optimizer.build([weight])
    steps = []
    for gradient in reference["grads"].astype("float32"):
        optimizer.apply([keras.ops.convert_to_tensor(gradient)], [weight])
        steps.append(keras.ops.convert_to_numpy(weight.value))
    return np.stack(steps)


def test_schedule_by_epoch(reference):
    schedule = WarmupCosine(1e-3, total_steps=300, warmup_steps=5)
    rates = [float(schedule(epoch)) for epoch in range(300)]
    # float32 cosine: 1e-7 of the peak.
    np.testing.assert_allclose(rates, reference["cosine_lr_by_epoch"], atol=1e-3 * 1e-6, rtol=1e-5)


def test_schedule_ends_at_the_minimum():
    assert float(WarmupCosine(1e-3, 10, 2)(1000)) == pytest.approx(1e-5, rel=1e-4)


def test_warmup_longer_than_the_run_is_refused():
    with pytest.raises(ValueError, match="warmup_steps=11"):
        WarmupCosine(1e-3, total_steps=10, warmup_steps=11)


def test_adamw_is_torchs(reference):
    # 20 float32 steps against torch in float64.
    difference = np.abs(trajectory(AdamW(1e-2), reference) - reference["adamw_trajectory"]).max()
    assert difference < 1e-5


def test_adamw_is_tensorflow_addons(reference):
    # tensorflow-addons subtracts weight_decay * w where torch and Keras subtract lr * weight_decay * w.
    addons = np.load(GOLDEN / "tfa_reference.npz")["adamw_lr1e-2_wd5e-4"]
    assert np.abs(trajectory(AdamW(1e-2, weight_decay=5e-4 / 1e-2), reference) - addons).max() < 1e-5


def test_learning_rate_follows_the_batch():
    assert scaled_lr(OptimConfig(lr=5e-4), 1024) == pytest.approx(1e-3)
    assert scaled_lr(OptimConfig(lr=5e-4, scale_lr=False), 1024) == pytest.approx(5e-4)


def decayed_names(optimizer, model):
    return {v.path for v in model.trainable_variables if optimizer._use_weight_decay(v)}


def test_what_is_decayed():
    model = deit_tf.create_model("deit_test", num_classes=10)
    names = {v.path for v in model.trainable_variables if is_decayed(v)}
    assert {"tokens/dist_token", "patch_embed/proj/kernel", "blocks.1/mlp/fc2/kernel", "head_dist/kernel"} <= names
    assert not any(n.endswith(("bias", "gamma", "beta", "pos_embed", "cls_token")) for n in names)
    # 2 blocks of 4 kernels, the patches, two heads, the distillation token.
    assert len(names) == 2 * 4 + 1 + 2 + 1


def test_the_rule_outlives_a_file(tmp_path):
    model = deit_tf.create_model("deit_test", num_classes=10)
    model.compile(build_optimizer(OptimConfig(), 8, 3, 10), keras.losses.CategoricalCrossentropy(from_logits=True))
    model.train_on_batch(np.zeros((2, 32, 32, 3), "f"), np.eye(10, dtype="f")[:2])
    before = decayed_names(model.optimizer, model)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert int(loaded.optimizer.iterations) == 1
    assert decayed_names(loaded.optimizer, loaded) == before != set()
    assert float(loaded.optimizer.learning_rate) == float(model.optimizer.learning_rate)


def test_decay_moves_only_what_is_decayed():
    model = deit_tf.create_model("deit_test", num_classes=10)
    optimizer = AdamW(1e-2, weight_decay=0.5)
    optimizer.build(model.trainable_variables)
    before = {v.path: np.array(v) for v in model.trainable_variables}
    optimizer.apply([keras.ops.zeros(v.shape) for v in model.trainable_variables], model.trainable_variables)
    for v in model.trainable_variables:
        # One step with no gradient multiplies by 1 - lr * weight_decay.
        factor = 1 - 1e-2 * 0.5 if is_decayed(v) else 1.0
        np.testing.assert_allclose(np.array(v), before[v.path] * factor, rtol=1e-6, atol=1e-9)
