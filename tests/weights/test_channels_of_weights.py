"""Weights for RGB in models of other channels, by timm's rule, and what is written of them."""

import json

import numpy as np
import pytest
from test_weight_files import assert_same_weights, golden, images

import deit_tf
from deit_tf.data import ImageProcessor
from deit_tf.models.variants import VARIANTS, count_parameters
from deit_tf.weights.files import write_weights
from deit_tf.weights.names import adapt_channels, describe, load_reference, to_reference
from deit_tf.zoo import create_regnety, restore_model

KERNEL = "patch_embed.proj.weight"


@pytest.mark.parametrize("channels", [1, 2, 4, 7])
def test_the_first_kernel_follows_timms_rule(channels):
    """timm/models/_manipulate.py, adapt_input_conv, written out in full."""
    kernel = np.random.default_rng(0).normal(size=(6, 3, 2, 2)).astype("float32")
    if channels == 1:
        expected = kernel[:, :1] + kernel[:, 1:2] + kernel[:, 2:]
    else:
        repeated = np.concatenate([kernel] * (channels // 3 + 1), axis=1)
        expected = repeated[:, :channels] * (3 / channels)
    np.testing.assert_allclose(adapt_channels(kernel, channels), expected, rtol=1e-6)
    assert adapt_channels(kernel, 3) is kernel


def test_a_gray_picture_gives_what_it_gave_as_rgb(tmp_path, caplog):
    arrays, state = golden("timm_deit_distilled")
    rgb = deit_tf.create_model("deit_test", num_classes=10)
    load_reference(rgb, state)
    rgb.save(tmp_path / "rgb.keras")
    with caplog.at_level("INFO"):
        gray = deit_tf.create_model(
            "deit_test", num_channels=1, num_classes=10, weights=tmp_path / "rgb.keras"
        )
    assert "for images of 3 channels: its first kernel was adapted to 1" in caplog.text
    one = images(arrays)[..., :1]
    # The kernel is summed before the product instead of after it, in float32.
    np.testing.assert_allclose(gray(one), rgb(one.repeat(3, -1)), atol=1e-4)


def test_other_channels_than_three_do_not_adapt():
    four = deit_tf.create_model("deit_test", num_classes=3, num_channels=4)
    five = deit_tf.create_model("deit_test", num_classes=3, num_channels=5)
    with pytest.raises(ValueError, match="misshapen: patch_embed.proj.weight"):
        load_reference(five, to_reference(four))


@pytest.mark.parametrize("layout", ["timm", "huggingface", "keras-hub"])
@pytest.mark.parametrize("channels", [1, 5])
def test_out_and_in_again_is_exact(tmp_path, layout, channels):
    model = deit_tf.create_model("deit_test", num_classes=4, num_channels=channels)
    processor = ImageProcessor(32, 1.0, (0.4,) * channels, (0.3,) * channels)
    preprocessing = processor.to_preprocessor_config(layout)
    out = write_weights(model, tmp_path / "out", layout=layout, preprocessing=preprocessing)
    again, _ = restore_model(out)
    assert again.input_shape == model.input_shape
    by_name = deit_tf.create_model("deit_test", weights=out)
    assert_same_weights(again, by_name)
    if layout != "keras-hub":
        assert_same_weights(model, again)

    config = json.loads((out / "config.json").read_text())
    stated = {
        "timm": lambda: config["model_args"]["in_chans"],
        "huggingface": lambda: config["num_channels"],
        "keras-hub": lambda: config["config"]["image_shape"][-1],
    }
    assert stated[layout]() == channels


def test_masked_models_and_convnets_have_them_too():
    masked = deit_tf.create_masked_model("deit_test", num_channels=2)
    assert masked.output_shape == (None, 32, 32, 2)
    teacher = create_regnety("regnety_002", num_classes=3, image_size=32, num_channels=1)
    assert teacher.input_shape == (None, 32, 32, 1)


def test_the_parameters_are_counted_and_described():
    model = deit_tf.create_model("deit_test", num_channels=6)
    config = VARIANTS["deit_test"]
    assert describe(to_reference(model))["num_channels"] == 6
    kernel = config.patch_size**2 * config.embed_dim
    assert model.count_params() == count_parameters(config) + 3 * kernel


@pytest.mark.parametrize("channels", [0, -1, 1025, 1.5, "3", True])
def test_numbers_that_are_none(channels):
    with pytest.raises(ValueError, match="`num_channels` is a whole number from 1 to 1,024"):
        deit_tf.create_model("deit_test", num_channels=channels)
