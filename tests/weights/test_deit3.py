"""DeiT III: LayerScale, and a class token without position, as timm and the original have them."""

import re
from dataclasses import replace

import keras
import numpy as np
import pytest
from test_names import TOLERANCE, difference, golden, images, weights

import deit_tf
from deit_tf.models.variants import VARIANTS
from deit_tf.weights.files import write_weights
from deit_tf.weights.names import describe, load_reference, to_reference
from deit_tf.zoo import _published_heads, restore_model

DEIT3 = dict(num_classes=10, distilled=False, init_values=1e-6, no_embed_class=True)
GOLDEN = [("timm_deit3", 32), ("timm_deit3_32x48", (32, 48))]


def build(**config):
    return deit_tf.create_model("deit_test", **DEIT3 | config)


@pytest.fixture(scope="module")
def arrays():
    return golden("timm_deit3")


@pytest.fixture(scope="module")
def model(arrays):
    model = build()
    load_reference(model, weights(arrays))
    return model


@pytest.mark.parametrize(("name", "size"), GOLDEN)
def test_logits_and_tokens_are_timms(name, size):
    arrays = golden(name)
    model = build(image_size=size)
    load_reference(model, weights(arrays))
    assert difference(model(images(arrays)), arrays["logits"]) < TOLERANCE
    tokens = deit_tf.features(model)(images(arrays))["tokens"]
    assert difference(tokens, arrays["tokens"]) < TOLERANCE


def test_the_originals_names_load(arrays, model):
    """models_v2.py has the factors in the block, as `gamma_1` and `gamma_2`."""
    theirs = {
        re.sub(r"\.ls(\d)\.gamma", r".gamma_\1", name): array
        for name, array in weights(arrays).items()
    }
    assert "blocks.1.gamma_2" in theirs
    other = build()
    load_reference(other, theirs)
    np.testing.assert_array_equal(other(images(arrays)), model(images(arrays)))


def test_weights_come_back_out_bit_for_bit(arrays, model):
    given, back = weights(arrays), to_reference(model)
    assert given.keys() == back.keys()
    assert all(np.array_equal(given[name], back[name]) for name in given)


@pytest.mark.parametrize(("name", "size"), GOLDEN)
def test_the_model_is_told_from_its_weights(name, size):
    described = describe(weights(golden(name)))
    assert described["no_embed_class"] and described["init_values"] == 1e-6
    assert not describe(weights(golden("timm_deit_plain")))["no_embed_class"]
    assert describe(weights(golden("timm_deit_plain")))["init_values"] is None


@pytest.mark.parametrize("side", [16, 48])
def test_the_position_embedding_is_resized(arrays, model, side):
    """Every place is a patch's: the class token has none to keep."""
    other = build(image_size=side)
    load_reference(other, weights(arrays))
    assert other.get_layer("tokens").pos_embed.shape[1] == (side // 8) ** 2
    assert np.isfinite(other(np.ones((1, side, side, 3), "f"))).all()


def test_a_model_with_a_place_for_the_class_token_refuses_them(arrays):
    with pytest.raises(ValueError, match="pos_embed|extra"):
        load_reference(build(no_embed_class=False), weights(arrays))


def test_a_folder_for_timm_names_the_architecture(tmp_path, model):
    preprocessing = deit_tf.ImageProcessor(32).to_preprocessor_config("timm")
    write_weights(model, tmp_path / "out", layout="timm", preprocessing=preprocessing)
    again, facts = restore_model(tmp_path / "out")
    assert facts.architecture == "deit3_base_patch16_224"
    x = np.ones((1, 32, 32, 3), "f")
    np.testing.assert_array_equal(again(x), model(x))


def test_hugging_face_has_no_such_model(model):
    with pytest.raises(ValueError, match="position of its own.*layout='timm'"):
        to_reference(model, "huggingface")
    with pytest.raises(ValueError, match="no name for .*ls1.gamma.*layout='timm'"):
        to_reference(build(no_embed_class=False), "huggingface")


def test_a_keras_file_keeps_it(tmp_path, model, arrays):
    model.save(tmp_path / "deit3.keras")
    again = keras.models.load_model(tmp_path / "deit3.keras")
    np.testing.assert_array_equal(again(images(arrays)), model(images(arrays)))


def test_a_published_shape_is_restored_under_its_name():
    """By its shapes alone; the smallest of the eight."""
    model = deit_tf.create_model("deit3_small_patch16_224", num_classes=3)
    described = describe(to_reference(model))
    named = replace(VARIANTS["deit3_small_patch16_224"], num_classes=3)
    assert {key: getattr(named, key) for key in described} == described


def test_attention_heads_of_a_published_shape_are_known():
    """Those of the huge model are 80 wide, and 64 in all others."""
    huge = dict(patch_size=14, embed_dim=1280, depth=32, mlp_ratio=4.0)
    assert _published_heads(huge) == 16
    assert _published_heads(huge | dict(depth=31)) == 0


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_factors_start_above_zero(value):
    with pytest.raises(ValueError, match="`init_values` is a number above 0, or null"):
        build(init_values=value)
