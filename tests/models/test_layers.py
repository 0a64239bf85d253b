"""Every layer by itself: Keras's own suite for layers, both mixed precisions, `.keras` files."""

import importlib
import inspect
import pkgutil

import keras
import numpy as np
import pytest
from keras.src.testing import TestCase

from deit_tf import models
from deit_tf.models.features import AttentionWeights
from deit_tf.models.layers import (
    Attention,
    Block,
    Dropout,
    DropPath,
    LayerNorm,
    LayerScale,
    MaskPatches,
    Mlp,
    PatchEmbed,
    PixelShuffle,
    Tokens,
)

TOKENS = (2, 5, 12)
BLOCK = dict(num_heads=3, mlp_ratio=4.0, drop_path_rate=0.1, layer_norm_eps=1e-6)
LAYERS = [
    (DropPath, dict(rate=0.1), TOKENS),
    (DropPath, dict(rate=0.0), TOKENS),
    (Dropout, dict(rate=0.1), (2, 12)),
    (LayerNorm, dict(epsilon=1e-6), TOKENS),
    (Attention, dict(num_heads=3), TOKENS),
    (Mlp, dict(hidden_dim=24), TOKENS),
    (Block, BLOCK, TOKENS),
    (Block, BLOCK | dict(remat=True), TOKENS),
    (Block, BLOCK | dict(init_values=0.1), TOKENS),
    (Block, BLOCK | dict(remat=True, init_values=0.1), TOKENS),
    (LayerScale, dict(init_values=0.1), TOKENS),
    (PatchEmbed, dict(patch_size=4, embed_dim=12), (2, 8, 12, 3)),
    (Tokens, dict(distilled=True), TOKENS),
    (Tokens, dict(distilled=False), TOKENS),
    (Tokens, dict(distilled=True, no_embed_class=True), TOKENS),
    (PixelShuffle, dict(scale=2), (2, 3, 5, 12)),
]


def normal(shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def test_every_layer_is_in_the_table():
    modules = [
        importlib.import_module(module.name)
        for module in pkgutil.iter_modules(models.__path__, "deit_tf.models.")
    ]
    found = {
        value
        for module in modules
        for value in vars(module).values()
        if inspect.isclass(value)
        and issubclass(value, keras.Layer)
        and not issubclass(value, keras.Model)
        and value.__module__.startswith("deit_tf")
    }
    # AttentionWeights looks into the block of another model, and is in no file.
    assert found == {layer for layer, *_ in LAYERS} | {MaskPatches, AttentionWeights}


@pytest.mark.parametrize("layer_class, arguments, shape", LAYERS)
def test_keras_own_suite(layer_class, arguments, shape):
    """Serialization, dtype policies, symbolic and eager calls, a compiled training step."""
    size = layer_class(**arguments).compute_output_shape(shape)
    TestCase().run_layer_test(
        layer_class,
        arguments,
        input_shape=shape,
        expected_output_shape=tuple(size),
        expected_output_dtype="float32",
        expected_num_losses=0,
    )


def test_keras_own_suite_of_two_inputs():
    TestCase().run_layer_test(
        MaskPatches,
        {},
        input_shape={"patches_shape": TOKENS, "mask_shape": TOKENS[:2]},
        expected_output_shape=TOKENS,
        expected_num_trainable_weights=1,
        run_training_check=False,  # it feeds one input
    )


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])  # Keras's suite has float16
@pytest.mark.parametrize("layer_class, arguments, shape", LAYERS)
def test_layer(layer_class, arguments, shape, policy, tmp_path):
    x = normal(shape)
    layer = layer_class(**arguments, dtype=policy)
    y = layer(x)
    assert tuple(layer.compute_output_shape(shape)) == tuple(y.shape)
    assert keras.backend.standardize_dtype(y.dtype) == layer.compute_dtype
    trained = layer(x, training=True)
    assert keras.backend.standardize_dtype(trained.dtype) == layer.compute_dtype
    assert all(w.dtype == "float32" for w in layer.weights)
    again = layer_class.from_config(layer.get_config())
    again(x)
    assert again.get_config() == layer.get_config()
    again.set_weights(layer.get_weights())
    np.testing.assert_array_equal(again(x), y)
    model = keras.Sequential([keras.Input(shape[1:]), layer])
    model.save(tmp_path / "layer.keras")
    np.testing.assert_array_equal(keras.saving.load_model(tmp_path / "layer.keras")(x), y)


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_layer_norm_is_keras_own(policy):
    ours, theirs = (
        kind(epsilon=1e-6, dtype=policy) for kind in (LayerNorm, keras.layers.LayerNormalization)
    )
    for dtype in ("float32", theirs.compute_dtype):
        x = keras.ops.cast(3 * normal(TOKENS) + 1, dtype)
        found, expected = ours(x), theirs(x)
        assert found.dtype == expected.dtype == theirs.compute_dtype
        # One rounding to the output's precision may fall the other way.
        step = float(keras.ops.max(keras.ops.abs(expected))) * {"float32": 2e-7}.get(
            theirs.compute_dtype, 2**-8
        )
        difference = keras.ops.cast(found, "float32") - keras.ops.cast(expected, "float32")
        assert float(keras.ops.max(keras.ops.abs(difference))) <= step


@pytest.mark.parametrize("arguments", [dict(axis=1), dict(center=False), dict(scale=False)])
def test_layer_norm_refuses_what_it_does_not_do(arguments):
    with pytest.raises(ValueError, match="`LayerNorm` scales and shifts the last axis.*Received"):
        LayerNorm(**arguments).build(TOKENS)
