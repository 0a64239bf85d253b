"""The models by name: counts, initialization, drop path, sizes, errors, files."""

from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest

import deit_tf
from deit_tf.models.layers import Block, DropPath, numbered_draw
from deit_tf.models.parts import blocks
from deit_tf.models.regnet import REGNETY, build_regnety
from deit_tf.models.variants import VARIANTS, count_parameters
from deit_tf.zoo import create_regnety

GOLDEN = Path(__file__).parents[1] / "golden"
FACTS = np.load(GOLDEN / "facts.npz")
DEIT3 = np.load(GOLDEN / "deit3_facts.npz")
BUILT = dict(zip(FACTS["names"], FACTS["params"], strict=True)) | {"deit_test": 164_864}
PARAMETERS = BUILT | dict(zip(DEIT3["names"], DEIT3["parameters"], strict=True))
IMAGES = np.random.default_rng(0).normal(size=(4, 32, 32, 3)).astype("float32")


def deit(**config):
    return deit_tf.create_model("deit_test", num_classes=10, **config)


def test_every_model_has_a_count():
    assert set(deit_tf.list_models()) == set(PARAMETERS)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_count(name):
    assert count_parameters(VARIANTS[name]) == PARAMETERS[name]


# of those of the base size one; the others are slow
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if is_large else name
        for name in BUILT
        for is_large in ["base" in name and name != "deit_base_distilled_patch16_224"]
    ],
)
def test_a_built_model_has_as_many(name):
    assert deit_tf.create_model(name).count_params() == PARAMETERS[name]


@pytest.mark.parametrize(
    "config",
    [
        dict(image_size=(16, 64)),
        dict(patch_size=4, distilled=False, num_classes=3),
        dict(mlp_ratio=2.5, depth=3, embed_dim=36),
        dict(distilled=False, init_values=1e-6, no_embed_class=True),
        dict(init_values=0.1),
        dict(no_embed_class=True),
    ],
)
def test_parameters_are_counted_without_building(config):
    model = deit_tf.create_model("deit_test", **config)
    assert count_parameters(replace(VARIANTS["deit_test"], **config)) == model.count_params()


def rates(model):
    return [block.drop_path_rate for block in blocks(model)]


def test_drop_path_rises_linearly():
    model = deit_tf.create_model(
        "deit_tiny_distilled_patch16_224", image_size=32, drop_path_rate=0.1
    )
    np.testing.assert_allclose(rates(model), FACTS["drop_path_rates_0_1_depth_12"])


def test_drop_path_of_deit3_is_the_same_in_every_block():
    model = deit_tf.create_model(
        "deit3_small_patch16_224", image_size=32, depth=3, drop_path_rate=0.05
    )
    assert rates(model) == [0.05] * 3


def test_drop_path_is_per_sample_and_keeps_the_mean():
    y = np.array(DropPath(0.25)(np.ones((20_000, 3, 2), "f"), training=True))
    assert set(np.unique(y)) == {0.0, np.float32(1 / 0.75)}
    assert (y == y[:, :1, :1]).all()
    # 20,000 draws at p = 0.25: the share has a deviation of 0.003.
    assert abs((y == 0).mean() - 0.25) < 0.0125


def test_drop_path_masks_differ_between_layers_branches_and_calls():
    block = Block(3, 4.0, 0.5, 1e-6)
    block.build((None, 5, 48))
    ones = np.ones((400, 5, 48), "f")
    masks = [
        np.array(drop(ones, training=True))[:, 0, 0] > 0
        for drop in (block.drop_path1, block.drop_path2, block.drop_path1)
    ]
    # Independent masks agree on half of 400 samples, with a deviation of 10.
    for a, b in [(0, 1), (0, 2), (1, 2)]:
        assert 140 < (masks[a] == masks[b]).sum() < 260


