"""Weights of timm and Hugging Face give their logits; wrong states are refused whole."""

from pathlib import Path

import numpy as np
import pytest

import deit_tf
from deit_tf.weights.names import load_reference, resize_pos_embed, to_reference

GOLDEN = Path(__file__).parents[1] / "golden"
# Two float32 implementations of two blocks of width 48: rounding gives about 1e-6.
TOLERANCE = 1e-5


def golden(name):
    with np.load(GOLDEN / f"{name}.npz") as file:
        return dict(file)


def weights(arrays):
    return {
        key.removeprefix("weight/"): a for key, a in arrays.items() if key.startswith("weight/")
    }


def difference(value, reference):
    """Absolute, divided by the larger of 1 and the reference's largest magnitude."""
    return np.abs(np.asarray(value) - reference).max() / max(1.0, np.abs(reference).max())


def images(arrays):
    return arrays["image_nchw"].transpose(0, 2, 3, 1)


def model_for(**config):
    return deit_tf.create_model("deit_test", num_classes=10, **config)


@pytest.mark.parametrize(
    "name, size", [("timm_deit_distilled", 32), ("timm_deit_distilled_32x48", (32, 48))]
)
def test_timm_distilled(name, size):
    arrays = golden(name)
    model = model_for(image_size=size)
    load_reference(model, weights(arrays))
    both = deit_tf.heads(model)(images(arrays))
    assert difference(both["cls"], arrays["logits_cls"]) < TOLERANCE
    assert difference(both["dist"], arrays["logits_dist"]) < TOLERANCE
    assert difference(model(images(arrays)), arrays["logits_eval"]) < TOLERANCE


def test_timm_plain():
    arrays = golden("timm_deit_plain")
    model = model_for(distilled=False)
    load_reference(model, weights(arrays))
    assert difference(model(images(arrays)), arrays["logits_eval"]) < TOLERANCE
    assert list(deit_tf.heads(model)(images(arrays))) == ["cls"]


def test_huggingface():
    arrays = golden("hf_deit_with_teacher")
    model = model_for(layer_norm_eps=float(arrays["layer_norm_eps"]))
    load_reference(model, weights(arrays))
    both = deit_tf.heads(model)(images(arrays))
    assert difference(both["cls"], arrays["cls_logits"]) < TOLERANCE
    assert difference(both["dist"], arrays["distillation_logits"]) < TOLERANCE
    assert difference(model(images(arrays)), arrays["logits"]) < TOLERANCE


@pytest.mark.parametrize("size", ["24x24", "14x14", "10x10", "16x28"])
def test_pos_embed_resize(size):
    arrays = golden("pos_embed_resize")
    new = tuple(map(int, size.split("x")))
    assert (
        difference(resize_pos_embed(arrays["grid_14x14"], (14, 14), new), arrays[f"to_{size}"])
        < TOLERANCE
    )


def test_load_resizes_the_patches_and_keeps_the_tokens():
    state = weights(golden("timm_deit_distilled"))
    model = model_for(image_size=(32, 64))
    load_reference(model, state)
    pos_embed = to_reference(model)["pos_embed"]
    np.testing.assert_array_equal(pos_embed[:, :2], state["pos_embed"][:, :2])
    np.testing.assert_array_equal(
        pos_embed[:, 2:], resize_pos_embed(state["pos_embed"][:, 2:], (4, 4), (4, 8))
    )


@pytest.mark.parametrize("layout", ["timm", "huggingface"])
def test_round_trip_is_exact(layout):
    model, other = model_for(), model_for()
    load_reference(other, to_reference(model, layout))
    for a, b in zip(model.weights, other.weights, strict=True):
        np.testing.assert_array_equal(a, b)


def test_huggingface_names_are_those_of_the_hub():
    keys = to_reference(model_for(), "huggingface")
    assert "deit.encoder.layer.1.attention.attention.query.weight" in keys
    assert "deit.embeddings.distillation_token" in keys
    assert "distillation_classifier.bias" in keys


def test_heads_can_be_left_as_they_are():
    model = deit_tf.create_model("deit_test", num_classes=7)
    before = to_reference(model)
    load_reference(model, weights(golden("timm_deit_distilled")), heads="new")
    np.testing.assert_array_equal(
        to_reference(model)["head_dist.weight"], before["head_dist.weight"]
    )
    assert np.abs(to_reference(model)["cls_token"] - before["cls_token"]).max() > 0.1


def test_one_error_names_every_fault_and_the_model_is_unchanged():
    state = weights(golden("timm_deit_distilled"))
    del state["blocks.1.norm2.bias"]
    state["surplus.weight"] = np.zeros(3)
    state["head.weight"] = np.zeros((7, 48))
    state["norm.bias"] = np.full(48, np.nan)
    model = model_for()
    before = to_reference(model)
    with pytest.raises(ValueError) as error:
        load_reference(model, state)
    for fault in (
        "missing: blocks.1.norm2.bias",
        "extra: surplus.weight",
        "misshapen: head.weight (48, 7)",
        "not finite: norm.bias",
    ):
        assert fault in str(error.value)
    for name, array in to_reference(model).items():
        np.testing.assert_array_equal(array, before[name])


def test_a_plain_position_embedding_does_not_fit_a_distilled_model():
    with pytest.raises(ValueError, match="grid of 4 x 4"):
        load_reference(model_for(), weights(golden("timm_deit_plain")))
