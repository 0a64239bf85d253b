"""Features, attention maps and their rollout: Hugging Face's values, shared layers, exports."""

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import deit_tf
from deit_tf.models.features import rollout, token_rollouts

GOLDEN = Path(__file__).parents[1] / "golden"
IMAGES = np.random.default_rng(0).normal(size=(2, 32, 48, 3)).astype("float32")
# Two float32 implementations of two blocks of width 48: rounding gives about 1e-6.
TOLERANCE = 1e-5


def difference(value, reference):
    """Absolute, divided by the larger of 1 and the reference's largest magnitude."""
    return np.abs(np.asarray(value) - reference).max() / max(1.0, np.abs(reference).max())


@pytest.fixture(scope="module")
def huggingface():
    with np.load(GOLDEN / "hf_deit_with_teacher.npz") as file:
        arrays = dict(file)
    eps = float(arrays["layer_norm_eps"])
    model = deit_tf.create_model("deit_test", num_classes=10, layer_norm_eps=eps)
    deit_tf.load_reference(
        model, {k.removeprefix("weight/"): a for k, a in arrays.items() if k.startswith("weight/")}
    )
    return model, arrays, arrays["image_nchw"].transpose(0, 2, 3, 1)


def test_hidden_states_are_huggingfaces(huggingface):
    model, arrays, images = huggingface
    states = np.moveaxis(np.asarray(deit_tf.features(model)(images)["hidden_states"]), 1, 0)
    assert states.shape == arrays["hidden_states"].shape
    assert difference(states, arrays["hidden_states"]) < TOLERANCE


def test_attentions_are_huggingfaces(huggingface):
    model, arrays, images = huggingface
    maps = np.moveaxis(np.asarray(deit_tf.attention_maps(model)(images)["attentions"]), 1, 0)
    assert maps.shape == arrays["attentions"].shape
    assert difference(maps, arrays["attentions"]) < TOLERANCE


def test_pooled_tokens_feed_the_heads(huggingface):
    model, _, images = huggingface
    found, logits = deit_tf.features(model)(images), deit_tf.heads(model)(images)
    for token, head in (("cls", "head"), ("dist", "head_dist")):
        np.testing.assert_allclose(
            model.get_layer(head)(found[token]), logits[token], atol=1e-5
        )  # one float32 matmul
    np.testing.assert_array_equal(found["tokens"][:, 1], found["dist"])


def numpy_rollout(attentions, prefix):
    """Abnar & Zuidema, equation 1, for one image [depth, h, N, N], in float64."""
    flow = np.eye(attentions.shape[-1])
    for weights in attentions.astype("float64"):
        flow = (0.5 * weights.mean(0) + 0.5 * np.eye(len(flow))) @ flow
    patches = flow[:prefix, prefix:].mean(0)
    return patches / patches.sum()


@pytest.mark.parametrize("distilled, prefix", [(True, 2), (False, 1)])
def test_rollout(distilled, prefix):
    model = deit_tf.create_model("deit_test", image_size=(32, 48), distilled=distilled)
    found = {k: np.asarray(v) for k, v in deit_tf.attention_maps(model)(IMAGES).items()}
    assert found["rollout"].shape == (2, 4, 6)
    expected = np.stack([numpy_rollout(maps, prefix).reshape(4, 6) for maps in found["attentions"]])
    np.testing.assert_allclose(
        found["rollout"], expected, atol=1e-6
    )  # float32 against float64, values of 1/24
    pooled = {"cls", "dist"} if distilled else {"cls"}
    assert set(deit_tf.features(model).output) == {"tokens", "hidden_states"} | pooled


@pytest.mark.parametrize("distilled", [True, False])
def test_each_token_has_a_rollout_of_its_own(distilled):
    model = deit_tf.create_model("deit_test", image_size=(32, 48), distilled=distilled)
    attentions = np.asarray(deit_tf.attention_maps(model)(IMAGES)["attentions"], "float64")
    found = token_rollouts(model)(IMAGES)
    assert list(found) == (["cls", "dist"] if distilled else ["cls"])
    for i, shares in enumerate(found.values()):
        for maps, share in zip(attentions, np.asarray(shares), strict=True):
            flow = np.eye(maps.shape[-1])
            for weights in maps:
                flow = (0.5 * weights.mean(0) + 0.5 * np.eye(len(flow))) @ flow
            row = flow[i, len(found) :]
            # float32 against float64, values of 1/24
            np.testing.assert_allclose(share, (row / row.sum()).reshape(4, 6), atol=1e-6)


def test_rollout_follows_the_one_patch_that_is_looked_at():
    attention = np.tile(np.eye(6, dtype="f"), (1, 3, 1, 1))
    attention[:, :, 0] = attention[:, :, 1] = np.eye(6)[
        4
    ]  # both prefix tokens look at token 4, patch 2
    np.testing.assert_allclose(rollout([attention, attention], 2), [[0, 0, 1, 0]], atol=1e-7)


def test_layers_are_shared_and_nothing_is_added():
    model = deit_tf.create_model("deit_test")
    maps = deit_tf.attention_maps(model)
    assert {id(w) for w in maps.weights} <= {id(w) for w in model.weights}
    before = np.asarray(maps(IMAGES[:, :, :32])["rollout"])
    model.get_layer("blocks.0").attn.qkv.kernel.assign_add(
        np.random.default_rng(1).normal(size=(48, 144))
    )
    assert np.abs(maps(IMAGES[:, :, :32])["rollout"] - before).max() > 1e-4


@pytest.mark.parametrize("function", [deit_tf.features, deit_tf.attention_maps])
def test_exports_give_the_same(function, tmp_path):
    model = function(deit_tf.create_model("deit_test", image_size=(32, 48)))
    model.export(tmp_path / "saved", verbose=False)
    served = tf.saved_model.load(tmp_path / "saved").signatures["serving_default"](
        tf.constant(IMAGES)
    )
    for name, value in model(IMAGES).items():
        np.testing.assert_allclose(
            served[name], value, atol=1e-5
        )  # the same graph, fused differently


def test_one_output_alone():
    full = deit_tf.features(deit_tf.create_model("deit_test", image_size=(32, 48)))
    alone = keras.Model(full.input, full.output["cls"])
    np.testing.assert_allclose(alone(IMAGES), full(IMAGES)["cls"], atol=1e-6)


def test_mixed_precision_rolls_out_in_float32():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        maps = deit_tf.attention_maps(deit_tf.create_model("deit_test", image_size=(32, 48)))(
            IMAGES
        )
    finally:
        keras.config.set_dtype_policy("float32")
    assert maps["attentions"].dtype == "bfloat16" and maps["rollout"].dtype == "float32"
    np.testing.assert_allclose(np.sum(maps["rollout"], (1, 2)), 1, atol=1e-5)


@pytest.mark.parametrize("function", [deit_tf.features, deit_tf.attention_maps])
def test_other_models_are_refused(function):
    dense = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    for model in (dense, deit_tf.create_masked_model("deit_test")):
        with pytest.raises(ValueError, match="takes a DeiT classifier"):
            function(model)
