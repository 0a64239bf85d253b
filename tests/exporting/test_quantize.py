"""Static int8: smoothing changes nothing in float and takes outliers away; the file runs, small and
near Keras."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from sklearn.datasets import load_sample_images

import deit_tf
from deit_tf.data.preprocess import ImageProcessor
from deit_tf.exporting import litert, quantize, tflite
from deit_tf.exporting.compare import agreement, deviation
from deit_tf.exporting.sidecar import read_sidecar, tflite_description
from deit_tf.models.parts import blocks


def build(name="deit_test", **overrides):
    model = deit_tf.create_model(name, **{"num_classes": 10, "drop_path_rate": 0.1, **overrides})
    for layer in model.layers:
        if layer.name.startswith(
            "head"
        ):  # fresh heads give logits of 0.1, too small to tell right from wrong
            layer.kernel.assign(layer.kernel * 20)
    return model


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    return build(embed_dim=96)


@pytest.fixture(scope="module")
def windows():
    """Windows of two photographs, float32 [96, 32, 32, 3]."""
    random, processor = np.random.default_rng(0), ImageProcessor(32)
    photos = load_sample_images().images
    pictures = []
    for index in range(96):
        top, left = random.integers(0, 427 - 100), random.integers(0, 640 - 100)
        pictures.append(
            processor(tf.io.encode_png(photos[index % 2][top : top + 100, left : left + 100]))
        )
    return np.stack(pictures)


def copied(model):
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    return copy


def with_outliers(model, factor=40):
    """The same function, with four channels of each LayerNorm `factor` times as large and their
    kernels as small."""
    copy = copied(model)
    random = np.random.default_rng(0)
    blocks = [copy.get_layer(f"blocks.{index}") for index in range(2)]
    pairs = [(block.norm1, [block.attn.qkv]) for block in blocks] + [
        (block.norm2, [block.mlp.fc1]) for block in blocks
    ]
    pairs.append((copy.get_layer("norm"), [copy.get_layer("head"), copy.get_layer("head_dist")]))
    for norm, readers in pairs:
        scale = np.ones(96, "float32")
        scale[random.choice(96, 4, replace=False)] = factor
        norm.gamma.assign(norm.gamma * scale)
        norm.beta.assign(norm.beta * scale)
        for dense in readers:
            dense.kernel.assign(dense.kernel / scale[:, None])
    return copy


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("distilled", [True, False])
def test_smoothing_is_exact(windows, alpha, distilled):
    model = build(distilled=distilled)
    before = model.get_weights()
    smoothed = quantize.smooth(model, windows[:16], alpha)
    # Factors are rounded to float32, as is every product with them: some units in the last place of
    # logits of order 1.
    np.testing.assert_allclose(smoothed(windows[:8]), model(windows[:8]), atol=2e-5)
    changed = sum(
        not np.allclose(a, b, rtol=1e-2)
        for a, b in zip(before, smoothed.get_weights(), strict=True)
    )
    # gamma and kernel of two norms in two blocks, of the last norm and its heads; beta is 0 in a
    # fresh model
    assert changed == (4 * 2 + 1 + 1 + distilled)
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)  # the model itself stays


def test_smoothing_takes_outliers_away(model, windows):
    def spread(network):
        """Largest over median channel, of what the kernels read."""
        return max(
            each.max() / np.median(each)
            for each in quantize._largest_outputs(network, windows[:16])
        )

    wild = with_outliers(model)
    np.testing.assert_allclose(wild(windows[:8]), model(windows[:8]), atol=2e-5)
    # The largest activation and the smallest weight differ 40-fold; alpha = 0.5 leaves the root of
    # either.
    assert spread(wild) > 30 and spread(quantize.smooth(wild, windows[:16])) < 8


def test_the_second_norm_is_measured_behind_layer_scale(windows):
    """DeiT III: with factors of 0 the second norm sees what the block is given."""
    model = build(distilled=False, init_values=1e-6, no_embed_class=True)
    first = blocks(model)[0]
    first.ls1.gamma.assign(np.zeros(48))
    seen = quantize._largest_outputs(model, windows[:4])[1]
    given = deit_tf.features(model)(windows[:4])["hidden_states"][:, 0]
    np.testing.assert_allclose(seen, np.abs(first.norm2(given)).max(axis=(0, 1)), rtol=1e-6)


def test_smoothing_makes_int8_better_where_there_are_outliers(model, windows):
    wild = with_outliers(model)
    expected = np.asarray(wild(windows[64:]))

    def rms(network):
        content = tflite.converted(network, "float32", "float32", None, None)
        file = quantize.quantize_int8(content, windows[:64])
        return deviation(run(file, windows[64:]), expected)["relative_rms"]

    assert rms(quantize.smooth(wild, windows[:64])) < 0.5 * rms(wild)


def test_channels_that_a_norm_damps_stay_damped(model, windows):
    """Trained transformers carry a few huge channels, which gamma makes small again."""
    huge = copied(model)
    position = huge.get_layer("tokens").pos_embed
    lift = np.zeros(96, "float32")
    lift[[5, 40, 77]] = 20, -20, 14
    position.assign(position + lift)
    blocks = [huge.get_layer(f"blocks.{index}") for index in range(2)]
    for norm in [*(b.norm1 for b in blocks), *(b.norm2 for b in blocks), huge.get_layer("norm")]:
        norm.gamma.assign(np.where(lift, 0.1, 3.5))
    expected = np.asarray(huge(windows[64:]))
    content = tflite.converted(huge, "int8", "float32", None, windows[:64])
    # 0.014 was seen; 0.029 where the converter folds gamma into the next kernel.
    assert deviation(run(content, windows[64:]), expected)["relative_rms"] < 0.02


def run(content, images):
    interpreter = litert.Interpreter(model_content=content)
    runner = interpreter.get_signature_runner()
    return np.concatenate([runner(images=image[None])["logits"] for image in images])


@pytest.fixture(scope="module")
def exported(model, windows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("int8")
    options = {"images": windows[64:], "calibration": windows[:64]}
    report = tflite.export_tflite(model, folder / "int8.tflite", variant="int8", **options)
    tflite.export_tflite(model, folder / "float32.tflite", images=windows[64:])
    return report, folder


def test_int8_is_small_and_near_keras(exported, model, windows):
    report, folder = exported
    logits, expected = (
        litert.load_tflite(folder / "int8.tflite")(windows[64:]),
        np.asarray(model(windows[64:])),
    )
    # Eight bits a tensor: 0.02 of the RMS was seen on trained models.
    assert deviation(logits, expected)["relative_rms"] < 0.05
    assert agreement(logits, expected)["clear"]["share"] == 1.0
    # Scales and zero points weigh 24 bytes a channel, much in kernels of 96 rows.
    assert report["bytes"] < 0.45 * (folder / "float32.tflite").stat().st_size
    assert read_sidecar(*tflite_description(folder / "int8.tflite")).verified["variant"] == "int8"


def test_every_product_with_weights_is_int8(exported):
    _, folder = exported
    interpreter = litert.Interpreter(model_path=str(folder / "int8.tflite"))
    types = {detail["index"]: detail["dtype"] for detail in interpreter.get_tensor_details()}
    products = [op for op in interpreter._get_ops_details() if op["op_name"] in quantize.OPS]
    assert len(products) == 2 * 4 + 2 + 1  # four in each block, two heads, the patches
    for op in products:
        image, kernel = (types[index] for index in op["inputs"][:2])
        assert image == kernel == types[op["outputs"][0]] == np.int8, op
    others = {
        op["op_name"] for op in interpreter._get_ops_details() if types[op["outputs"][0]] == np.int8
    }
    assert others == {*quantize.OPS, "QUANTIZE"}  # softmax, norms, GELU and attention stay in float


def test_ranges_hold_all_images(exported, model, windows):
    """Not a moving average, which forgets."""
    content = (exported[1] / "float32.tflite").read_bytes()
    (name,) = (d["name"] for d in litert.Interpreter(model_content=content).get_input_details())
    scaled = windows[:8] * np.linspace(3, 1, 8, dtype="float32")[:, None, None, None]
    assert quantize.activation_ranges(content, scaled, {name}) == {
        name: (scaled.min(), scaled.max())
    }


def test_int8_takes_pixels(model, windows, tmp_path):
    options = {"images": windows[64:], "calibration": windows[:64], "processor": ImageProcessor(32)}
    file = tmp_path / "m.tflite"
    tflite.export_tflite(model, file, variant="int8", input_type="uint8", **options)
    loaded = litert.load_tflite(file)
    assert loaded.input_type == "uint8"
    assert deviation(loaded(windows[64:]), np.asarray(model(windows[64:])))["relative_rms"] < 0.05


def test_other_models_are_quantized_as_they_are(windows, tmp_path):
    image = keras.Input((32, 32, 3))
    x = keras.layers.Conv2D(16, 8, strides=8, activation="relu")(image)
    plain = keras.Model(image, keras.layers.Dense(4)(keras.layers.Flatten()(x)))
    assert quantize.smooth(plain, windows[:4]) is plain
    options = {"images": windows[64:], "calibration": windows[:64]}
    assert (
        tflite.export_tflite(plain, tmp_path / "m.tflite", variant="int8", **options)[
            "relative_rms"
        ]
        < 0.05
    )


@pytest.mark.parametrize("images", [None, np.zeros((2, 16, 16, 3), "float32")])
def test_int8_needs_images_to_calibrate_on(model, tmp_path, images):
    with pytest.raises(ValueError, match="`calibration`|`images`"):
        tflite.export_tflite(model, tmp_path / "m.tflite", variant="int8", calibration=images)
    assert list(tmp_path.iterdir()) == []


def test_alpha_out_of_range(model, windows):
    with pytest.raises(ValueError, match="`alpha` lies in"):
        quantize.smooth(model, windows[:1], 1.5)