def test_dropout_is_of_the_tokens_before_the_heads():
    kept, dropped = deit(), deit(drop_rate=0.5)
    dropped.set_weights(kept.get_weights())
    np.testing.assert_array_equal(dropped(IMAGES), kept(IMAGES))

    # with a kernel that gives back the token, what is seen is what is left of it
    width = dropped.get_layer("head").kernel.shape[0]
    wide = deit_tf.create_model("deit_test", drop_rate=0.5, num_classes=width)
    for head in ("head", "head_dist"):
        wide.get_layer(head).kernel.assign(np.eye(width))
    with numbered_draw(2):
        both = {k: np.array(v) for k, v in deit_tf.heads(wide)(IMAGES, training=True).items()}
    tokens = {k: np.array(v) for k, v in deit_tf.heads(wide)(IMAGES).items()}
    for head, seen in both.items():
        left = seen != 0
        assert 0.35 < left.mean() < 0.65
        np.testing.assert_allclose(seen[left], 2 * tokens[head][left], rtol=1e-5)
    assert ((both["cls"] == 0) != (both["dist"] == 0)).any()


def test_training_changes_nothing_but_drop_path():
    model = deit()
    np.testing.assert_array_equal(model(IMAGES, training=True), model(IMAGES, training=False))
    dropped = deit(drop_path_rate=0.9)
    assert np.abs(dropped(IMAGES, training=True) - dropped(IMAGES, training=False)).max() > 1e-3


def test_initialization_is_the_originals():
    keras.utils.set_random_seed(0)
    model = deit_tf.create_model("deit_small_distilled_patch16_224", image_size=224)
    weights = {w.path: np.array(w) for w in model.weights}
    for path, w in weights.items():
        if path.endswith(("kernel", "token", "pos_embed")) and "patch_embed" not in path:
            # A normal of deviation 0.02: the estimate from n numbers is off by 0.02 / sqrt(2 n).
            assert abs(w.std() - 0.02) < 5 * 0.02 / np.sqrt(2 * w.size), path
        if path.endswith("/bias") and "patch_embed" not in path:
            assert not w.any(), path
    # Not cut at two deviations: 4.6 % of a normal lie beyond.
    assert 0.03 < (np.abs(weights["blocks.3/mlp/fc1/kernel"]) > 0.04).mean() < 0.06
    for path in ("patch_embed/proj/kernel", "patch_embed/proj/bias"):
        bound = 768**-0.5
        assert np.abs(weights[path]).max() <= bound
        # A uniform within the bound has deviation bound / sqrt(3); 384 biases estimate it to 3 %.
        assert abs(weights[path].std() * 3**0.5 / bound - 1) < 0.12
    assert (
        np.abs(weights["blocks.0/attn/qkv/kernel"] - weights["blocks.1/attn/qkv/kernel"]).max()
        > 0.02
    )


@pytest.mark.parametrize("size, tokens", [(32, 18), ((16, 64), 18), ((40, 24), 17)])
def test_any_size_that_the_patch_divides(size, tokens):
    model = deit(image_size=size)
    assert model.get_layer("norm").output.shape == (None, tokens, 48)
    assert model.output_shape == (None, 10)


