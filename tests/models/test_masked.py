"""Masked image modeling: Hugging Face's loss and reconstruction, training, and the way into a
classifier."""

import json
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import deit_tf
from deit_tf import losses
from deit_tf.cli import main
from deit_tf.config import AugmentConfig, DataConfig, MaskConfig
from deit_tf.data import ImageProcessor, masked_dataset, masked_eval_dataset, open_sources
from deit_tf.data.masking import block_mask, check_mask
from deit_tf.models.layers import PixelShuffle
from deit_tf.runs import load_run

GOLDEN = Path(__file__).parents[1] / "golden"
# Two float32 implementations of two blocks of width 48: rounding gives about 1e-6.
TOLERANCE = 1e-5


def batch(n=8, size=32, patch=8):
    rng = np.random.default_rng(0)
    mask = rng.random((n, (size // patch) ** 2)) < 0.5
    return {"image": rng.normal(size=(n, size, size, 3)).astype("float32"), "mask": mask}


@pytest.fixture(scope="module")
def huggingface():
    with np.load(GOLDEN / "hf_deit_masked.npz") as file:
        arrays = dict(file)
    model = deit_tf.create_masked_model("deit_test", layer_norm_eps=1e-12)
    state = {k.removeprefix("weight/"): a for k, a in arrays.items() if k.startswith("weight/")}
    deit_tf.load_reference(model, state)
    inputs = {
        "image": arrays["image_nchw"].transpose(0, 2, 3, 1),
        "mask": arrays["bool_masked_pos"],
    }
    return model, inputs, arrays


def test_reconstruction_is_huggingfaces(huggingface):
    model, inputs, arrays = huggingface
    expected = arrays["reconstruction_nchw"].transpose(0, 2, 3, 1)
    assert np.abs(model(inputs) - expected).max() / np.abs(expected).max() < TOLERANCE


def test_loss_is_huggingfaces(huggingface):
    model, inputs, arrays = huggingface
    assert (
        abs(
            float(losses.masked_l1(inputs["image"], model(inputs), inputs["mask"])) - arrays["loss"]
        )
        < TOLERANCE
    )
    trainer = deit_tf.MaskedTrainer(model)
    trainer.compile("sgd", jit_compile=False)
    found = trainer.evaluate(inputs, batch_size=3, verbose=0, return_dict=True)["loss"]
    assert abs(found - arrays["loss"]) < TOLERANCE


def test_weights_go_back_by_huggingfaces_names(huggingface):
    model, _, arrays = huggingface
    state = deit_tf.to_reference(model, "huggingface")
    np.testing.assert_array_equal(state["decoder.0.weight"], arrays["weight/decoder.0.weight"])
    np.testing.assert_array_equal(
        state["deit.embeddings.mask_token"], arrays["weight/deit.embeddings.mask_token"]
    )


def test_pixel_shuffle_has_torchs_channel_order():
    x = np.arange(2 * 3 * 8, dtype="f").reshape(1, 2, 3, 8)  # two channels of 2 x 2 pixels
    y = np.asarray(PixelShuffle(2)(x))
    assert y.shape == (1, 4, 6, 2)
    for channel in range(2):
        np.testing.assert_array_equal(
            y[0, 2:4, 4:6, channel].ravel(), x[0, 1, 2, 4 * channel : 4 * channel + 4]
        )


def test_hidden_patches_do_not_reach_the_output():
    model, inputs = deit_tf.create_masked_model("deit_test"), batch()
    hidden = np.kron(inputs["mask"].reshape(-1, 4, 4), np.ones((8, 8)))[..., None].astype(bool)
    other = {**inputs, "image": np.where(hidden, np.float32(7), inputs["image"])}
    np.testing.assert_allclose(model(inputs), model(other), atol=1e-6)
    seen = {**inputs, "image": np.where(hidden, inputs["image"], np.float32(7))}
    assert np.abs(model(inputs) - model(seen)).max() > 1e-3


def test_the_loss_is_that_of_hidden_pixels():
    inputs = batch()
    hidden = np.kron(inputs["mask"].reshape(-1, 4, 4), np.ones((8, 8)))[..., None]
    wrong_where_seen = inputs["image"] + 3 * (1 - hidden).astype("f")
    assert float(losses.masked_l1(inputs["image"], wrong_where_seen, inputs["mask"])) == 0
    # Off by 2 everywhere: the mean over hidden pixels and channels, but for the 1e-5 among some
    # 4,000 pixels.
    assert float(
        losses.masked_l1(inputs["image"], inputs["image"] + 2, inputs["mask"])
    ) == pytest.approx(2, abs=1e-5)
    assert (
        float(losses.masked_l1(inputs["image"], inputs["image"] + 2, np.zeros_like(inputs["mask"])))
        == 0
    )


def test_each_image_counts_by_what_it_hides():
    inputs = batch()
    guess = inputs["image"] + np.arange(8, dtype="f")[:, None, None, None]  # off by 0, 1, ... 7
    assert len(set(inputs["mask"].sum(axis=1))) > 1
    whole = losses.masked_l1(inputs["image"], guess, inputs["mask"])
    parts = losses.masked_l1_of_each(inputs["image"], guess, inputs["mask"])
    assert parts.shape == (8,) and np.mean(parts) == pytest.approx(float(whole), rel=1e-6)
    # Filled up with rows of weight 0, as `padded` does, the weighted mean is that of the others.
    weight = np.float32([1, 1, 1, 1, 1, 0, 0, 0])
    first = losses.masked_l1(inputs["image"][:5], guess[:5], inputs["mask"][:5])
    parts = losses.masked_l1_of_each(inputs["image"], guess, inputs["mask"], weight)
    assert np.average(parts, weights=weight) == pytest.approx(float(first), rel=1e-6)


def test_fit_lowers_the_loss_and_the_file_round_trips(tmp_path):
    keras.utils.set_random_seed(0)
    model, inputs = deit_tf.create_masked_model("deit_test", image_size=(32, 32)), batch()
    trainer = deit_tf.MaskedTrainer(model)
    trainer.compile(keras.optimizers.AdamW(3e-3), jit_compile=False)
    history = trainer.fit(inputs, epochs=20, batch_size=8, verbose=0).history["loss"]
    assert history[-1] < 0.9 * history[0]
    trainer.network.save(tmp_path / "masked.keras")
    loaded = keras.saving.load_model(tmp_path / "masked.keras")
    assert type(loaded) is type(deit_tf.create_model("deit_test"))  # nothing of its own
    np.testing.assert_array_equal(loaded(inputs), model(inputs))


REPLICAS = """
import keras, numpy as np, tensorflow as tf, deit_tf
(cpu,) = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
rng = np.random.default_rng(0)
# as many in each image, as masks are drawn
mask = np.stack([rng.permutation(16) < 10 for _ in range(8)]).astype("f")
images = rng.normal(size=(8, 32, 32, 3)).astype("f")

def train(strategy):
    with strategy.scope():
        keras.utils.set_random_seed(0)
        model = deit_tf.create_masked_model("deit_test", depth=1)
        trainer = deit_tf.MaskedTrainer(model)
        # AdamW would hide a doubled gradient
        trainer.compile(keras.optimizers.SGD(0.5), jit_compile=False)
    batches = tf.data.Dataset.from_tensor_slices({"image": images, "mask": mask})
    batches = batches.batch(8, drop_remainder=True).repeat(2)
    return trainer.fit(batches, verbose=0).history["loss"], [np.array(w) for w in model.weights]

one = train(tf.distribute.get_strategy())
two = train(tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]))
# Sums of 4 + 4 instead of 8 float32 gradients, twice.
np.testing.assert_allclose(two[0], one[0], atol=1e-5)
for a, b in zip(one[1], two[1], strict=True):
    np.testing.assert_allclose(b, a, atol=1e-5)
"""


def test_two_replicas_train_as_one():
    subprocess.run(
        [sys.executable, "-c", REPLICAS], check=True, timeout=300
    )  # devices are split before they are used


@pytest.mark.parametrize("image_size", [32, (48, 32)])
def test_the_trunk_goes_into_a_classifier(image_size):
    masked = deit_tf.create_masked_model("deit_test")
    student = deit_tf.create_model("deit_test", num_classes=5, image_size=image_size)
    before = deit_tf.to_reference(student)
    deit_tf.load_trunk(student, masked)
    after, source = deit_tf.to_reference(student), deit_tf.to_reference(masked)
    for name in set(after) - {"pos_embed"}:
        np.testing.assert_array_equal(
            after[name], before[name] if name.startswith("head") else source[name]
        )
    assert (after["pos_embed"].shape == source["pos_embed"].shape) == (image_size == 32)


def test_another_trunk_is_refused_whole():
    plain = deit_tf.create_masked_model("deit_test", distilled=False)
    with pytest.raises(ValueError, match="distilled or not"):
        deit_tf.load_trunk(deit_tf.create_model("deit_test"), plain)


SIZE, PATCH = (32, 64), 4


def mask_of(seed, **config):
    mask = block_mask(
        tf.constant([0, seed], tf.int64), MaskConfig(**{"unit": 8, **config}), SIZE, PATCH
    )
    return np.asarray(mask).reshape(SIZE[0] // PATCH, SIZE[1] // PATCH)


def test_masks_are_blocks_of_the_share_asked_for():
    for seed in range(20):
        blocks = mask_of(seed).reshape(4, 2, 8, 2).transpose(0, 2, 1, 3).reshape(32, 4)
        assert (blocks == blocks[:, :1]).all()
        assert blocks[:, 0].sum() == 20  # ceil(0.6 * 32), SimMIM's rounding
    assert mask_of(0, ratio=0.01).sum() == 4


def test_every_block_is_hidden_as_often():
    share = np.mean([mask_of(seed) for seed in range(200)], axis=0)
    # 200 draws at 0.625: a deviation of 0.034, and 32 blocks.
    assert np.abs(share - 0.625).max() < 0.15


def test_masks_are_a_function_of_the_seed():
    np.testing.assert_array_equal(mask_of(3), mask_of(3))
    assert (mask_of(3) != mask_of(4)).any()


def stream(epochs=2, **arguments):
    source, _ = open_sources(DataConfig("digits"))
    data = DataConfig("digits", batch_size=256, num_parallel_calls=arguments.pop("calls", -1))
    recipe = AugmentConfig("light")
    batches = masked_dataset(
        source,
        data,
        recipe,
        MaskConfig(unit=8),
        ImageProcessor(16),
        4,
        epochs=epochs,
        seed=5,
        **arguments,
    )
    return list(batches.as_numpy_iterator())


def test_the_stream_is_stateless():
    first, again, resumed = stream(), stream(calls=1), stream(first_step=7)
    assert (
        len(first) == 10
        and first[0]["image"].shape == (256, 16, 16, 3)
        and first[0]["mask"].shape == (256, 16)
    )
    for a, b in zip(first + first[7:], again + resumed, strict=True):
        np.testing.assert_array_equal(a["mask"], b["mask"])
        np.testing.assert_array_equal(a["image"], b["image"])
    assert len({batch["mask"].tobytes() for batch in first}) == 10


def test_evaluation_masks_never_change():
    _, held_out = open_sources(DataConfig("digits"))
    data, processor = DataConfig("digits", batch_size=100), ImageProcessor(16)
    batches = masked_eval_dataset(held_out, data, MaskConfig(unit=8), processor, 4)
    one, two = (next(batches.as_numpy_iterator()) for _ in range(2))
    np.testing.assert_array_equal(one["mask"], two["mask"])
    assert len(np.unique(one["mask"], axis=0)) > 1


@pytest.mark.parametrize(
    "config", [dict(unit=6), dict(unit=0), dict(unit=64), dict(ratio=0.0), dict(ratio=1.0)]
)
def test_masks_that_do_not_fit_are_refused(config):
    with pytest.raises(ValueError, match="mask.unit" if "unit" in config else "mask.ratio"):
        check_mask(MaskConfig(**{"unit": 8, **config}), SIZE, PATCH)


def test_from_pretraining_to_a_student_by_command(tmp_path):
    configs = Path(__file__).parents[2] / "configs"
    small = (
        "--data.source digits --data.batch_size 256 --optim.warmup_epochs 0 --epochs 1 "
        "--precision float32"
    ).split()
    model = "--model.name deit_test --model.image_size 16 --model.patch_size 4".split()
    model += ["--model.embed_dim", "48"]
    masked, student = str(tmp_path / "masked"), str(tmp_path / "student")
    config = ["--config", str(configs / "simmim_tiny.yaml")]
    main(["train", *config, *small, *model, "--mask.unit", "8", "--out", masked])
    summary = json.loads(Path(masked, "summary.json").read_text())
    assert summary["kind"] == "masked" and 0 < summary["evaluation"]["loss"] < 2
    config = [
        "--config",
        str(configs / "demo_digits.yaml"),
        "--model.depth",
        "2",
        "--distill.kind",
        "none",
    ]
    rate = (
        "--optim.lr 0 --optim.min_lr 0 --optim.warmup_lr 0".split()
    )  # so that the student stays as it starts
    main(["train", *config, *small, *model, *rate, "--model.weights", masked, "--out", student])
    before, after = (deit_tf.to_reference(load_run(run).model) for run in (masked, student))
    for name in set(after) & set(before):
        np.testing.assert_array_equal(after[name], before[name])
    assert set(before) - set(after) == {"mask_token", "decoder.0.weight", "decoder.0.bias"}