@pytest.mark.parametrize(
    "config, message",
    [
        (dict(image_size=33), r"multiple of patch_size=8.*image_size=33.*\(32, 32\)"),
        (dict(image_size=(32, 0)), "image_size"),
        (dict(num_heads=5), "`num_heads` must divide embed_dim=48.*num_heads=5"),
        (dict(num_classes=0), "`num_classes` is a whole number from 1.*num_classes=0"),
        (dict(depth=0), "`depth` is a whole number from 1 to 256"),
        (dict(depth=True), "`depth` is a whole number"),
        (dict(depth=257), "`depth` is a whole number from 1 to 256"),
        (dict(embed_dim=2**20), "`embed_dim` is a whole number from 1 to 16,384"),
        (dict(embed_dim=48.0), "`embed_dim` is a whole number"),
        (dict(num_classes=10**9), "`num_classes` is a whole number from 1 to 1,000,000"),
        (dict(image_size=65536), "`image_size` takes a whole number from 1 to 4096"),
        (dict(mlp_ratio=float("nan")), "`mlp_ratio` is a number above 0 and up to 64"),
        (dict(mlp_ratio=0.001), "`mlp_ratio` .* leaves the hidden layer a unit"),
        (dict(layer_norm_eps=float("nan")), "`layer_norm_eps` is a number above 0 and below 1"),
        (dict(layer_norm_eps=-1e-6), "`layer_norm_eps` is a number above 0"),
        (dict(image_size=4096, patch_size=1, embed_dim=768), "at most 2,000,000,000 weights"),
        (dict(embed_dim=16_383, depth=256), "at most 2,000,000,000 weights. Lower `embed_dim`"),
        (dict(drop_path_rate=1.0), r"`drop_path_rate` is a probability in \[0, 1\)"),
        (dict(drop_rate=-0.1), r"`drop_rate` is a probability in \[0, 1\)"),
        (dict(embed_dims=3), "'embed_dims' of create_model. Allowed:.*embed_dim,"),
    ],
)
def test_impossible_models_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        deit_tf.create_model("deit_test", **config)


def test_a_wrong_name_gives_the_nearest():
    with pytest.raises(
        ValueError, match="'deit_tiny_patch_224'. Did you mean 'deit_tiny_patch16_224'"
    ):
        deit_tf.create_model("deit_tiny_patch_224")
    with pytest.raises(ValueError, match="Did you mean 'regnety_160'"):
        create_regnety("regnety_16")


def test_the_output_is_the_mean_of_the_heads():
    model = deit()
    both = deit_tf.heads(model)(IMAGES)
    np.testing.assert_allclose(model(IMAGES), (both["cls"] + both["dist"]) / 2, atol=1e-7)
    with pytest.raises(ValueError, match="layer named 'head'"):
        deit_tf.heads(keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)], name="mlp"))


def test_keras_file_round_trip(tmp_path):
    model = deit(drop_path_rate=0.2, drop_rate=0.1)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(model(IMAGES), loaded(IMAGES))
    assert rates(loaded) == rates(model)
    np.testing.assert_array_equal(
        deit_tf.heads(loaded)(IMAGES)["dist"], deit_tf.heads(model)(IMAGES)["dist"]
    )


def test_mixed_bfloat16_stays_close_to_float32():
    model = deit()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        half = deit()
    finally:
        keras.config.set_dtype_policy("float32")
    half.set_weights(model.get_weights())
    # 8 bits of mantissa through two blocks; the logits are of order 0.3.
    assert np.abs(half(IMAGES) - model(IMAGES)).max() < 0.02


def test_regnety_equals_timm():
    with np.load(GOLDEN / "timm_regnety_mini.npz") as file:
        arrays = dict(file)
    model = build_regnety(7, 8, 12.0, 2.3, 8, num_classes=10, image_size=64)
    deit_tf.load_reference(
        model, {k.removeprefix("weight/"): a for k, a in arrays.items() if k.startswith("weight/")}
    )
    logits = np.array(model(arrays["image_nchw"].transpose(0, 2, 3, 1)))
    # Seven blocks with batch norms of random statistics: float32 rounding grows to about 1e-5.
    assert np.abs(logits - arrays["logits"]).max() / max(1, np.abs(arrays["logits"]).max()) < 1e-4


# Millions of parameters in timm's results-imagenet.csv; regnety_160 to the last one.
@pytest.mark.parametrize(
    "name, millions", [("regnety_002", 3.16), ("regnety_008", 6.26), ("regnety_160", 83.59)]
)
def test_regnety_counts(name, millions):
    model = create_regnety(name)
    trainable = sum(int(np.prod(w.shape)) for w in model.trainable_weights)
    assert round(trainable / 1e6, 2) == millions
    if name == "regnety_160":
        assert trainable == 83_590_140


def test_regnety_table_has_the_papers_teacher():
    assert REGNETY["regnety_160"] == (18, 200, 106.23, 2.48, 112)
